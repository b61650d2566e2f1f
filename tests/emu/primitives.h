/* The contract of device.cuh: correct.cu's kernels, one by one. */
#ifndef WF_EMU_PRIMITIVES_H
#define WF_EMU_PRIMITIVES_H

#ifdef __cplusplus
extern "C" {
#endif

const char *primitive_name(int i);    /* NULL behind the last */
const char *primitive_failure(int i); /* runs it: what is wrong with its results, or NULL */

#ifdef __cplusplus
}
#endif
#endif
