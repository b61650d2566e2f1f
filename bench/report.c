/* report.c - the table on stdout: plain or Markdown. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

double result_rate(const Result *r, int who)
{
    const Contestant *w = &r->who[who];
    return (w->bytes > 0 ? w->bytes : r->traffic.bytes) / w->timing.median;
}

/* The case without its operation and what the whole run has in common. */
static const char *label(const Case *c)
{
    static char text[CASE_SIZE];
    Case plain = *c;
    plain.backend = WF_CPU;
    plain.threads = 0;
    char *rest = strchr(case_print(&plain, text), ' ');
    return rest ? rest + 1 : "";
}

static void print_roofline(const Roofline *roof)
{
    if (roof->threads)
        printf("  %d thread%s:", roof->threads, roof->threads > 1 ? "s" : "");
    for (int i = 0; i < roof->points; i++) {
        const double bytes = roof->bytes[i];
        printf("  %.0f %s: %.1f", bytes >= 0x1p20 ? bytes / 0x1p20 : bytes / 1024, bytes >= 0x1p20 ? "MB" : "KB",
               roof->rate[i] * 1e-9);
        if (roof->plain_rate[i] > 0)
            printf(" / %.1f / %.1f", roof->plain_rate[i] * 1e-9, roof->read_rate[i] * 1e-9);
    }
    printf("\n");
}

