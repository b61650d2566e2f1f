#include "guard.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, size) ((void)(p), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(p, size) ((void)(p), (void)(size))
#endif

/* One allocation:  base ... | record | canary | buffer | canary |,  the record at a fixed distance before the buffer. */
enum { kCanary = 256, kAlign = 64 };
typedef struct guard_record {
    void *base;
    size_t size;
} guard_record;

/* Depends on the place, so that a copy of one canary over another is seen. */
static uint8_t canary_byte(const uint8_t *at) { return (uint8_t)(((uintptr_t)at * 0x9e3779b1u >> 8) | 1); }

static guard_record read_record(const uint8_t *buffer)
{
    guard_record record;
    memcpy(&record, buffer - kCanary - sizeof record, sizeof record);
    return record;
}

void *guard_alloc(size_t size, size_t misalign_bytes)
{
    const size_t front = sizeof(guard_record) + kCanary + kAlign;
    uint8_t *base = misalign_bytes < kAlign ? malloc(front + 2 * kAlign + size + kCanary) : NULL;
    if (!base) {
        fprintf(stderr, "guard_alloc(%zu, %zu) failed\n", size, misalign_bytes);
        abort();
    }
    uint8_t *buffer = base + front;
    buffer += (kAlign - (uintptr_t)buffer % kAlign) % kAlign + misalign_bytes;
    const guard_record record = {base, size};
    memcpy(buffer - kCanary - sizeof record, &record, sizeof record);
    for (int i = 0; i < kCanary; i++) {
        buffer[i - kCanary] = canary_byte(buffer + i - kCanary);
        buffer[size + i] = canary_byte(buffer + size + i);
    }
    memset(buffer, 0xa5, size);
    ASAN_POISON_MEMORY_REGION(buffer - kCanary, kCanary);
    ASAN_POISON_MEMORY_REGION(buffer + size, kCanary);
    return buffer;
}

int guard_check(const void *p)
{
    const uint8_t *buffer = p;
    if (!buffer)
        return 1;
    const guard_record record = read_record(buffer);
    int intact = 1;
    ASAN_UNPOISON_MEMORY_REGION(buffer - kCanary, kCanary);
    ASAN_UNPOISON_MEMORY_REGION(buffer + record.size, kCanary);
    for (int i = 0; i < kCanary; i++) {
        intact &= buffer[i - kCanary] == canary_byte(buffer + i - kCanary);
        intact &= buffer[record.size + i] == canary_byte(buffer + record.size + i);
    }
    ASAN_POISON_MEMORY_REGION(buffer - kCanary, kCanary);
    ASAN_POISON_MEMORY_REGION(buffer + record.size, kCanary);
    return intact;
}

void guard_free(void *p)
{
    if (!p)
        return;
    const guard_record record = read_record(p);
    ASAN_UNPOISON_MEMORY_REGION((uint8_t *)p - kCanary, kCanary);
    ASAN_UNPOISON_MEMORY_REGION((uint8_t *)p + record.size, kCanary);
    free(record.base);
}
