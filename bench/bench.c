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
    "bench [options] --suite FILE ... --case \"LINE\" ... --shape SHAPE ...\n"
    "  --suite FILE         rows of a file: bench/suites/\n"
    "  --case LINE          a row as the tests print it: \"layernorm_forward x=f32 rows=4096 cols=768\"\n"
    "  --shape SHAPE        every operation on ROWSxCOLS, or on NxCxHW; GroupNorm alone on NxCxHW/GROUPS\n"
    "  --op WORD            only operations whose name contains it: layernorm\n"
    "  --dir DIRECTION      only forward (train and infer are), train, infer or backward\n"
    "  --dtype T,...[/W]    x and y of f32, f16, bf16, f64; a row for each of several; parameters of W\n"
    "  --layout nchw,nhwc   either, or a row for each\n"
    "  --with \"FIELD=... \"  any fields put over every case that has them: \"n=64 running=inplace null={mean_lo,mean}\"\n"
    "  --backend cpu|cuda   which back-end (cpu)\n"
    "  --threads N          of the CPU back-end and of its roofline (all)\n"
    "  --variant NAME       a kernel by name instead of the library's choice\n"
    "  --variants           every kernel that takes the case, in turn with the library's choice\n"
    "  --cold | --warm      caches flushed, buffers rotated (the default), or not\n"
    "  --peers[=NAME,...]   other implementations found on this machine too, in turn with ours\n"
    "  --min-time SECONDS   of measuring per row and contestant (0.2)\n"
    "  --quick              a short roofline for this number of threads alone, 0.02 s a row\n"
    "  --json FILE --csv FILE --md   results also as JSON, CSV; the table as Markdown\n"
    "  --svg FOLDER         a picture of each network there, and of all rates over size: sizes.svg\n"
    "  --compare BASE.json  an earlier run: SAME, FASTER or SLOWER; exit code 2 if any row is slower\n"
    "  --explain            the byte formula of every row, and what it could attain by the copies and reads measured\n"
    "  --list               print the rows, network layer count case, and stop\n"
    "  --once               every row once, unchecked and untimed: what bench/instructions.py counts\n"
    "  --self-test          hold the checker to the tests' oracle and stop\n";

/* ---- the run ---- */

/* Is name among these, with commas between them? NULL: all are. */
static bool is_named(const char *names, const char *name)
{
    const size_t length = strlen(name);
    if (!names)
        return true;
    for (; names; names = strchr(names, ',') ? strchr(names, ',') + 1 : NULL)
        if (!strncmp(names, name, length) && (!names[length] || names[length] == ','))
            return true;
    return false;
}

/* For the run's own threads and, to see how the machine scales, for 1, 2, 4, ... and all. */
static void measure_copies(Run *run)
{
    const Options *o = run->options;
    const int all = (int)sysconf(_SC_NPROCESSORS_ONLN);
    run->roof = roofline_measure(o->backend, o->threads, o->cold, o->quick);
    for (int n = 1; o->backend == WF_CPU && !o->quick && run->other_roofs < ROOF_THREADS; n = n * 2 < all ? n * 2 : all) {
        if (n != o->threads)
            run->other_roof[run->other_roofs++] = roofline_measure(o->backend, n, o->cold, false);
        if (n >= all)
            break;
    }
}

