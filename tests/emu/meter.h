/* What kernels moved. From meter_start to meter_stop every launch is recorded, and all launches together.
 *
 * An instruction is an access of the lanes of a warp at one place of the program; the lanes are matched by how often each
 * was there since the warp last met. Sectors are 32 bytes. A shared access counts if it goes by dev::shared's [], and has
 * as many wavefronts as the fullest bank has distinct 4-byte words (8-byte accesses: by half warps, 16-byte: by quarters).
 * What goes by a plain T * to shared memory is not seen. */
#ifndef WF_EMU_METER_H
#define WF_EMU_METER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct meter_traffic {
    uint64_t bytes;    /* that threads asked for */
    uint64_t sectors;  /* touched by instructions: an instruction counts a sector once */
    uint64_t distinct; /* sectors touched at all */
    uint64_t width[5]; /* accesses of 1, 2, 4, 8, 16 bytes */
};

struct meter_buffer { /* of an allocation that was touched */
    const char          *name; /* given by meter_name, or "" */
    const void          *data;
    size_t               size;
    struct meter_traffic read, write;
};

struct meter_record {
    unsigned                   grid[3], block[3], cluster;
    size_t                     shared_size; /* the most that a block used, bytes */
    void                      *stream;
    uint64_t                   launches, blocks, threads;
    uint64_t                   block_barriers, cluster_barriers, warp_collectives; /* meetings, not threads */
    uint64_t                   shared_instructions, shared_wavefronts, shared_ways; /* ways: the most wavefronts over the
                                                                                       fewest that an access of its width needs */
    uint64_t                   remote_bytes; /* of other blocks' shared memory */
    int                        buffers;
    const struct meter_buffer *buffer;
};

void meter_start(void); /* forgets all records, keeps names */
void meter_stop(void);
void meter_name(const void *data, const char *name); /* of the allocation that data points into; name is kept by reference */

int                        meter_launches(void);
const struct meter_record *meter_launch(int i);
const struct meter_record *meter_total(void); /* grid, block, cluster and stream are those of the last launch */
const struct meter_buffer *meter_find(const struct meter_record *record, const void *data); /* NULL: not touched */

#ifdef __cplusplus
}
#endif
#endif
