/* peers.c - the list of other implementations; each is found at run time, or left out. */
#include "bench.h"

extern const Peer peer_naive, peer_unfused, peer_composed, peer_onednn, peer_unfused_cuda, peer_cublas, peer_cudnn;

const Peer *const all_peers[] = { &peer_naive, &peer_unfused, &peer_composed, &peer_onednn,
                                  &peer_unfused_cuda, &peer_cublas, &peer_cudnn, NULL };
