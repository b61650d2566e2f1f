/* bench.h - what the files of the benchmark tool share.
 *
 * A row is a line of a suite: a layer's name, how often the network has it, and a case in the tests' grammar (case.h). A
 * plan says which tensors its call has and where they lie in a slab of memory; a set is such a slab, on the host or on the
 * device. Rows are made random, checked, timed and reported in this order, each in its own file. */
#ifndef WELFORD_BENCH_H
#define WELFORD_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "case.h"
#include "run.h"

enum { NAME_SIZE = 48, MAX_PEERS = 12 /* and variants */ };

/* ---- suite.c ---- */
typedef struct Row {
    char suite[NAME_SIZE], name[NAME_SIZE];
    int  count; /* how often the network has this layer */
    Case c;
} Row;
typedef struct Rows { Row *row; int count; } Rows;

/* Each returns NULL or what is wrong, in a static buffer. `with`: fields put over every case that has them. */
const char *suite_read(Rows *, const char *path, const char *with);
const char *suite_add(Rows *, const char *suite, const char *name, int count, const char *line, const char *with);
const char *suite_add_shape(Rows *, const char *shape, const char *with); /* every operation on 4096x768, 32x64x784, ... */
const char *suite_with_error(const char *with); /* a word that no operation has */

/* ---- plan.c ---- */
typedef enum Tensor { /* the order of the library's struct Buffers (run.h) does not matter here; T_Z is
                            for peers that save what an activation was taken of */
    T_X, T_DY, T_GAMMA, T_BETA, T_RUNNING_MEAN_IN, T_RUNNING_VAR_IN, T_Y, T_MEAN, T_RSTD, T_MEAN_LO, T_RUNNING_MEAN_OUT,
    T_RUNNING_VAR_OUT, T_DX, T_DGAMMA, T_DBETA, T_MASK,
    T_RESIDUAL, T_SUM, T_ROW_SCALE, T_COL_SCALE, T_DSUM, T_DRESIDUAL, T_SCALE, T_SHIFT, T_Z, T_COUNT
} Tensor;
typedef struct Extent {
    bool     given, input;
    wf_dtype dtype;
    int64_t  rows, cols, stride; /* of x, y, dy, dx; else one row */
    size_t   at, size; /* in the slab, bytes */
} Extent;

/* A tensor is [samples, runs, length]; channels are the runs (channels first) or stand along the length (rows, channels
 * last). Elements share statistics by channel, or by (sample, group of channels). */
typedef long double Real;
typedef struct Plan {
    const Case *c;
    Extent  t[T_COUNT];
    size_t  slab_size, workspace_at, workspace_size;
    int64_t samples, runs, length, channels, groups, slots, per_slot, count;
    bool    channel_is_run, by_channel, frozen;
    char   *sum; /* [count], of a norm of a sum that the call makes: as it must be */
    Real   *mean, *var, *rstd; /* [slots], exact */
} Plan;

const char *plan_make(Plan *, const Case *); /* NULL, or why not; the case must outlive the plan */
void        plan_fill(Plan *, char *slab); /* random inputs, a backward pass's statistics, NaN in outputs */
void        plan_free(Plan *);
wf_status   plan_call(const Plan *, char *slab, struct CUstream_st *); /* the library's call on a set in its memory */
/* The same with the tensors anywhere: at[T_COUNT], NULL where not given. */
wf_status   plan_call_at(const Case *, void *const at[], void *workspace, size_t workspace_size, struct CUstream_st *);
wf_dropout  plan_dropout(const Case *);
bool        plan_is_plain(const Plan *); /* no strides, no flags, not in place, nothing fused or modulated: what peers can do */
bool        plan_is_dense(const Plan *); /* the same, but for what is fused */
int64_t     plan_height(const Plan *); /* of pictures of hw pixels, as nearly square as can be */
void       *plan_tensor(const Plan *, const char *slab, Tensor); /* NULL: not given */

/* ---- reference.c ---- */
void        reference_statistics(Plan *, const char *slab);
void        reference_saved(const Plan *, char *slab); /* T_Z */
/* Every element of every output against the formulas in long double, within the oracle's bars. NULL or what is off. */
const char *reference_check(const Plan *, const char *before, const char *after);
/* The same for somebody else's result: y, dx and the parameters' gradients alone, within a thousand bars. */
const char *reference_check_peer(const Plan *, const char *before, const char *after);

/* ---- reference_sum.c ---- */
/* A row of the sum of which a norm is, from what it is made of, rounded step by step as welford.h says; without gaps. */
void        addition_row(const Plan *, const char *slab, int64_t row, char *sum);
/* What the gradient of the sum is multiplied by to be that of x; 0 where it was dropped. */
double      addition_factor(const Plan *, const char *slab, int64_t row, int64_t col);

/* ---- reference_ending.c ---- */
/* A value, and how far off it may be. */
typedef struct About { Real value; double bar; } About;
About       ending_value_about(const Case *, About z); /* activation(z) */
About       ending_gradient_about(const Case *, About z, double dy); /* dy activation'(z) */

/* ---- self_test.c ---- */
const char *reference_self_test(void); /* the reference against the tests' oracle; NULL or what is off */

/* ---- traffic.c ---- */
typedef struct Traffic {
    double read, written, bytes; /* the floor: each activation once; bytes: both */
    double again; /* read once more where what shares statistics does not fit on chip */
    char   formula[128];
} Traffic;
Traffic traffic_of(const Plan *);

