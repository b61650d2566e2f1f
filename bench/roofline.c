/* roofline.c - what this machine's memory does: copies of several sizes, measured as the calls are.
 * Bytes are those read plus those written. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "bench.h"
#include "pool.h"

typedef struct Copy { size_t half; pool *workers; int threads; bool streaming; } Copy;
typedef struct Slice { char *to; const char *from; size_t size; int parts; bool streaming; } Slice;

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

static void copy_slices(void *arg, int64_t begin, int64_t end)
{
    const Slice *s = arg;
    for (int64_t i = begin; i < end; i++) {
        const size_t from = s->size / 64 * (size_t)i / (size_t)s->parts * 64;
        const size_t to = s->size / 64 * (size_t)(i + 1) / (size_t)s->parts * 64;
        if (s->streaming)
            stream_copy(s->to + from, s->from + from, to - from);
        else
            memcpy(s->to + from, s->from + from, to - from);
    }
}

static bool copy_call(void *state, char *slab, struct CUstream_st *stream)
{
    const Copy *copy = state;
    if (stream) {
        gpu_copy(slab + copy->half, slab, copy->half, stream);
        return true;
    }
    Slice s = { slab + copy->half, slab, copy->half, copy->threads, copy->streaming };
    pool_parallel_for(copy->workers, s.parts, copy_slices, &s);
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
        Copy copy = { (size_t)bytes / 2, workers, threads, true }, plain = copy;
        plain.streaming = false;
        Timer timer = { .backend = backend, .cold = cold, .min_time = quick ? 0.01 : 0.05, .slab_size = (size_t)bytes };
        timer.sets = sets_wanted(backend, cold, timer.slab_size);
        char **slab = timer.slab = calloc((size_t)timer.sets, sizeof *slab);
        bool memory = true;
        for (int i = 0; i < timer.sets; i++) {
            slab[i] = backend == WF_CUDA ? gpu_alloc((size_t)bytes) : aligned_alloc(4096, (size_t)bytes);
            memory &= slab[i] != NULL;
        }
        Contestant who[2] = { { .call = copy_call, .state = &copy }, { .call = copy_call, .state = &plain } };
        for (int i = 0; i < timer.sets && memory; i++)
            fill(backend, slab[i], (size_t)bytes);
        if (memory && !time_all(&timer, who, backend == WF_CUDA ? 1 : 2)) {
            r.bytes[r.points] = bytes;
            r.rate[r.points] = bytes / who[0].timing.median;
            r.plain_rate[r.points] = backend == WF_CUDA ? 0 : bytes / who[1].timing.median;
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

double roofline_peak(const Roofline *r)
{
    double peak = 0;
    for (int i = 0; i < r->points; i++)
        peak = best(r, i) > peak ? best(r, i) : peak;
    return peak;
}

/* The time of a copy is taken to be linear between the sizes; a smaller one takes as long as the smallest. */
double roofline_at(const Roofline *r, double bytes)
{
    if (r->points == 0)
        return 0;
    int i = 0;
    while (i < r->points && r->bytes[i] < bytes)
        i++;
    if (i == r->points)
        return best(r, i - 1);
    const double high = r->bytes[i] / best(r, i);
    if (i == 0)
        return bytes / high;
    const double low = r->bytes[i - 1] / best(r, i - 1);
    return bytes / (low + (high - low) * (bytes - r->bytes[i - 1]) / (r->bytes[i] - r->bytes[i - 1]));
}
