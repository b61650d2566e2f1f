/* pool.h - a small pthread pool for where.parallel_for: it splits the work in ways that OpenMP never would. */
#ifndef TESTS_POOL_H
#define TESTS_POOL_H

#include <stdint.h>

typedef enum pool_order {
    POOL_FORWARD,  /* pieces of three, first to last                   */
    POOL_REVERSED, /* one by one, last to first                        */
    POOL_SINGLES,  /* one by one, every third, then the ones between   */
    POOL_BIG,      /* one piece a thread, the last ones first          */
    POOL_WHOLE,    /* one piece, on whichever thread gets there first  */
    POOL_ORDERS
} pool_order;

typedef struct pool pool;
pool *pool_new(int threads, pool_order order); /* threads >= 0 beside the caller's; aborts if it cannot */
void pool_free(pool *p);

/* A wf_parallel_for; the first argument is a pool. Callable from several threads at once: they take turns. */
void pool_parallel_for(void *p, int64_t n, void (*body)(void *arg, int64_t begin, int64_t end), void *arg);

/* Another one, without threads: [0, n) in one piece on the caller's. The first argument is ignored. */
void serial_parallel_for(void *ignored, int64_t n, void (*body)(void *arg, int64_t begin, int64_t end), void *arg);

#endif
