/* The benchmark tool:  bench [options] --suite FILE ... --case "line" ...
 *
 * Every row is checked before it is timed; a wrong one is not timed. --help lists the options. Exit code 1: a row was wrong
 * or failed; 2: one is slower than in the run compared with; 3: bad usage, no device. */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

enum { ORACLE_ELEMENTS = 1 << 14 /* up to here also the tests' oracle, which needs a microsecond each */ };
enum { WRONG_EXIT = 1, SLOWER_EXIT, USAGE_EXIT };

static const char help[] =
    "bench [options] --suite FILE ... --case \"LINE\" ...\n"
    "  --backend cpu|cuda   which back-end (cpu)\n"
    "  --threads N          of the CPU back-end and of its roofline (all)\n"
    "  --variant NAME       a kernel by name instead of the library's choice\n"
    "  --with \"FIELD=... \"   fields put over every case that has them: \"x=bf16 w=bf16 n=64 layout=nhwc\"\n"
    "  --op WORD            only operations whose name contains it: layernorm, backward\n"
    "  --cold | --warm      caches flushed, buffers rotated (the default), or not\n"
    "  --peers              other implementations found on this machine too, in turn with ours\n"
    "  --min-time SECONDS   of measuring per row and contestant (0.2)\n"
    "  --quick              a short roofline, 0.02 s a row\n"
    "  --json FILE --csv FILE --md   results also as JSON, CSV; the table as Markdown\n"
    "  --svg FOLDER         bars.svg and sizes.svg there\n"
    "  --compare BASE.json  an earlier run: SAME, FASTER or SLOWER; exit code 2 if any row is slower\n"
    "  --explain            the byte formula of every row, its minimum and 95th percentile\n"
    "  --list               print the rows and stop\n"
    "  --once               every row once, unchecked and untimed: what bench/instructions.py counts\n"
    "  --self-test          hold the checker to the tests' oracle and stop\n";

/* ---- one row ---- */

static char *host_alloc(size_t size) { return aligned_alloc(4096, (size + 4095) / 4096 * 4096); }

static bool call_library(void *state, char *slab, struct CUstream_st *stream)
{
    return plan_call(state, slab, stream) == WF_OK;
}

static const char *judge(const Plan *p, const char *before, const char *after, char check[24])
{
    const bool small = p->count <= ORACLE_ELEMENTS && p->slots;
    snprintf(check, 24, "%s", small ? "oracle" : p->slots ? "reference" : "exact");
    const char *error = reference_check(p, before, after);
    return error || !small ? error : run_case(p->c, NULL);
}

/* The sets on the back-end, all with the same contents; false: no memory. */
static bool make_sets(Timer *timer, const Plan *p, const char *before)
{
    timer->slab_size = p->slab_size;
    timer->sets = sets_wanted(timer->backend, timer->cold, p->slab_size);
    timer->slab = calloc((size_t)timer->sets, sizeof *timer->slab);
    for (int i = 0; i < timer->sets; i++) {
        timer->slab[i] = timer->backend == WF_CUDA ? gpu_alloc(p->slab_size) : host_alloc(p->slab_size);
        if (!timer->slab[i])
            return false;
        if (timer->backend == WF_CPU)
            memcpy(timer->slab[i], before, p->slab_size);
        else if (i == 0)
            gpu_put(timer->slab[i], before, p->slab_size);
        else
            gpu_copy(timer->slab[i], timer->slab[0], p->slab_size, gpu_stream());
    }
    return true;
}

static void free_sets(Timer *timer)
{
    for (int i = 0; i < timer->sets && timer->slab; i++)
        if (timer->slab[i])
            timer->backend == WF_CUDA ? gpu_free(timer->slab[i]) : free(timer->slab[i]);
    free(timer->slab);
}

static void take(const Timer *timer, char *host, int set)
{
    if (timer->backend == WF_CUDA)
        gpu_take(host, timer->slab[set], timer->slab_size);
    else
        memcpy(host, timer->slab[set], timer->slab_size);
}

static void fail(Result *r, Verdict verdict, const char *why)
{
    r->verdict = verdict;
    snprintf(r->message, sizeof r->message, "%.*s", (int)strcspn(why, "\n"), why);
}

/* A peer that is far off is left out: its time would mean nothing. Dropout's masks differ by nature. */
static const char *try_peer(const Timer *timer, const Plan *p, const Peer *peer, void *state, const char *before, char *after)
{
    const char *error = NULL;
    if (timer->backend == WF_CUDA)
        gpu_put(timer->slab[0], before, p->slab_size);
    else
        memcpy(timer->slab[0], before, p->slab_size);
    if (!peer->call(state, timer->slab[0], timer->backend == WF_CUDA ? gpu_stream() : NULL))
        return "the call failed";
    if (timer->backend == WF_CUDA && !gpu_sync(&error))
        return error;
    take(timer, after, 0);
    return p->slots ? reference_check_peer(p, before, after) : NULL;
}

