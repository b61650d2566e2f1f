#include "device.h"

#ifdef WF_TEST_CUDA

#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Under ASan none: it sees reads past the end, too. */
#ifdef __SANITIZE_ADDRESS__
enum { MARGIN = 0 };
#else
enum { MARGIN = 128 };
#endif
enum { ALIGN = 64, FILL = 0xff /* NaNs */ };

static void must(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    abort();
}

const char *device_missing(void)
{
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    return error != cudaSuccess ? cudaGetErrorString(error) : count > 0 ? NULL : "no device";
}

bool device_emulated(void)
{
    static struct cudaDeviceProp properties; /* takes milliseconds */
    if (!properties.name[0])
        must(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    return strncmp(properties.name, "emulated", 8) == 0;
}

static size_t front_of(const void *host) { return MARGIN + (uintptr_t)host % ALIGN; }

/* On a GPU memory is kept for the next buffer, for allocating takes longer than most tests' kernels. Not where somebody
 * watches allocations: the emulator, or compute-sanitizer. */
typedef struct Block { char *base; size_t size; } Block;
enum { KEPT = 64 };
static Block kept[KEPT];

static bool keeps_memory(void) { return !device_emulated() && !getenv("WELFORD_TEST_SANITIZE"); }

static size_t rounded(size_t size) /* so that few sizes occur */
{
    size_t power = 1 << 12;
    while (power < size)
        power *= 2;
    return power;
}

static char *allocate(size_t size)
{
    char *base;
    const bool keeps = keeps_memory();
    for (int i = 0; i < KEPT && keeps; i++)
        if (kept[i].base && kept[i].size == rounded(size)) {
            base = kept[i].base;
            kept[i].base = NULL;
            return base;
        }
    must(cudaMalloc((void **)&base, keeps ? rounded(size) : size), "cudaMalloc");
    return base;
}

static void release(char *base, size_t size)
{
    for (int i = 0; i < KEPT && keeps_memory(); i++)
        if (!kept[i].base && rounded(size) < 1 << 24) {
            kept[i] = (Block){ base, rounded(size) };
            return;
        }
    must(cudaFree(base), "cudaFree");
}

static size_t whole(const void *host, size_t size) { return front_of(host) + size + MARGIN; }

/* A copy of `size` bytes that `values` holds (NULL: NaNs), placed as host is. */
static void *place(const void *host, const void *values, size_t size)
{
    const size_t all = whole(host, size);
    char *base = allocate(all), *image = memset(malloc(all), FILL, all);
    if (values)
        memcpy(image + front_of(host), values, size);
    must(cudaMemcpy(base, image, all, cudaMemcpyHostToDevice), "cudaMemcpy");
    free(image);
    return base + front_of(host);
}

void *device_new(const void *host, size_t size) { return place(host, host, size); }

void *device_scratch(const void *host, size_t size)
{
    if (!getenv("WELFORD_TEST_INITCHECK"))
        return place(host, NULL, size);
    char *base = allocate(whole(host, size));
    must(cudaMemset(base, FILL, front_of(host)), "cudaMemset");
    must(cudaMemset(base + front_of(host) + size, FILL, MARGIN), "cudaMemset");
    return base + front_of(host);
}

static bool is_filled(const unsigned char *bytes, size_t size)
{
    bool filled = true;
    for (size_t i = 0; i < size; i++)
        filled &= bytes[i] == FILL;
    return filled;
}

bool device_drop(void *device, const void *host, size_t size)
{
    char *base = (char *)device - front_of(host);
    unsigned char front[MARGIN + ALIGN], back[MARGIN + 1];
    must(cudaMemcpy(front, base, front_of(host), cudaMemcpyDeviceToHost), "cudaMemcpy"); /* waits for the kernels */
    must(cudaMemcpy(back, (char *)device + size, MARGIN, cudaMemcpyDeviceToHost), "cudaMemcpy");
    release(base, whole(host, size));
    return is_filled(front, front_of(host)) && is_filled(back, MARGIN);
}

bool device_take(void *device, void *host, size_t size)
{
    const size_t all = whole(host, size), front = front_of(host);
    unsigned char *image = malloc(all);
    must(cudaMemcpy(image, (char *)device - front, all, cudaMemcpyDeviceToHost), "cudaMemcpy");
    release((char *)device - front, all);
    const bool intact = is_filled(image, front) && is_filled(image + front + size, MARGIN);
    memcpy(host, image + front, size);
    free(image);
    return intact;
}

#else

const char *device_missing(void) { return "a build without CUDA"; }

bool device_emulated(void) { return false; }

void *device_new(const void *host, size_t size)
{
    (void)host, (void)size;
    return NULL;
}

void *device_scratch(const void *host, size_t size)
{
    return device_new(host, size);
}

bool device_drop(void *device, const void *host, size_t size)
{
    (void)device, (void)host, (void)size;
    return true;
}

bool device_take(void *device, void *host, size_t size)
{
    return device_drop(device, host, size);
}

#endif

bool device_present(void) { return device_missing() == NULL; }
