/* What the kernels move, against what they must: every input read once and every output written once, in whole sectors, by
 * 16-byte accesses, without bank conflicts, in the launches that are stated. */
#include <check.h>
#include <cuda_runtime_api.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data.h"
#include "device_call.h"
#include "meter.h"
#include "sweep.h"
#include "test_cuda.h"

static const struct Metered {
    int         launches, reads;
    double      scatter;
    int         ways;
    const char *line;
} metered[] = {
#define METERED(launches, reads, scatter, ways, line) {launches, reads, scatter, ways, line},
#include "meter.def"
};
enum { LINES = sizeof metered / sizeof *metered, SECTOR = 32 };

static const double SLACK = 1.05;

/* ---- one call ---- */

typedef struct Sum { /* over buffers of one kind */
    double read, written; /* bytes asked for */
    double sectors;       /* touched by instructions, bytes */
    double distinct;      /* touched at all, bytes */
    double wide;          /* bytes asked for 16 at a time */
} Sum;

typedef struct Moved {
    Op       op;
    double   elements, floor; /* floor: bytes of all activations, each once */
    Sum      activations, others, workspace; /* others: parameters, statistics, masks */
    uint64_t launches, ways;
    char     variant[32], wrong[1024]; /* what is not as it must be */
} Moved;

static void wrong(Moved *m, const char *format, ...)
{
    const size_t at = strlen(m->wrong);
    va_list      args;
    va_start(args, format);
    vsnprintf(m->wrong + at, sizeof m->wrong - at, format, args);
    va_end(args);
}

static void add(Sum *s, const struct meter_traffic *t, double *bytes)
{
    *bytes += (double)t->bytes;
    s->sectors += SECTOR * (double)t->sectors;
    s->distinct += SECTOR * (double)t->distinct;
    s->wide += 16 * (double)t->width[4];
}

/* Inputs, but what a sum is made of is read once: the next time it is the sum that is read. An ending's residual is read where y
 * is made and, backward, for the sums and for dx, the second time from cache if the rest is on chip. */
static int reads_of(const struct Metered *row, const Case *c, const char *name, bool output)
{
    const bool is_sum = strcmp(name, "sum") == 0, forward = case_adds(c) && !op_is_backward(c->op);
    if (case_ends(c) && strcmp(name, "residual") == 0)
        return op_is_backward(c->op) ? 2 : 1;
    if (output)
        return is_sum ? row->reads - 1 : 0;
    return forward || strcmp(name, "dsum") == 0 ? 1 : row->reads;
}

/* An activation is read so often, written once if it is an output, and nothing else. */
static void judge_activation(Moved *m, const struct Metered *row, const char *name, bool output, double expected_read,
                             double size, const struct meter_buffer *b)
{
    const double read = (double)b->read.bytes / size, written = (double)b->write.bytes / size;
    const double expected_written = output ? 1 : 0;
    if (read < expected_read || read > SLACK * expected_read)
        wrong(m, "%s is read %.3f times, not %g; ", name, read, expected_read);
    if (written < expected_written || written > SLACK * expected_written)
        wrong(m, "%s is written %.3f times, not %g; ", name, written, expected_written);
    const struct meter_traffic *t = output ? &b->write : &b->read;
    const double sectors = SECTOR * (double)t->sectors / (double)t->bytes;
    if (sectors > SLACK * row->scatter)
        wrong(m, "%s: %.3f sectors for each 32 bytes, %g allowed; ", name, sectors, row->scatter);
    if (row->scatter == 1 && 16 * t->width[4] != t->bytes)
        wrong(m, "%s: %.1f %% of the bytes by 16; ", name, 1600 * (double)t->width[4] / (double)t->bytes);
}

/* Parameters and statistics are read from cache again and again: only what is touched at all counts. Each is written once, but
 * a modulated norm's sums, which are multiplied in place. */
static void judge_other(Moved *m, const char *name, double size, int writes, const struct meter_buffer *b)
{
    const double most = SLACK * size > size + SECTOR ? SLACK * size : size + SECTOR - 1; /* it may begin within a sector */
    const double distinct = SECTOR * (double)(b->read.distinct > b->write.distinct ? b->read.distinct : b->write.distinct);
    if (distinct > most)
        wrong(m, "%s: sectors of %.0f bytes touched, it has %.0f; ", name, distinct, size);
    if ((double)b->write.bytes > SLACK * writes * size)
        wrong(m, "%s is written %.3f times; ", name, (double)b->write.bytes / size);
}

static Moved meter_line(const struct Metered *row)
{
    DeviceCall d;
    Moved      m = {.elements = 1};
    const Case parsed = case_of(row->line), *c = &parsed;
    device_call_begin(&d, c);
    m.op = c->op;
    m.elements = (double)(row_wise(op_norm(c->op)) ? c->rows * c->cols : c->n * c->c * c->hw);
    strcpy(m.variant, d.variant);
    cudaStream_t stream;
    cudaStreamCreate(&stream);
    d.api.where.stream = stream;
    meter_start();
    const wf_status status = device_call(&d);
    meter_stop();
    if (status != WF_OK)
        ck_abort_msg("%s: %s", row->line, wf_error_detail());
    const struct meter_record *total = meter_total();
    for (int i = 0; i <= WORKSPACE; i++) {
        if (!d.at[i])
            continue;
        const struct meter_buffer *b = meter_find(total, d.at[i]), untouched = {.name = ""};
        const int  extent = i != WORKSPACE ? (int)d.api.op->buffer[i].extent : -1;
        const bool activation = i != WORKSPACE && (extent <= EXTENT_DY || extent == EXTENT_BYTES);
        Sum       *sum = i == WORKSPACE ? &m.workspace : activation ? &m.activations : &m.others;
        b = b ? b : &untouched;
        add(sum, &b->read, &sum->read);
        add(sum, &b->write, &sum->written);
        if (activation) {
            const char  *name = device_call_name(&d, i);
            const bool   output = device_call_output(&d, i);
            const double size = (double)device_call_size(&d, i);
            m.floor += size;
            judge_activation(&m, row, name, output, reads_of(row, c, name, output), size, b);
        } else {
            const int writes = i == WORKSPACE && c->add & ADD_SCALE && op_is_backward(c->op) ? 2 : 1;
            judge_other(&m, device_call_name(&d, i), (double)device_call_size(&d, i), writes, b);
        }
    }
    m.launches = total->launches;
    m.ways = total->shared_ways;
    if (m.launches != (uint64_t)row->launches)
        wrong(&m, "%d launches, not %d; ", (int)m.launches, row->launches);
    if (m.ways > (uint64_t)row->ways)
        wrong(&m, "a bank conflict of %d ways, %d allowed; ", (int)m.ways, row->ways);
    for (int i = 0; i < meter_launches(); i++)
        if (meter_launch(i)->stream != (void *)stream)
            wrong(&m, "launch %d is not in the caller's stream; ", i);
    cudaStreamDestroy(stream);
    device_call_end(&d);
    return m;
}