/* The library's result on set 0 is judged, then all contestants are timed. */
static void time_row(Result *r, Plan *p, const Options *o, const Peer *const peers[], char *before, char *after)
{
    Timer timer = { .backend = p->c->backend, .cold = o->cold, .threads = o->threads,
                    .min_time = o->min_time };
    plan_fill(p, before);
    if (!make_sets(&timer, p, before)) {
        fail(r, FAILED, "not enough memory");
        free_sets(&timer);
        return;
    }
    const wf_status status = plan_call(p, timer.slab[0], timer.backend == WF_CUDA ? gpu_stream() : NULL);
    const char *error = NULL;
    if (status == WF_OK && timer.backend == WF_CUDA && !gpu_sync(&error)) {
        fail(r, FAILED, error);
    } else if (status != WF_OK) {
        fail(r, status == WF_UNSUPPORTED ? UNSUPPORTED : FAILED, wf_error_detail());
    } else {
        take(&timer, after, 0);
        error = judge(p, before, after, r->check);
        if (error)
            fail(r, WRONG, error);
    }
    const Peer *of[1 + MAX_PEERS] = { NULL };
    r->who[0] = (Contestant){ .name = "welford", .call = call_library, .state = p };
    r->contestants = 1;
    for (int i = 0; peers[i] && r->verdict == TIMED && r->contestants <= MAX_PEERS; i++) {
        double bytes = 0;
        void *state = peers[i]->prepare(p, &bytes);
        if (!state)
            continue;
        error = try_peer(&timer, p, peers[i], state, before, after);
        if (error) {
            fprintf(stderr, "%s leaves out %s %s: %s\n", peers[i]->name, r->row->name, op_name(p->c->op), error);
            peers[i]->done(state);
            continue;
        }
        of[r->contestants] = peers[i];
        r->who[r->contestants++] = (Contestant){ .name = peers[i]->name, .call = peers[i]->call, .state = state,
                                                 .bytes = bytes };
    }
    if (r->verdict == TIMED && (error = time_all(&timer, r->who, r->contestants)) != NULL)
        fail(r, FAILED, error);
    for (int i = 1; i < r->contestants; i++)
        of[i]->done(r->who[i].state);
    free_sets(&timer);
}

static void run_row(Result *r, const Run *run, const Peer *const peers[])
{
    Plan p;
    const char *error = plan_make(&p, &r->row->c);
    if (error) {
        fail(r, FAILED, error);
        return;
    }
    /* Kept from row to row: where memory is new, its pages cost more than the call. */
    static char *before, *after;
    static size_t size;
    if (p.slab_size > size) {
        free(before);
        free(after);
        before = host_alloc(p.slab_size);
        after = host_alloc(p.slab_size);
        size = before && after ? p.slab_size : 0;
    }
    if (size)
        time_row(r, &p, run->options, peers, before, after);
    else
        fail(r, FAILED, "not enough memory");
    r->traffic = traffic_of(&r->row->c);
    r->roof = roofline_at(&run->roof, r->traffic.bytes);
    r->peak = roofline_peak(&run->roof);
    plan_free(&p);
}

/* ---- the run ---- */

static int run_rows(Run *run, const Rows *rows)
{
    const Options *o = run->options;
    const Peer *peers[MAX_PEERS + 1] = { NULL };
    for (int i = 0, n = 0; o->peers && all_peers[i] && n < MAX_PEERS; i++)
        if (all_peers[i]->backend == o->backend && all_peers[i]->open())
            peers[n++] = all_peers[i];
    run->roof = roofline_measure(o->backend, o->threads, o->cold, o->quick);
    environment(run, peers);
    report_header(run);
    run->result = calloc((size_t)rows->count, sizeof *run->result);
    const double start = now();
    int wrong = 0;
    for (int i = 0; i < rows->count; i++) {
        Result *r = &run->result[run->results++];
        r->row = &rows->row[i];
        run_row(r, run, peers);
        wrong += r->verdict == WRONG || r->verdict == FAILED;
        report_row(run, r);
        if (isatty(2))
            fprintf(stderr, "\r%d of %d, %.0f s left \r", i + 1, rows->count,
                    (now() - start) / (i + 1) * (rows->count - i - 1));
    }
    report_footer(run);
    if (o->json && !report_json(run, o->json))
        fprintf(stderr, "bench: cannot write %s\n", o->json);
    if (o->csv && !report_csv(run, o->csv))
        fprintf(stderr, "bench: cannot write %s\n", o->csv);
    if (o->svg && !svg_write(run, o->svg))
        fprintf(stderr, "bench: cannot write pictures to %s\n", o->svg);
    int slower = 0;
    if (o->compare && !baseline_compare(run, o->compare, &slower))
        fprintf(stderr, "bench: %s has none of these rows\n", o->compare);
    free(run->result);
    if (wrong)
        printf("%d rows are wrong or failed\n", wrong);
    return wrong ? WRONG_EXIT : slower ? SLOWER_EXIT : 0;
}

