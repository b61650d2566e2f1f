/* What only a GPU shows: capture in a CUDA graph, two streams at once, a second device, a pending error of the caller. Run by
 * WELFORD_TEST_BACKEND=cuda; the emulator, whose runtime has no graphs, is passed over. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "sweep.h"

Suite *gpu_suite(void);

#ifdef WF_TEST_CUDA

#include <cuda_runtime_api.h>

#include "emu/device_call.h"

static void must(cudaError_t error)
{
    if (error != cudaSuccess)
        ck_abort_msg("CUDA: %s", cudaGetErrorString(error));
}

static bool on_gpu(void) { return device_present() && !device_emulated(); }

static cudaStream_t stream_new(void)
{
    cudaStream_t stream;
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)); /* the legacy stream does not wait for it */
    return stream;
}

/* ---- outputs ---- */

typedef struct Outputs { void *bytes[MAX_BUFFERS]; } Outputs; /* NULL: not given, or an input */

static Outputs fetch(const DeviceCall *d)
{
    Outputs o = { { NULL } };
    must(cudaDeviceSynchronize());
    for (int i = 0; i < MAX_BUFFERS; i++)
        if (d->at[i] && device_call_output(d, i)) {
            o.bytes[i] = malloc(device_call_size(d, i) + 1);
            device_call_fetch(d, i, o.bytes[i]);
        }
    return o;
}

static void outputs_free(Outputs *o)
{
    for (int i = 0; i < MAX_BUFFERS; i++)
        free(o->bytes[i]);
}

static bool same(const DeviceCall *d, const Outputs *a, const Outputs *b)
{
    for (int i = 0; i < MAX_BUFFERS; i++)
        if (a->bytes[i] && memcmp(a->bytes[i], b->bytes[i], device_call_size(d, i)))
            return false;
    return true;
}

/* Fails unless d's outputs are those, to the bit, and nothing else was written. */
static void expect(const DeviceCall *d, const Outputs *wanted, const char *what)
{
    Outputs got = fetch(d);
    if (!same(d, wanted, &got))
        ck_abort_msg("%s: %s\n  --case \"%s\"", d->variant, what, d->line);
    if (device_call_damage(d))
        ck_abort_msg("%s: %s was damaged\n  --case \"%s\"", d->variant, device_call_damage(d), d->line);
    outputs_free(&got);
}

/* Enqueues the call on the stream, from outputs full of NaNs. */
static void call_on(DeviceCall *d, cudaStream_t stream)
{
    d->api.where.stream = stream;
    if (device_call(d) != WF_OK)
        ck_abort_msg("%s: %s\n  --case \"%s\"", d->variant, wf_error_detail(), d->line);
}

static Outputs call_alone(DeviceCall *d)
{
    device_call_spoil(d);
    call_on(d, NULL);
    return fetch(d);
}

/* ---- graphs ---- */

/* Nothing but kernels: no copy, no memset, no allocation. */
static void only_kernels(const DeviceCall *d, cudaGraph_t graph)
{
    cudaGraphNode_t node[64];
    size_t count = 64;
    must(cudaGraphGetNodes(graph, node, &count));
    ck_assert_msg(count > 0 && count < 64, "%s: %zu nodes\n  --case \"%s\"", d->variant, count, d->line);
    for (size_t i = 0; i < count; i++) {
        enum cudaGraphNodeType type;
        must(cudaGraphNodeGetType(node[i], &type));
        ck_assert_msg(type == cudaGraphNodeTypeKernel, "%s: a node of type %d\n  --case \"%s\"", d->variant, type, d->line);
    }
}

/* Dropout's words in device memory, where the case gives them: each its value plus one. */
static bool advance(DeviceCall *d)
{
    bool any = false;
    for (int i = 0; i < MAX_BUFFERS && d->api.op->buffer[i].name; i++) {
        if (d->api.op->buffer[i].extent != EXTENT_WORD || !d->at[i])
            continue;
        uint64_t *const word = (uint64_t *)d->api.copy[i]; /* what device_call_damage() compares with */
        *word += 1;
        must(cudaMemcpy(d->at[i], word, sizeof *word, cudaMemcpyHostToDevice));
        any = true;
    }
    return any;
}

/* The strictest mode of capture: whatever allocates or waits fails, and the capture with it. */
static void capture(DeviceCall *d)
{
    cudaStream_t stream = stream_new();
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    Outputs eager = call_alone(d), empty;
    device_call_spoil(d);
    empty = fetch(d);
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    call_on(d, stream);
    must(cudaStreamEndCapture(stream, &graph));
    expect(d, &empty, "the captured call has run");
    only_kernels(d, graph);
    must(cudaGraphInstantiate(&exec, graph, 0));
    for (int replay = 0; replay < 2; replay++) {
        device_call_spoil(d);
        must(cudaDeviceSynchronize());
        must(cudaGraphLaunch(exec, stream));
        expect(d, &eager, "replayed, other bits");
    }
    if (advance(d)) {
        Outputs other = call_alone(d);
        ck_assert_msg(!same(d, &eager, &other), "%s: the same mask from other words\n  --case \"%s\"", d->variant, d->line);
        device_call_spoil(d);
        must(cudaDeviceSynchronize());
        must(cudaGraphLaunch(exec, stream));
        expect(d, &other, "replayed with other words, other bits");
        outputs_free(&other);
    }
    must(cudaGraphExecDestroy(exec));
    must(cudaGraphDestroy(graph));
    must(cudaStreamDestroy(stream));
    outputs_free(&eager);
    outputs_free(&empty);
}

