/* How tests steer the emulator. Set between launches, from one thread. */
#ifndef WF_EMU_CONTROL_H
#define WF_EMU_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* In which order threads of a block, and blocks, run between two collectives. */
enum emu_order { EMU_LINEAR, EMU_REVERSE, EMU_RANDOM };

struct emu_schedule {
    enum emu_order order;
    uint64_t       seed;       /* of EMU_RANDOM */
    int            resident;   /* clusters that run interleaved on an OS thread; at least 1 */
    int            os_threads; /* at least 1 */
    unsigned       grid;       /* blocks, at most, of kernels that go in strides of their grid; 0: as on a GPU */
};
/* At the start: what the environment variable WELFORD_EMU says, as in "random seed=3 resident=2 threads=2 grid=3"; else
 * linear, one resident block, one OS thread, grids as on a GPU. */
void                emu_set_schedule(struct emu_schedule schedule);
struct emu_schedule emu_schedule(void);

struct emu_device {
    int count;                       /* of devices, all alike; 0: no driver */
    int major, minor;                /* compute capability; clusters from 9.0 */
    int multiprocessors;
    int shared_default, shared_most; /* bytes a block: without and with cudaFuncSetAttribute */
};
void              emu_set_device(struct emu_device device);
struct emu_device emu_device(void); /* at the start: one device like an H100 */

/* The k-th call of the runtime from now on (1: the next) fails with a cudaError_t. 0: none does. cudaGetLastError,
 * cudaPeekAtLastError and cudaGetErrorString do not count. */
void emu_fail_call(long k, int error);
long emu_calls(void); /* of the runtime, since the process started */

/* Whether p is in device memory that is allocated. */
bool emu_is_device(const void *p);

#ifdef __cplusplus
}
#endif
#endif