/* What the options say of every case; rows of operations that were not asked for go. */
static void settle(Rows *rows, const Options *o)
{
    int kept = 0;
    for (int i = 0; i < rows->count; i++) {
        Case *c = &rows->row[i].c;
        if (o->op && !strstr(op_name(c->op), o->op))
            continue;
        c->backend = o->backend;
        c->threads = o->backend == WF_CPU ? o->threads : 0;
        c->data = NORMAL;
        c->fpmode = MODE_NEAREST;
        c->pool = 0;
        if (o->variant)
            snprintf(c->variant, sizeof c->variant, "%s", o->variant);
        rows->row[kept++] = rows->row[i];
    }
    rows->count = kept;
}

/* Under callgrind, with its counting switched on in here: instructions.py. */
__attribute__((noinline)) void bench_counted_call(const Plan *p, char *slab)
{
    if (plan_call(p, slab, NULL) != WF_OK)
        fprintf(stderr, "bench: %s\n", wf_error_detail());
}

/* Every row once for the code to be there, once counted. */
static int count_rows(const Rows *rows)
{
    for (int i = 0; i < rows->count; i++) {
        Plan p;
        if (plan_make(&p, &rows->row[i].c))
            return WRONG_EXIT;
        char *slab = host_alloc(p.slab_size);
        plan_fill(&p, slab);
        plan_call(&p, slab, NULL);
        bench_counted_call(&p, slab);
        free(slab);
        plan_free(&p);
    }
    return 0;
}

static int usage(const char *error)
{
    fprintf(stderr, "bench: %s\n%s", error, help);
    return USAGE_EXIT;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "backend", 1, 0, 'b' }, { "threads", 1, 0, 't' },  { "variant", 1, 0, 'v' }, { "with", 1, 0, 'w' },
        { "op", 1, 0, 'o' },      { "cold", 0, 0, 'C' },     { "warm", 0, 0, 'W' },    { "peers", 0, 0, 'p' },
        { "quick", 0, 0, 'q' },   { "min-time", 1, 0, 'm' }, { "json", 1, 0, 'j' },    { "csv", 1, 0, 'c' },
        { "md", 0, 0, 'M' },      { "svg", 1, 0, 'g' },      { "compare", 1, 0, 'B' }, { "explain", 0, 0, 'e' },
        { "list", 0, 0, 'l' },    { "suite", 1, 0, 's' },    { "case", 1, 0, 'k' },    { "self-test", 0, 0, 'T' },
        { "once", 0, 0, 'O' },    { "help", 0, 0, 'h' },     { 0 }
    };
    Options o = { .threads = (int)sysconf(_SC_NPROCESSORS_ONLN), .cold = true, .min_time = 0.2 };
    Rows rows = { 0 };
    const char *source[256], *error = NULL;
    char kind[256];
    int sources = 0;
    bool list = false, once = false;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'b':
            if (strcmp(optarg, "cpu") && strcmp(optarg, "cuda"))
                return usage("--backend is cpu or cuda");
            o.backend = strcmp(optarg, "cuda") ? WF_CPU : WF_CUDA;
            break;
        case 't': o.threads = atoi(optarg); break;
        case 'v': o.variant = optarg; break;
        case 'w': o.with = optarg; break;
        case 'o': o.op = optarg; break;
        case 'C': o.cold = true; break;
        case 'W': o.cold = false; break;
        case 'p': o.peers = true; break;
        case 'm': o.min_time = atof(optarg); break;
        case 'q': o.quick = true, o.min_time = 0.02; break;
        case 'j': o.json = optarg; break;
        case 'c': o.csv = optarg; break;
        case 'g': o.svg = optarg; break;
        case 'B': o.compare = optarg; break;
        case 'M': o.markdown = true; break;
        case 'e': o.explain = true; break;
        case 'l': list = true; break;
        case 'O': once = true; break;
        case 's':
        case 'k':
            if (sources == 256)
                return usage("more than 256 suites and cases");
            kind[sources] = (char)option;
            source[sources++] = optarg;
            break;
        case 'T':
            error = reference_self_test();
            printf("%s\n", error ? error : "the checker agrees with the oracle");
            return error ? WRONG_EXIT : 0;
        case 'h': fputs(help, stdout); return 0;
        default: return usage("unknown option");
        }
    }
    for (int i = 0; i < sources && !error; i++)
        error = kind[i] == 's' ? suite_read(&rows, source[i], o.with)
                               : suite_add(&rows, "case", "-", 1, source[i], o.with);
    if (error || optind < argc || o.threads < 1)
        return usage(error ? error : optind < argc ? argv[optind] : "--threads");
    settle(&rows, &o);
    if (rows.count == 0)
        return usage("no rows: give --suite or --case");
    if (list) {
        for (int i = 0; i < rows.count; i++) {
            char line[CASE_SIZE];
            printf("%s %s %d %s\n", rows.row[i].suite, rows.row[i].name, rows.row[i].count,
                   case_print(&rows.row[i].c, line));
        }
        return 0;
    }
    if (once)
        return count_rows(&rows);
    if (o.backend == WF_CUDA && !gpu_open()) {
        fprintf(stderr, "bench: no CUDA device, or a build without CUDA\n");
        return USAGE_EXIT;
    }
    Run run = { .options = &o };
    const int status = run_rows(&run, &rows);
    free(rows.row);
    return status;
}
