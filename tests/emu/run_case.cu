// A case of the emulator's test, once: on the emulator or on a GPU.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "emu_check.hpp"

void run_case(const Case &c, char *said, size_t room)
{
    static float x[Buffers::kFloats], y[Buffers::kFloats];
    for (int i = 0; i < Buffers::kFloats; i++)
        x[i] = static_cast<float>(i);
    const size_t size = sizeof x;
    Buffers b;
    cudaMalloc(reinterpret_cast<void **>(&b.x), size);
    cudaMalloc(reinterpret_cast<void **>(&b.y), size);
    cudaMemcpy(b.x, x, size, cudaMemcpyHostToDevice);
    cudaMemset(b.y, 0, size);
    c.run(b);
    cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess)
        error = cudaMemcpy(y, b.y, size, cudaMemcpyDeviceToHost); // waits, and says what failed meanwhile
    cudaFree(b.x);
    cudaFree(b.y);
    if (error != cudaSuccess) {
        snprintf(said, room, "error: %s", cudaGetErrorString(error));
        return;
    }
    uint64_t hash = 0;
    bool nan = false;
    int wrong = -1;
    for (int i = Buffers::kFloats - 1; i >= 0; i--) {
        const float v = y[i];
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        hash = (hash ^ bits) * 0x100000001b3u;
        nan |= std::isnan(v);
        wrong = !c.expected || v == (i < c.count ? c.expected(i) : 0.f) ? wrong : i;
    }
    const char *word = nan ? "nan" : wrong < 0 ? "done" : "wrong";
    const int n = snprintf(said, room, "%s %016llx", word, static_cast<unsigned long long>(hash));
    if (wrong >= 0)
        snprintf(said + n, room - static_cast<size_t>(n), ": %.9g at %d, not %.9g", y[wrong], wrong,
                 wrong < c.count ? c.expected(wrong) : 0.f);
}

const char *primitive_name(int i)
{
    return correct_cases[i].name;
}

const char *primitive_failure(int i)
{
    static char said[200];
    run_case(correct_cases[i], said, sizeof said);
    return strncmp(said, "done", 4) ? said : nullptr;
}