/* ---- timing.c ---- */
typedef struct Timing { /* seconds per call */
    double min, q1, median, q3, p95;
    int    samples, calls; /* calls per sample */
} Timing;
typedef struct Contestant {
    const char *name;
    bool      (*call)(void *state, char *slab, struct CUstream_st *); /* false: it failed */
    void       *state;
    Timing      timing;
    double      ratio; /* its time over the first contestant's, the median of the pairs */
    double      bytes; /* what its algorithm moves, for GB/s; 0: as the first's */
} Contestant;
typedef struct Timer {
    wf_backend backend;
    bool       cold;
    int        threads;
    double     min_time;
    size_t     slab_size;
    char     **slab; /* [sets], on the back-end */
    int        sets;
} Timer;
double      now(void);
const char *time_all(const Timer *, Contestant *, int count); /* A B A B ...; NULL or what failed */
Timing      timing_of(double *seconds, int samples, int calls); /* sorts */
double      median_of(double *values, int count); /* sorts */
int         sets_wanted(wf_backend, bool cold, size_t slab_size);

/* ---- gpu.c ---- */
bool        gpu_open(void); /* false: no CUDA in this program, or no device */
size_t      gpu_l2_size(void);
const char *gpu_describe(char *text, size_t size); /* JSON fields */
void       *gpu_alloc(size_t size); /* NULL: no memory */
void        gpu_free(void *);
void        gpu_put(void *to, const void *host, size_t size);
void        gpu_take(void *host, const void *from, size_t size);
void        gpu_copy(void *to, const void *from, size_t size, struct CUstream_st *);
struct CUstream_st *gpu_stream(void);
bool        gpu_sync(const char **error);
/* Work enqueued by body(arg) as a graph, to be replayed; NULL: it failed. */
typedef struct GpuGraph GpuGraph;
GpuGraph   *gpu_capture(bool (*body)(void *), void *arg);
double      gpu_replay(GpuGraph *); /* seconds by events */
void        gpu_graph_free(GpuGraph *);

/* ---- peers.c ---- */
typedef struct Peer {
    const char *name;
    wf_backend  backend;
    const char *(*open)(void); /* its version, NULL: not on this machine */
    void       *(*prepare)(const Plan *, double *bytes); /* NULL: not this case; bytes: what its algorithm moves */
    bool      (*call)(void *state, char *slab, struct CUstream_st *);
    void      (*done)(void *state);
} Peer;
extern const Peer *const all_peers[]; /* NULL at the end */

/* ---- roofline.c ---- */
enum { ROOF_POINTS = 12, ROOF_THREADS = 12 };
typedef struct Roofline { /* bytes moved (read + written) per second of a copy that moves so many bytes */
    int    points, threads;
    double bytes[ROOF_POINTS], rate[ROOF_POINTS];
    double plain_rate[ROOF_POINTS], read_rate[ROOF_POINTS]; /* the CPU's ordinary copy; reading alone. 0: not measured */
} Roofline;
/* What a call can attain: what it writes is copied, what else it reads is read, both at the rate of so many bytes as the call
 * moves in all. */
typedef struct Bound {
    double copied, read; /* bytes */
    double copy_rate, read_rate;
    double once, twice; /* seconds; twice: with what is read again. 0: not known */
} Bound;
Roofline roofline_measure(wf_backend, int threads, bool cold, bool quick);
double   roofline_at(const Roofline *, double bytes); /* rate for a call that moves so many bytes */
double   roofline_peak(const Roofline *);
Bound    roofline_bound(const Roofline *, const Traffic *);

/* ---- report.c, report_json.c, baseline.c, svg.c, environment.c ---- */
typedef enum Verdict { TIMED, WRONG, UNSUPPORTED, FAILED } Verdict;
typedef struct Result {
    const Row *row;
    Verdict    verdict;
    char       check[24]; /* who judged */
    char       message[512];
    Traffic    traffic;
    double     roof, peak; /* bytes per second */
    Bound      bound;
    int        contestants;
    Contestant who[1 + MAX_PEERS];
    char       compared[16]; /* SAME, FASTER, SLOWER; "" */
} Result;
typedef struct Options {
    wf_backend  backend;
    int         threads;
    bool        cold, explain, markdown, quick, peers, variants;
    double      min_time;
    const char *variant, *json, *csv, *svg, *compare, *op, *dir, *peer_names;
    char        with[CASE_SIZE];
} Options;
typedef struct Run {
    const Options *options;
    Roofline       roof, other_roof[ROOF_THREADS]; /* of the run's threads; of 1, 2, 4 ... all others */
    int            other_roofs;
    Result        *result;
    int            results;
    char           environment[1 << 14]; /* JSON fields, without the braces */
    char           caption[256]; /* the same in short */
} Run;
/* ---- row.c ---- */
char *host_alloc(size_t); /* NULL: no memory */
void  row_run(Result *, const Run *, const Peer *const peers[]); /* makes, checks and times it */

double result_rate(const Result *, int who); /* bytes per second */
void   report_header(const Run *);
void   report_row(const Run *, const Result *);
void   report_footer(const Run *);
bool   report_json(const Run *, const char *path);
bool   report_csv(const Run *, const char *path);
bool   baseline_compare(Run *, const char *path, int *slower); /* sets result.compared; false: cannot be read */
bool   svg_write(const Run *, const char *folder); /* NETWORK.svg for each, sizes.svg */
void   environment(Run *, const Peer *const peers[]);

#endif
