/* The benchmark tool:  bench [options] --suite FILE ... --case "line" ...
 *
 * Every row is checked before it is timed; a wrong one is not timed. --help lists the options. Exit code 1: a row was wrong
 * or failed; 2: one is slower than in the run compared with; 3: bad usage, no device. */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

enum { WRONG_EXIT = 1, SLOWER_EXIT, USAGE_EXIT };

static const char help[] =
    "bench [options] --suite FILE ... --case \"LINE\" ...\n"
    "  --backend cpu|cuda   which back-end (cpu)\n"
    "  --threads N          of the CPU back-end and of its roofline (all)\n"
    "  --variant NAME       a kernel by name instead of the library's choice\n"
    "  --variants           every kernel that takes the case, in turn with the library's choice\n"
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

/* ---- the run ---- */

static int run_rows(const Options *o, const Rows *rows)
{
    Run run = { .options = o };
    if (o->backend == WF_CUDA && !gpu_open()) {
        fprintf(stderr, "bench: no CUDA device, or a build without CUDA\n");
        return USAGE_EXIT;
    }
    const Peer *peers[MAX_PEERS + 1] = { NULL };
    for (int i = 0, n = 0; o->peers && all_peers[i] && n < MAX_PEERS; i++)
        if (all_peers[i]->backend == o->backend && all_peers[i]->open())
            peers[n++] = all_peers[i];
    run.roof = roofline_measure(o->backend, o->threads, o->cold, o->quick);
    environment(&run, peers);
    report_header(&run);
    run.result = calloc((size_t)rows->count, sizeof *run.result);
    const double start = now();
    int wrong = 0;
    for (int i = 0; i < rows->count; i++) {
        Result *r = &run.result[run.results++];
        r->row = &rows->row[i];
        row_run(r, &run, peers);
        wrong += r->verdict == WRONG || r->verdict == FAILED;
        report_row(&run, r);
        if (isatty(2))
            fprintf(stderr, "\r%d of %d, %.0f s left \r", i + 1, rows->count,
                    (now() - start) / (i + 1) * (rows->count - i - 1));
    }
    report_footer(&run);
    if (o->json && !report_json(&run, o->json))
        fprintf(stderr, "bench: cannot write %s\n", o->json);
    if (o->csv && !report_csv(&run, o->csv))
        fprintf(stderr, "bench: cannot write %s\n", o->csv);
    if (o->svg && !svg_write(&run, o->svg))
        fprintf(stderr, "bench: cannot write pictures to %s\n", o->svg);
    int slower = 0;
    if (o->compare && !baseline_compare(&run, o->compare, &slower))
        fprintf(stderr, "bench: %s has none of these rows\n", o->compare);
    free(run.result);
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

static int list_rows(const Rows *rows)
{
    for (int i = 0; i < rows->count; i++) {
        const Row *row = &rows->row[i];
        char line[CASE_SIZE];
        printf("%s %s %d %s\n", row->suite, row->name, row->count, case_print(&row->c, line));
    }
    return 0;
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
        { "once", 0, 0, 'O' },    { "variants", 0, 0, 'V' }, { "help", 0, 0, 'h' },    { 0 }
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
        case 'V': o.variants = true; break;
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
    const int status = list ? list_rows(&rows) : once ? count_rows(&rows) : run_rows(&o, &rows);
    free(rows.row);
    return status;
}
