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
    struct cudaDeviceProp properties;
    must(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    return strncmp(properties.name, "emulated", 8) == 0;
}

static size_t front_of(const void *host) { return MARGIN + (uintptr_t)host % ALIGN; }

static char *allocate(const void *host, size_t size)
{
    char *base;
    must(cudaMalloc((void **)&base, front_of(host) + size + MARGIN), "cudaMalloc");
    must(cudaMemset(base, FILL, front_of(host)), "cudaMemset");
    must(cudaMemset(base + front_of(host) + size, FILL, MARGIN), "cudaMemset");
    return base + front_of(host);
}

void *device_new(const void *host, size_t size)
{
    void *device = allocate(host, size);
    must(cudaMemcpy(device, host, size, cudaMemcpyHostToDevice), "cudaMemcpy");
    return device;
}

void *device_scratch(const void *host, size_t size)
{
    void *device = allocate(host, size);
    if (!getenv("WELFORD_TEST_INITCHECK"))
        must(cudaMemset(device, FILL, size), "cudaMemset");
    return device;
}

static bool is_filled(const char *device, size_t size)
{
    unsigned char copy[MARGIN + ALIGN];
    must(cudaMemcpy(copy, device, size, cudaMemcpyDeviceToHost), "cudaMemcpy");
    bool filled = true;
    for (size_t i = 0; i < size; i++)
        filled &= copy[i] == FILL;
    return filled;
}

bool device_drop(void *device, const void *host, size_t size)
{
    char *base = (char *)device - front_of(host);
    must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    const bool intact = is_filled(base, front_of(host)) & is_filled((char *)device + size, MARGIN);
    must(cudaFree(base), "cudaFree");
    return intact;
}

bool device_take(void *device, void *host, size_t size)
{
    must(cudaMemcpy(host, device, size, cudaMemcpyDeviceToHost), "cudaMemcpy");
    return device_drop(device, host, size);
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
