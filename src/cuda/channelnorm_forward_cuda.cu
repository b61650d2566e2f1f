/* GroupNorm, InstanceNorm and BatchNorm forward on CUDA:
 *
 *     y = ((x - mean) - mean_lo) * (rstd * gamma) + beta
 *
 * with the statistics of x, from which the running ones move in the same call, or with known ones. */
#include "channels_first_forward.cuh"
#include "channels_last_forward.cuh"

static size_t no_workspace(const Problem &) { return 0; }

/* Which one takes a case depends on the size of a set alone, so that a sample has the same bits in every batch. */
const Variant<channelnorm_forward> channelnorm_forward_variants[] = {
    {"first_known", 0, channels_first::known_takes, no_workspace, channels_first::known_launch},
    {"first_sub_warp_per_set", 0, channels_first::registers_take<8>, channels_first::on_chip_workspace,
     channels_first::registers_launch<8>},
    {"first_warp_per_set", 0, channels_first::registers_take<32>, channels_first::on_chip_workspace,
     channels_first::registers_launch<32>},
    {"first_block_of_128_per_set", 0, channels_first::registers_take<128>, channels_first::on_chip_workspace,
     channels_first::registers_launch<128>},
    {"first_block_of_512_per_set", 0, channels_first::registers_take<WIDE>, channels_first::on_chip_workspace,
     channels_first::registers_launch<WIDE>},
    {"first_cluster_per_set", 90, channels_first::shared_takes<CLUSTER_MAX>, channels_first::on_chip_workspace,
     channels_first::shared_launch<CLUSTER_MAX>},
    {"first_set_in_shared", 0, channels_first::shared_takes<1>, channels_first::on_chip_workspace,
     channels_first::shared_launch<1>},
    {"first_segments", 0, channels_first::segments_take, channels_first::segments_workspace, channels_first::segments_launch},
    {"last_known", 0, channels_last::known_takes, no_workspace, channels_last::launch},
    {"last_block_per_tile", 0, channels_last::on_chip_takes<channels_last::WIDE_SIZE, 1>, channels_last::on_chip_workspace,
     channels_last::on_chip_launch<channels_last::WIDE_SIZE>},
    {"last_block_per_narrow_tile", 0, channels_last::on_chip_takes<channels_last::NARROW_SIZE, 1>,
     channels_last::on_chip_workspace, channels_last::on_chip_launch<channels_last::NARROW_SIZE>},
    {"last_cluster_per_tile", 90, channels_last::on_chip_takes<channels_last::NARROW_SIZE, CLUSTER_MAX>,
     channels_last::on_chip_workspace, channels_last::on_chip_launch<channels_last::NARROW_SIZE>},
    {"last_tiles", 0, channels_last::takes, channels_last::workspace, channels_last::launch},
    {},
};
