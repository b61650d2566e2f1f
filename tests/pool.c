#include "pool.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* All fields below `lock` are guarded by it. A job is a number of pieces, handed out one at a time. */
struct pool {
    int threads;
    pool_order order;
    pthread_t *thread;
    pthread_mutex_t turn; /* held by the caller of pool_parallel_for */
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    int quit;
    int64_t n, pieces, taken, finished;
    void (*body)(void *, int64_t, int64_t);
    void *arg;
};

static int64_t piece_count(const pool *p, int64_t n)
{
    switch (p->order) {
    case POOL_FORWARD:
        return (n + 2) / 3;
    case POOL_BIG:
        return n < p->threads + 1 ? n : p->threads + 1;
    case POOL_WHOLE:
        return 1;
    default:
        return n;
    }
}

static void piece_range(const pool *p, int64_t i, int64_t *begin, int64_t *end)
{
    const int64_t n = p->n, third = (n + 2) / 3, two_thirds = third + (n + 1) / 3;
    switch (p->order) {
    case POOL_FORWARD:
        *begin = 3 * i;
        *end = *begin + 3 < n ? *begin + 3 : n;
        return;
    case POOL_REVERSED:
        *begin = n - 1 - i;
        break;
    case POOL_SINGLES: /* 0 3 6 ...  1 4 7 ...  2 5 8 ... */
        *begin = i < third ? 3 * i : i < two_thirds ? 3 * (i - third) + 1 : 3 * (i - two_thirds) + 2;
        break;
    case POOL_BIG:
        i = p->pieces - 1 - i;
        *begin = n * i / p->pieces;
        *end = n * (i + 1) / p->pieces;
        return;
    default:
        *begin = 0;
        *end = n;
        return;
    }
    *end = *begin + 1;
}

/* Runs pieces of the job until none is left. Called and left with p->lock held. */
static void run_pieces(pool *p)
{
    while (p->taken < p->pieces) {
        int64_t begin, end;
        piece_range(p, p->taken++, &begin, &end);
        pthread_mutex_unlock(&p->lock);
        p->body(p->arg, begin, end);
        pthread_mutex_lock(&p->lock);
        if (++p->finished == p->pieces)
            pthread_cond_broadcast(&p->done);
    }
}

static void *worker(void *arg)
{
    pool *p = arg;
    pthread_mutex_lock(&p->lock);
    while (!p->quit) {
        run_pieces(p);
        if (!p->quit && p->taken == p->pieces)
            pthread_cond_wait(&p->work, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

pool *pool_new(int threads, pool_order order)
{
    pool *p = calloc(1, sizeof *p);
    pthread_t *thread = calloc((size_t)threads + 1, sizeof *thread);
    if (!p || !thread)
        abort();
    p->threads = threads;
    p->order = order;
    p->thread = thread;
    pthread_mutex_init(&p->turn, NULL);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, worker, p)) {
            fprintf(stderr, "pool_new: no thread\n");
            abort();
        }
    return p;
}

void pool_free(pool *p)
{
    pthread_mutex_lock(&p->lock);
    p->quit = 1;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->threads; i++)
        pthread_join(p->thread[i], NULL);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->turn);
    free(p->thread);
    free(p);
}

void pool_parallel_for(void *pool_arg, int64_t n, void (*body)(void *, int64_t, int64_t), void *arg)
{
    pool *p = pool_arg;
    if (n <= 0)
        return;
    pthread_mutex_lock(&p->turn);
    pthread_mutex_lock(&p->lock);
    p->n = n;
    p->body = body;
    p->arg = arg;
    p->finished = p->taken = 0;
    p->pieces = piece_count(p, n);
    pthread_cond_broadcast(&p->work);
    run_pieces(p);
    while (p->finished < p->pieces)
        pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
    pthread_mutex_unlock(&p->turn);
}

void serial_parallel_for(void *ignored, int64_t n, void (*body)(void *, int64_t, int64_t), void *arg)
{
    (void)ignored;
    if (n > 0)
        body(arg, 0, n);
}
