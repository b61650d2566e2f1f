/* peers.c - the list of other implementations; each is found at run time, or left out. */
#include "bench.h"

const Peer *const all_peers[] = { NULL };