static int run_rows(const Options *o, const Rows *rows)
{
    Run run = { .options = o };
    if (o->backend == WF_CUDA && !gpu_open()) {
        fprintf(stderr, "bench: no CUDA device, or a build without CUDA\n");
        return USAGE_EXIT;
    }
    const Peer *peers[MAX_PEERS + 1] = { NULL };
    for (int i = 0, n = 0; o->peers && all_peers[i] && n < MAX_PEERS; i++)
        if (all_peers[i]->backend == o->backend && is_named(o->peer_names, all_peers[i]->name) && all_peers[i]->open())
            peers[n++] = all_peers[i];
    measure_copies(&run);
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

static bool is_direction(Op op, const char *dir)
{
    return !strcmp(strrchr(op_name(op), '_') + 1, dir) || (!strcmp(dir, "forward") && !op_is_backward(op));
}

/* What the options say of every case; rows of operations that were not asked for go. */
static void settle(Rows *rows, const Options *o)
{
    int kept = 0;
    for (int i = 0; i < rows->count; i++) {
        Case *c = &rows->row[i].c;
        if ((o->op && !strstr(op_name(c->op), o->op)) || (o->dir && !is_direction(c->op, o->dir)))
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

/* Behind what --with, --dtype and --layout said so far. */
static void add_fields(Options *o, const char *fields)
{
    const size_t at = strlen(o->with);
    snprintf(o->with + at, sizeof o->with - at, "%s%s", at ? " " : "", fields);
}

static void add_field(Options *o, const char *name, const char *values, size_t length)
{
    char field[CASE_SIZE];
    const bool several = memchr(values, ',', length);
    snprintf(field, sizeof field, several ? "%s={%.*s}" : "%s=%.*s", name, (int)length, values);
    add_fields(o, field);
}

static const char *check_options(const Options *o)
{
    static const char *const directions[] = { "forward", "train", "infer", "backward" };
    bool known = !o->dir;
    for (size_t i = 0; i < sizeof directions / sizeof *directions && !known; i++)
        known = !strcmp(directions[i], o->dir);
    if (!known)
        return "--dir is forward, train, infer or backward";
    for (const char *name = o->peer_names; name; name = strchr(name, ',') ? strchr(name, ',') + 1 : NULL) {
        const size_t length = strcspn(name, ",");
        int i = 0;
        while (all_peers[i] && (strlen(all_peers[i]->name) != length || memcmp(all_peers[i]->name, name, length)))
            i++;
        if (!all_peers[i])
            return "--peers: no peer of that name";
    }
    return o->threads < 1 ? "--threads" : suite_with_error(o->with);
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
        { "op", 1, 0, 'o' },      { "cold", 0, 0, 'C' },     { "warm", 0, 0, 'W' },    { "peers", 2, 0, 'p' },
        { "quick", 0, 0, 'q' },   { "min-time", 1, 0, 'm' }, { "json", 1, 0, 'j' },    { "csv", 1, 0, 'c' },
        { "md", 0, 0, 'M' },      { "svg", 1, 0, 'g' },      { "compare", 1, 0, 'B' }, { "explain", 0, 0, 'e' },
        { "list", 0, 0, 'l' },    { "suite", 1, 0, 's' },    { "case", 1, 0, 'k' },    { "self-test", 0, 0, 'T' },
        { "once", 0, 0, 'O' },    { "variants", 0, 0, 'V' }, { "help", 0, 0, 'h' },    { "dir", 1, 0, 'd' },
        { "dtype", 1, 0, 'D' },   { "layout", 1, 0, 'L' },   { "shape", 1, 0, 'S' },   { 0 }
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
        case 'w': add_fields(&o, optarg); break;
        case 'L': add_field(&o, "layout", optarg, strlen(optarg)); break;
        case 'D':
            add_field(&o, "x", optarg, strcspn(optarg, "/"));
            if (strchr(optarg, '/'))
                add_field(&o, "w", strchr(optarg, '/') + 1, strlen(strchr(optarg, '/') + 1));
            break;
        case 'd': o.dir = optarg; break;
        case 'o': o.op = optarg; break;
        case 'C': o.cold = true; break;
        case 'W': o.cold = false; break;
        case 'p': o.peers = true, o.peer_names = optarg; break;
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
        case 'S':
            if (sources == 256)
                return usage("more than 256 suites, cases and shapes");
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
    error = check_options(&o);
    for (int i = 0; i < sources && !error; i++)
        error = kind[i] == 's'   ? suite_read(&rows, source[i], o.with)
                : kind[i] == 'S' ? suite_add_shape(&rows, source[i], o.with)
                                 : suite_add(&rows, "case", "-", 1, source[i], o.with);
    if (error || optind < argc)
        return usage(error ? error : argv[optind]);
    settle(&rows, &o);
    if (rows.count == 0)
        return usage("no rows: give --suite, --case or --shape");
    const int status = list ? list_rows(&rows) : once ? count_rows(&rows) : run_rows(&o, &rows);
    free(rows.row);
    return status;
}
