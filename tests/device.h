/* device.h - memory for cases with backend=cuda, through CUDA's runtime: the real one, or the emulator's. */
#ifndef WELFORD_TESTS_DEVICE_H
#define WELFORD_TESTS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

bool  device_present(void); /* false in a build without CUDA */
const char *device_missing(void); /* why there is none; NULL if there is */
bool  device_emulated(void); /* the device that is present is the emulator's */
/* A copy of host[0 .. size) on the device, as far from a multiple of 64 bytes as host, between two margins. */
void *device_new(const void *host, size_t size);
/* The same of NaNs; of nothing where WELFORD_TEST_INITCHECK=1, so that compute-sanitizer sees a read before a write. */
void *device_scratch(const void *host, size_t size);
/* Waits for the kernels, frees; take: copies back to host before. False: a margin was written. */
bool  device_drop(void *device, const void *host, size_t size);
bool  device_take(void *device, void *host, size_t size);

#endif
