/* roofline.c - what this machine's memory does: copies, and on the CPU reads, of several sizes, measured as the calls are.
 * Bytes are those read plus those written. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "bench.h"
#include "pool.h"

typedef enum Manner { STREAMED, PLAIN, READ, MANNERS } Manner; /* the device copies in one manner, STREAMED */
typedef struct Move { size_t size; pool *workers; int threads; Manner manner; } Move; /* size: read and written */
typedef struct Slice { char *to; const char *from; size_t size; int parts; Manner manner; } Slice;

static void stream_copy(char *to, const char *from, size_t size)
{
#ifdef __SSE2__
    for (size_t i = 0; i < size; i += 64) {
        const __m128i *in = (const __m128i *)(const void *)(from + i);
        __m128i *out = (__m128i *)(void *)(to + i);
        const __m128i a = _mm_load_si128(in), b = _mm_load_si128(in + 1), c = _mm_load_si128(in + 2), d = _mm_load_si128(in + 3);
        _mm_stream_si128(out, a);
        _mm_stream_si128(out + 1, b);
        _mm_stream_si128(out + 2, c);
        _mm_stream_si128(out + 3, d);
    }
    _mm_sfence();
#else
    memcpy(to, from, size);
#endif
}

typedef uint64_t Line __attribute__((vector_size(64)));
static volatile uint64_t sink; /* or there would be nothing to do */

/* Four sums side by side, so that no addition waits for the one before. */
#ifdef __x86_64__
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static void read_all(const char *from, size_t size)
{
    const Line *line = (const Line *)(const void *)from;
    Line a = { 0 }, b = a, c = a, d = a;
    size_t i = 0;
    for (; i + 4 <= size / sizeof *line; i += 4)
        a += line[i], b += line[i + 1], c += line[i + 2], d += line[i + 3];
    for (; i < size / sizeof *line; i++)
        a += line[i];
    a += b + c + d;
    sink = a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
}

static void move_slices(void *arg, int64_t begin, int64_t end)
{
    const Slice *s = arg;
    for (int64_t i = begin; i < end; i++) {
        const size_t from = s->size / 64 * (size_t)i / (size_t)s->parts * 64;
        const size_t to = s->size / 64 * (size_t)(i + 1) / (size_t)s->parts * 64;
        if (s->manner == READ)
            read_all(s->from + from, to - from);
        else if (s->manner == STREAMED)
            stream_copy(s->to + from, s->from + from, to - from);
        else
            memcpy(s->to + from, s->from + from, to - from);
    }
}

static bool move_call(void *state, char *slab, struct CUstream_st *stream)
{
    const Move *move = state;
    const size_t half = move->size / 2;
    if (stream) {
        gpu_copy(slab + half, slab, half, stream);
        return true;
    }
    Slice s = { slab + half, slab, move->manner == READ ? move->size : half, move->threads, move->manner };
    pool_parallel_for(move->workers, s.parts, move_slices, &s);
    return true;
}

/* Random numbers: zeros may be faster than data. */
static void fill(wf_backend backend, char *at, size_t size)
{
    enum { BLOCK = 1 << 22 };
    static uint64_t block[BLOCK / 8];
    for (size_t i = 0; !block[0] && i < BLOCK / 8; i++)
        block[i] = (i ? block[i - 1] : 1) * 6364136223846793005u + 1442695040888963407u;
    for (size_t i = 0; i < size; i += BLOCK) {
        const size_t part = size - i < BLOCK ? size - i : BLOCK;
        backend == WF_CUDA ? gpu_put(at + i, block, part) : (void)memcpy(at + i, block, part);
    }
}

Roofline roofline_measure(wf_backend backend, int threads, bool cold, bool quick)
{
    Roofline r = { .threads = backend == WF_CPU ? threads : 0 };
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    const double large = backend == WF_CUDA ? 0x1p30 : cache > 0x1p27 ? 0x1p29 : 0x1p28;
    const double largest = !quick ? large : backend == WF_CUDA ? 0x1p28 : 0x1p26;
    pool *workers = pool_new(threads - 1, POOL_BIG);
    for (double bytes = 0x1p16; bytes <= largest && r.points < ROOF_POINTS; bytes *= backend == WF_CPU ? 8 : 4) {
        Move move[MANNERS];
        Contestant who[MANNERS];
        for (Manner m = STREAMED; m < MANNERS; m++) {
            move[m] = (Move){ (size_t)bytes, workers, threads, m };
            who[m] = (Contestant){ .call = move_call, .state = &move[m] };
        }
        Timer timer = { .backend = backend, .cold = cold, .min_time = quick ? 0.01 : 0.05, .slab_size = (size_t)bytes };
        timer.sets = sets_wanted(backend, cold, timer.slab_size);
        char **slab = timer.slab = calloc((size_t)timer.sets, sizeof *slab);
        bool memory = true;
        for (int i = 0; i < timer.sets; i++) {
            slab[i] = backend == WF_CUDA ? gpu_alloc((size_t)bytes) : aligned_alloc(4096, (size_t)bytes);
            memory &= slab[i] != NULL;
        }
        for (int i = 0; i < timer.sets && memory; i++)
            fill(backend, slab[i], (size_t)bytes);
        if (memory && !time_all(&timer, who, backend == WF_CUDA ? 1 : MANNERS)) {
            r.bytes[r.points] = bytes;
            r.rate[r.points] = bytes / who[STREAMED].timing.median;
            r.plain_rate[r.points] = backend == WF_CUDA ? 0 : bytes / who[PLAIN].timing.median;
            r.read_rate[r.points] = backend == WF_CUDA ? 0 : bytes / who[READ].timing.median;
            r.points++;
        }
        for (int i = 0; i < timer.sets; i++)
            if (slab[i])
                backend == WF_CUDA ? gpu_free(slab[i]) : free(slab[i]);
        free(slab);
    }
    pool_free(workers);
    return r;
}

static double best(const Roofline *r, int i) { return r->rate[i] > r->plain_rate[i] ? r->rate[i] : r->plain_rate[i]; }
static double read_rate(const Roofline *r, int i) { return r->read_rate[i]; }

double roofline_peak(const Roofline *r)
{
    double peak = 0;
    for (int i = 0; i < r->points; i++)
        peak = best(r, i) > peak ? best(r, i) : peak;
    return peak;
}

/* The time is taken to be linear between the sizes; a smaller one takes as long as the smallest. */
static double rate_at(const Roofline *r, double (*rate)(const Roofline *, int), double bytes)
{
    if (r->points == 0 || rate(r, 0) == 0)
        return 0;
    int i = 0;
    while (i < r->points && r->bytes[i] < bytes)
        i++;
    if (i == r->points)
        return rate(r, i - 1);
    const double high = r->bytes[i] / rate(r, i);
    if (i == 0)
        return bytes / high;
    const double low = r->bytes[i - 1] / rate(r, i - 1);
    return bytes / (low + (high - low) * (bytes - r->bytes[i - 1]) / (r->bytes[i] - r->bytes[i - 1]));
}

double roofline_at(const Roofline *r, double bytes) { return rate_at(r, best, bytes); }

Bound roofline_bound(const Roofline *r, const Traffic *t)
{
    Bound b = { .copy_rate = roofline_at(r, t->bytes), .read_rate = rate_at(r, read_rate, t->bytes) };
    if (b.read_rate == 0)
        return b;
    b.read = t->read > t->written ? t->read - t->written : 0;
    b.copied = t->bytes - b.read;
    b.once = b.copied / b.copy_rate + b.read / b.read_rate;
    b.twice = b.once + t->again / b.read_rate;
    return b;
}
