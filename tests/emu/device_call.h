/* device_call.h - the call that a case's line describes, on the emulated device, with every buffer an allocation of its own
 * between two margins: for tests that look at the buffers and the runtime rather than at the values. */
#ifndef TESTS_EMU_DEVICE_CALL_H
#define TESTS_EMU_DEVICE_CALL_H

#include <stdbool.h>

#include "api_table.h"
#include "case.h"

enum { WORKSPACE = MAX_BUFFERS }; /* its index among the buffers */

typedef struct DeviceCall {
    Case    c;
    ApiCall api; /* fields, sizes, and what was in the buffers before */
    void   *at[MAX_BUFFERS + 1]; /* on the device; NULL: not given */
    char    variant[32]; /* by name; of the library's choice, the one that the case says or the device prefers */
    char    line[CASE_SIZE];
} DeviceCall;

/* Varied x and dy, everything else 0.75; statistics are not those of x. Odd seeds of dropout are given by pointers. */
void      device_call_begin(DeviceCall *d, const Case *c);
wf_status device_call(DeviceCall *d); /* enqueues it once more: outputs stay as the last call left them */
void      device_call_end(DeviceCall *d);

const char *device_call_name(const DeviceCall *d, int i); /* of buffer i, "workspace" for the last */
bool        device_call_output(const DeviceCall *d, int i); /* or the workspace */
size_t      device_call_size(const DeviceCall *d, int i); /* bytes, 0 where it is not given */
void        device_call_spoil(const DeviceCall *d); /* fills outputs and workspace with NaNs, y_amax as it was */
/* Copies buffer i to where `to` says, device_call_size() bytes. */
void        device_call_fetch(const DeviceCall *d, int i, void *to);
/* NULL, or the name of a buffer that was written around, or that is an input and was written. */
const char *device_call_damage(const DeviceCall *d);

/* The cases of cases.def. */
extern const char *const cuda_cases[];
extern const int         cuda_case_count;
bool device_call_takes(const Case *c); /* the variant that it names takes it */
bool variant_has_case(Op, const char *variant);
/* f with each variant of an operation and the first case that it takes. Fails where neither it nor another operation of the
 * same problem has one. */
void each_variant(int op, void (*f)(DeviceCall *d));

#endif
