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

bool device_present(void)
{
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

bool device_emulated(void)
{
    struct cudaDeviceProp properties;
    must(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    return strncmp(properties.name, "emulated", 8) == 0;
}

static size_t front_of(const void *host) { return MARGIN + (uintptr_t)host % ALIGN; }

void *device_new(const void *host, size_t size)
{
    const size_t front = front_of(host);
    char *base;
    must(cudaMalloc((void **)&base, front + size + MARGIN), "cudaMalloc");
    must(cudaMemset(base, FILL, front + size + MARGIN), "cudaMemset");
    must(cudaMemcpy(base + front, host, size, cudaMemcpyHostToDevice), "cudaMemcpy");
    return base + front;
}

bool device_take(void *device, void *host, size_t size)
{
    const size_t front = front_of(host), whole = front + size + MARGIN;
    char *base = (char *)device - front;
    unsigned char *copy = malloc(whole);
    must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    must(cudaMemcpy(copy, base, whole, cudaMemcpyDeviceToHost), "cudaMemcpy");
    must(cudaFree(base), "cudaFree");
    bool intact = true;
    for (size_t i = 0; i < whole; i++)
        intact &= (i >= front && i < front + size) || copy[i] == FILL;
    memcpy(host, copy + front, size);
    free(copy);
    return intact;
}

#else

bool device_present(void) { return false; }

bool device_emulated(void) { return false; }

void *device_new(const void *host, size_t size)
{
    (void)host, (void)size;
    return NULL;
}

bool device_take(void *device, void *host, size_t size)
{
    (void)device, (void)host, (void)size;
    return true;
}

#endif