void report_header(const Run *run)
{
    const Options *o = run->options;
    printf("environment: %s\n", run->environment);
    printf("roofline, %s, GB/s read + written:\n",
           o->backend == WF_CUDA ? "device-to-device copy" : "non-temporal copy / plain copy / read alone");
    print_roofline(&run->roof);
    for (int i = 0; i < run->other_roofs; i++)
        print_roofline(&run->other_roof[i]);
    printf("%%copy: of a copy that moves as many bytes; %%peak: of the best copy; x: times as long as welford\n\n");
    if (o->markdown)
        printf("| layer | operation | case | min us | median | p95 | spread | GB/s | %%copy | %%peak | peers | check |\n"
               "|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    else
        printf("%-16s %-21s %-42s %9s %9s %9s %6s %7s %5s %5s  %s\n", "layer", "operation", "case", "min us", "median", "p95",
               "spread", "GB/s", "%copy", "%peak", "check, peers");
}

static void print_peers(const Result *r)
{
    for (int i = 1; i < r->contestants; i++)
        printf(" %s %.2fx", r->who[i].name, r->who[i].ratio);
    if (*r->compared)
        printf(" %s", r->compared);
}

static void explain_bound(const Result *r)
{
    const Bound *b = &r->bound;
    const double median = r->who[0].timing.median;
    printf("    attainable: %.4g MB copied at %.1f GB/s", b->copied * 1e-6, b->copy_rate * 1e-9);
    if (b->read > 0)
        printf(" + %.4g MB read at %.1f GB/s", b->read * 1e-6, b->read_rate * 1e-9);
    printf(" = %.2f us, %.0f %% reached", b->once * 1e6, 100 * b->once / median);
    if (r->traffic.again > 0)
        printf("; %.4g MB read again at %.1f GB/s: %.2f us, %.0f %%", r->traffic.again * 1e-6, b->read_rate * 1e-9,
               b->twice * 1e6, 100 * b->twice / median);
    printf("\n");
}

void report_row(const Run *run, const Result *r)
{
    const bool markdown = run->options->markdown;
    const char *operation = op_name(r->row->c.op);
    if (r->verdict != TIMED) {
        static const char *const words[] = { [WRONG] = "WRONG", [UNSUPPORTED] = "unsupported", [FAILED] = "failed" };
        printf(markdown ? "| %s | %s | %s | %s: %s |||||||||\n" : "%-16s %-21s %-42s %s: %s\n", r->row->name, operation,
               label(&r->row->c), words[r->verdict], r->message);
        fflush(stdout);
        return;
    }
    const Timing *t = &r->who[0].timing;
    const double rate = result_rate(r, 0);
    printf(markdown ? "| %s | %s | %s | %.2f | %.2f | %.2f | %.1f%% | %.1f | %.0f | %.0f |"
                    : "%-16s %-21s %-42s %9.2f %9.2f %9.2f %5.1f%% %7.1f %5.0f %5.0f  ",
           r->row->name, operation, label(&r->row->c), t->min * 1e6, t->median * 1e6, t->p95 * 1e6,
           100 * (t->q3 - t->q1) / t->median, rate * 1e-9, 100 * rate / r->roof, 100 * rate / r->peak);
    if (markdown) {
        print_peers(r);
        printf(" | %s |\n", r->check);
    } else {
        printf("%s", r->check);
        print_peers(r);
        printf("\n");
    }
    if (run->options->explain)
        printf("    %s = %.0f bytes; %d samples of %d calls\n", r->traffic.formula, r->traffic.bytes, t->samples, t->calls);
    if (run->options->explain && r->traffic.again > 0)
        printf("    counting what is read twice: %.1f GB/s\n", (r->traffic.bytes + r->traffic.again) / t->median * 1e-9);
    if (run->options->explain && r->bound.once > 0)
        explain_bound(r);
    fflush(stdout);
}

/* Geometric mean of what value(r, arg) gives, leaving out where that is 0. */
static double geometric(const Run *run, double (*value)(const Result *, const void *), const void *arg, int *count)
{
    double sum = 0;
    *count = 0;
    for (int i = 0; i < run->results; i++) {
        const double v = run->result[i].verdict == TIMED ? value(&run->result[i], arg) : 0;
        if (v > 0) {
            sum += log(v);
            ++*count;
        }
    }
    return *count ? exp(sum / *count) : 0;
}

typedef struct Kind { Op op; bool of_sum; } Kind;

static double share_of_kind(const Result *r, const void *arg)
{
    const Kind *kind = arg;
    return r->row->c.op == kind->op && case_adds(&r->row->c) == kind->of_sum ? 100 * result_rate(r, 0) / r->roof : 0;
}

static double ratio_to(const Result *r, const void *name)
{
    for (int i = 1; i < r->contestants; i++)
        if (!strcmp(r->who[i].name, name))
            return r->who[i].ratio;
    return 0;
}

/* A network's layers are summed for each dtype and layout. */
static bool same_network(const Row *a, const Row *b)
{
    return !strcmp(a->suite, b->suite) && a->c.x == b->c.x && a->c.w == b->c.w && a->c.layout == b->c.layout;
}

/* Seconds of a network's timed rows, each as often as it has them; 0: the contestant lacks some. */
static double total_of(const Run *run, const Row *network, const char *name, int *layers)
{
    double total = 0;
    *layers = 0;
    for (int i = 0; i < run->results; i++) {
        const Result *r = &run->result[i];
        int k = 0;
        if (!same_network(r->row, network) || r->verdict != TIMED)
            continue;
        while (k < r->contestants && strcmp(r->who[k].name, name))
            k++;
        if (k == r->contestants)
            return 0;
        total += r->row->count * r->who[k].timing.median;
        *layers += r->row->count;
    }
    return total;
}

static void print_totals(const Run *run)
{
    for (int i = 0; i < run->results; i++) {
        const Row *row = run->result[i].row;
        bool first = true, missing = false;
        for (int k = 0; k < run->results; k++) {
            const bool same = same_network(run->result[k].row, row);
            first &= !same || k >= i;
            missing |= same && run->result[k].verdict != TIMED;
        }
        int layers;
        const double total = total_of(run, row, "welford", &layers);
        if (!first || total == 0)
            continue;
        printf("total of %s, %s%s%s%s: %.3f ms for %d calls%s", row->suite, dtype_name(row->c.x), row->c.w == row->c.x ? "" : "/",
               row->c.w == row->c.x ? "" : dtype_name(row->c.w), row->c.layout == WF_NHWC ? ", channels last" : "", total * 1e3,
               layers, missing ? " (rows are missing)" : "");
        for (int k = 0; all_peers[k]; k++) {
            const double other = total_of(run, row, all_peers[k]->name, &layers);
            if (other > 0)
                printf(", %s %.3f", all_peers[k]->name, other * 1e3);
        }
        printf("\n");
    }
}

static int by_share(const void *a, const void *b)
{
    const Result *const x = *(const Result *const *)a, *const y = *(const Result *const *)b;
    const double p = result_rate(x, 0) / x->roof, q = result_rate(y, 0) / y->roof;
    return (p > q) - (p < q);
}

/* Worst first. */
static void print_slow(const Run *run)
{
    enum { MOST = 25 };
    const Result **slow = malloc((size_t)run->results * sizeof *slow);
    int count = 0;
    for (int i = 0; i < run->results; i++)
        if (run->result[i].verdict == TIMED && result_rate(&run->result[i], 0) < 0.7 * run->result[i].roof)
            slow[count++] = &run->result[i];
    qsort(slow, (size_t)count, sizeof *slow, by_share);
    for (int i = 0; i < count && i < MOST; i++)
        printf("%s %3.0f %%  %s %s %s\n", i ? "           " : "under 70 %:", 100 * result_rate(slow[i], 0) / slow[i]->roof,
               slow[i]->row->name, op_name(slow[i]->row->c.op), label(&slow[i]->row->c));
    if (count > MOST)
        printf("            and %d more\n", count - MOST);
    free(slow);
}

void report_footer(const Run *run)
{
    int count;
    printf("\n");
    for (int i = 0; i < 2 * OP_COUNT; i++) {
        const Kind kind = { (Op)(i / 2), i % 2 };
        const double share = geometric(run, share_of_kind, &kind, &count);
        if (count)
            printf("%-21s %5.0f %% of the copy, geometric mean of %d%s\n", op_name(kind.op), share, count,
                   kind.of_sum ? " norms of a sum" : "");
    }
    for (int i = 0; all_peers[i]; i++) {
        const double ratio = geometric(run, ratio_to, all_peers[i]->name, &count);
        if (count)
            printf("%-21s %5.2f times as long, geometric mean of %d\n", all_peers[i]->name, ratio, count);
    }
    print_totals(run);
    print_slow(run);
}
