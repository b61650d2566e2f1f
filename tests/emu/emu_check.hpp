// The emulator's own test: kernels with a planted bug, which some mode must report, and correct ones, which none may.
#pragma once
#include "device.cuh"
#include "primitives.h"

struct Buffers { // in device memory
    static constexpr int kFloats = 4096;
    float *x, *y; // x[i] = i; y is 0
};

// What one kernel gets.
struct Args {
    dev::global<const float> x;
    dev::global<float>       y;
    int64_t                  n;
};

struct Case {
    const char *name;
    void (*run)(const Buffers &b);
    // Who notices a planted bug: a report's kind, "results" (NaN, or other results in another schedule), "race"
    // (TSan), "address" (ASan), "undefined" (UBSan), "-" (nobody). NULL: the kernel is correct.
    const char *plain, *asan, *tsan;
    float (*expected)(int i) = nullptr; // y[i] of a correct one; the rest stays 0
    int count = 0;
};
extern const Case planted_cases[], correct_cases[]; // end with a NULL name

// Writes a word about the results, "done" if they are right, and a hash of them.
void run_case(const Case &c, char *said, size_t room);

template <void (*kernel)(Args)> void launch(const Buffers &b, dev::LaunchCfg cfg, int64_t n = 0)
{
    const Args args = {dev::global<const float>(b.x), dev::global<float>(b.y), n};
    dev::launch(cfg, kernel, args);
}

// One launch of a grid of blocks of threads.
template <void (*kernel)(Args), unsigned grid, unsigned block, unsigned smem = 0, unsigned cluster = 1>
void once(const Buffers &b)
{
    launch<kernel>(b, {dim3(grid), dim3(block), smem, nullptr, cluster});
}

int check_runtime(), check_meter(); // the number of failures