/* ---- the test ---- */

/* All lines in one test, which knows then whether a variant has none. */
START_TEST(moves_what_it_must)
{
    static struct { Op op; char variant[32]; } seen[LINES];
    static char text[16384];
    size_t      at = 0;
    for (int i = 0; i < LINES; i++) {
        const Case c = case_of(metered[i].line);
        if (!in_build(&c))
            continue;
        const Moved m = meter_line(&metered[i]);
        seen[i].op = m.op;
        memcpy(seen[i].variant, m.variant, sizeof m.variant);
        if (m.wrong[0] && at < sizeof text)
            at += (size_t)snprintf(text + at, sizeof text - at, "%s (%s): %s\n", metered[i].line, m.variant, m.wrong);
    }
    const char *name;
    for (Op op = 0; op < OP_COUNT && !getenv("WELFORD_TEST_FEW_DTYPES"); op++)
        for (int i = 0; (name = wf_variant(op_name(op), WF_CUDA, i)); i++) {
            int k = 0;
            while (k < LINES && (seen[k].op != op || strcmp(seen[k].variant, name)))
                k++;
            if (k == LINES && variant_has_case(op, name) && at < sizeof text)
                at += (size_t)snprintf(text + at, sizeof text - at, "no line of meter.def is for %s variant=%s\n",
                                       op_name(op), name);
        }
    if (at)
        ck_abort_msg("%s", text);
}
END_TEST

Suite *cuda_meter_suite(void)
{
    Suite *suite = suite_create("cuda_meter");
    TCase *tcase = tcase_create("cuda_meter");
    tcase_set_timeout(tcase, 300);
    tcase_add_test(tcase, moves_what_it_must);
    suite_add_tcase(suite, tcase);
    return suite;
}

/* ---- the table ---- */

static void print_line(const struct Metered *row)
{
    const Moved m = meter_line(row);
    const char *shape = strchr(row->line, ' ') + 1, *variant = strstr(shape, " variant=");
    const char *reads = row->reads > 2 ? " (3 reads)" : row->reads > 1 ? " (2 reads)" : "";
    printf("| %.*s | %s | %d | %g | %g | %.3f%s | %.3f | %.3f | %.3f | %.0f %% | %d |%s%s\n",
           (int)(variant ? variant - shape : (long)strlen(shape)), shape, m.variant, (int)m.launches,
           m.floor / m.elements, (m.activations.read + m.activations.written) / m.elements,
           (m.activations.read + m.activations.written) / m.floor, reads,
           m.others.distinct / m.floor, (m.workspace.read + m.workspace.written) / m.floor,
           m.activations.sectors / (m.activations.read + m.activations.written),
           100 * m.activations.wide / (m.activations.read + m.activations.written), (int)m.ways,
           m.wrong[0] ? " WRONG: " : "", m.wrong);
}

void meter_print(void)
{
    printf("# What the CUDA kernels move\n\n"
           "Printed by `make meter`, which runs the kernels on the emulator and counts: deterministic, no GPU involved, nothing\n"
           "measured in time. `make check` asserts it (tests/emu/test_cuda_meter.c; the shapes are in tests/emu/meter.def).\n\n"
           "- **floor**: bytes per element of x if each activation (x, y, dy, dx; with a sum residual, sum, dsum, dresidual)\n"
           "  crosses memory once; **moved**: what the threads asked for. Their ratio is at most 1.05, or 2 reads of x and dy\n"
           "  (or of a sum) where a row, group or channel does not fit on chip, 3 for int8.\n"
           "- **parameters and statistics** (and masks): the sectors touched at all, over the floor's bytes; **workspace**:\n"
           "  bytes written and read, over the floor's bytes. Small tensors show large shares here, large ones do not: the\n"
           "  number of partial rows is bounded.\n"
           "- **sectors**: 32-byte sectors touched by the warps' instructions on activations, over the fewest that hold the\n"
           "  bytes. **16-byte**: share of the activations' bytes accessed 16 at a time. **ways**: the worst bank conflict\n"
           "  (0: no shared memory).\n");
    Op last = OP_COUNT;
    for (int i = 0; i < LINES; i++) {
        const Case c = case_of(metered[i].line);
        if (c.op != last)
            printf("\n## %s\n\n| case | variant | launches | floor | moved | moved / floor | parameters, statistics "
                   "| workspace | sectors | 16-byte | ways |\n|---|---|---|---|---|---|---|---|---|---|---|\n", op_name(c.op));
        last = c.op;
        print_line(&metered[i]);
    }
}