START_TEST(captured)
{
    if (on_gpu())
        each_variant(_i, capture);
}
END_TEST

/* ---- streams ---- */

enum { STREAMS = 2, ROUNDS = 8 };

/* Calls of the same case on both at once, each with buffers and a workspace of its own. */
static void side_by_side(DeviceCall *first)
{
    DeviceCall second;
    DeviceCall *const d[STREAMS] = { first, &second };
    cudaStream_t stream[STREAMS];
    Case c = first->c;
    Outputs alone = call_alone(first);
    device_call_begin(&second, &c);
    for (int s = 0; s < STREAMS; s++) {
        stream[s] = stream_new();
        device_call_spoil(d[s]);
    }
    must(cudaDeviceSynchronize());
    for (int i = 0; i < ROUNDS * STREAMS; i++)
        call_on(d[i % STREAMS], stream[i % STREAMS]);
    for (int s = 0; s < STREAMS; s++) {
        if (!(c.flags & WF_ACCUMULATE)) /* each round adds */
            expect(d[s], &alone, "beside another stream, other bits");
        must(cudaStreamDestroy(stream[s]));
    }
    device_call_end(&second);
    outputs_free(&alone);
}

START_TEST(two_streams)
{
    if (on_gpu())
        each_variant(_i, side_by_side);
}
END_TEST

/* ---- devices ---- */

static Outputs on_first; /* what the first device gave */
static int device_now;

static void on_device(DeviceCall *d)
{
    if (device_now == 0)
        return;
    must(cudaSetDevice(0));
    DeviceCall there;
    Case c = d->c;
    device_call_begin(&there, &c);
    on_first = call_alone(&there);
    device_call_end(&there);
    must(cudaSetDevice(device_now));
    Outputs here = call_alone(d);
    int current;
    must(cudaGetDevice(&current));
    ck_assert_int_eq(current, device_now);
    expect(d, &on_first, "on the second device, other bits");
    outputs_free(&on_first);
    outputs_free(&here);
}

START_TEST(second_device)
{
    int count = 0;
    struct cudaDeviceProp a, b;
    if (!on_gpu())
        return;
    must(cudaGetDeviceCount(&count));
    if (count > 1) {
        must(cudaGetDeviceProperties(&a, 0));
        must(cudaGetDeviceProperties(&b, 1));
    }
    if (count < 2 || a.major * 10 + a.minor != b.major * 10 + b.minor) {
        if (_i == 0)
            printf("SKIP second_device: %d device(s), no two alike\n", count);
        return;
    }
    must(cudaSetDevice(device_now = 1));
    each_variant(_i, on_device);
    must(cudaSetDevice(device_now = 0));
}
END_TEST

/* ---- errors ---- */

static void with_pending(DeviceCall *d)
{
    Outputs alone = call_alone(d);
    void *p;
    device_call_spoil(d);
    ck_assert_int_eq(cudaMalloc(&p, (size_t)1 << 60), cudaErrorMemoryAllocation);
    call_on(d, NULL);
    ck_assert_int_eq(cudaGetLastError(), cudaErrorMemoryAllocation);
    expect(d, &alone, "with an error pending, other bits");
    outputs_free(&alone);
}

/* The caller's pending error is neither blamed on us nor taken away. */
START_TEST(pending_error)
{
    if (on_gpu())
        each_variant(_i, with_pending);
}
END_TEST

/* A launch that fails leaves no error pending: the legacy stream must not be used while a blocking one captures. */
static void failing(DeviceCall *d)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    must(cudaStreamCreate(&stream));
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    d->api.where.stream = NULL;
    const wf_status status = device_call(d);
    const cudaError_t pending = cudaPeekAtLastError(), ended = cudaStreamEndCapture(stream, &graph);
    ck_assert_msg(status == WF_DEVICE && strstr(wf_error_detail(), "apture"), "%s: %s, %s", d->variant,
                  wf_status_string(status), wf_error_detail());
    ck_assert_int_eq(pending, cudaSuccess);
    ck_assert_int_ne(ended, cudaSuccess);
    (void)cudaGetLastError();
    must(cudaStreamDestroy(stream));
    Outputs after = call_alone(d); /* and the next call works */
    outputs_free(&after);
}

START_TEST(failing_launch)
{
    if (on_gpu())
        each_variant(_i, failing);
}
END_TEST

#endif

Suite *gpu_suite(void)
{
    Suite *s = suite_create("gpu");
    TCase *t = tcase_create("gpu");
    tcase_set_timeout(t, 300);
#ifdef WF_TEST_CUDA
    if (tested_backend() == WF_CUDA) {
        tcase_add_loop_test(t, captured, 0, OP_COUNT);
        tcase_add_loop_test(t, two_streams, 0, OP_COUNT);
        tcase_add_loop_test(t, second_device, 0, OP_COUNT);
        tcase_add_loop_test(t, pending_error, 0, OP_COUNT);
        tcase_add_loop_test(t, failing_launch, 0, OP_COUNT);
    }
#endif
    suite_add_tcase(s, t);
    return s;
}
