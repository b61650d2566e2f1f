/* fuzz_calls.c - a libFuzzer target: bytes become a call of any operation, mostly a legal one, with up to three things
 * wrong in it. Every buffer, the workspace and the three structs lie between pages that fault. Checked are
 *     the status, against what the header allows (fuzz_model.c), and the text of a refusal;
 *     that a refused call and a dry run changed nothing, and an accepted one nothing but its outputs' elements;
 *     the outputs of an accepted call, against the oracles (fuzz_reference.c);
 *     that another variant, other pieces of work and another content of the workspace give the same bits.
 * Built with FUZZ_REPLAY it has a main() of its own that runs files, or all files of a folder, or writes seeds. */
#include "fuzz.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

Counts counts;

/* ---- memory ---- */

enum {
    WHAT_SLOT = MAX_FIELDS, WITH_SLOT, WHERE_SLOT, WORKSPACE_SLOT, SLOTS,
    SLOT_SIZE = 2 << 20,      /* thrice a buffer of MAX_ELEMENTS doubles, for overlaps to both sides */
    WORKSPACE_MAX = 64 << 20,
    MARGIN = 64               /* watched bytes around a buffer, where there is no guard page */
};

static struct {
    uint8_t *begin, *end;     /* between two pages that fault */
    uint8_t *low, *high;      /* what this call watches */
} slot[SLOTS];
static uint8_t before[SLOTS - 1][SLOT_SIZE], first[SLOTS - 1][SLOT_SIZE]; /* copies of [low, high) */

static void reserve_slots(void)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < SLOTS; i++) {
        const size_t size = i == WORKSPACE_SLOT ? WORKSPACE_MAX : SLOT_SIZE;
        uint8_t     *at = mmap(NULL, size + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED || mprotect(at + page, size, PROT_READ | PROT_WRITE) != 0) {
            perror("mmap");
            exit(1);
        }
        slot[i].begin = at + page;
        slot[i].end = at + page + size;
    }
}

static void scramble(uint8_t *at, uint8_t *end, uint64_t seed)
{
    for (uint64_t bits; at < end; at += sizeof bits) {
        bits = random_bits(&seed);
        memcpy(at, &bits, end - at < (int64_t)sizeof bits ? (size_t)(end - at) : sizeof bits);
    }
}

/* A struct of the size it states, ending (up to 7 bytes of garbage) at a guard page. */
static void *place_struct(int i, const void *image, size_t known, size_t stated, bool dirty_tail)
{
    const size_t room = (stated + 7) / 8 * 8 < 8 ? 8 : (stated + 7) / 8 * 8;
    uint8_t     *at = slot[i].end - room;
    memset(at, 0, room);
    memcpy(at, image, stated < known ? stated : known);
    memcpy(at, &stated, sizeof stated);
    memset(at + (stated < 8 ? 8 : stated), 0xff, room - (stated < 8 ? 8 : stated));
    if (dirty_tail && stated > known)
        at[stated - 1] = 1;
    slot[i].low = at;
    slot[i].high = slot[i].end;
    return at;
}

static size_t stated_size(const Plan *plan, Wrong which, size_t known, bool *dirty_tail)
{
    unsigned how;
    *dirty_tail = false;
    if (!is_wrong(plan, which, &how))
        return known;
    const size_t sizes[] = { 0, 8, 15, 16, 17, 24, known - 8, known - 1, known + 8, known + 64, how };
    *dirty_tail = how & 128;
    const size_t stated = PICK(sizes, how % 128);
    /* Half a pointer would be the caller's own doing. */
    return which == WHAT_SIZE || stated < 16 ? stated : stated / 8 * 8;
}

static void watch(int i, uint8_t *at, int64_t span)
{
    uint8_t *low = at - slot[i].begin > MARGIN ? at - MARGIN : slot[i].begin;
    uint8_t *high = slot[i].end - at > span + MARGIN ? at + span + MARGIN : slot[i].end;
    slot[i].low = slot[i].low == NULL || low < slot[i].low ? low : slot[i].low;
    slot[i].high = slot[i].high == NULL || high > slot[i].high ? high : slot[i].high;
}

/* Where field i lies: `home` is its slot, which is another's where it overlaps that one. */
static void place_buffers(const Plan *plan, Call *call, int home[MAX_FIELDS])
{
    const Operation *op = call->op;
    for (int i = 0; i < op->fields; i++) {
        Buffer       b = buffer_of(call, i);
        const Field *f = &op->field[i];
        home[i] = i;
        const bool running = op->direction == FORWARD && f->role == CHANNEL; /* all four or none */
        if (!f->needed && plan->absent >> (running ? 0 : i) & 1) {
            call->buffer[i] = b;
            continue;
        }
        b.at = plan->front >> i & 1 ? slot[i].begin : slot[i].end - span_of(&b);
        if (f->alias >= 0 && plan->in_place >> i & 1 && call->buffer[f->alias].at != NULL) {
            b.at = call->buffer[f->alias].at;
            home[i] = home[f->alias];
        }
        call->buffer[i] = b;
    }
    for (int k = 0; k < plan->wrongs; k++) {
        const unsigned how = plan->wrong[k].how;
        const int      i = (int)(how % (unsigned)op->fields);
        Buffer        *b = &call->buffer[i];
        if (plan->wrong[k].what == NO_BUFFER)
            b->at = NULL;
        if (plan->wrong[k].what == MISALIGNED && b->at != NULL)
            b->at += (plan->front >> i & 1 ? 1 : -1) * (int)(1 + how / 16 % 7);
        if (plan->wrong[k].what == OVERLAP) {
            const int j = (int)(plan->wrong[k].more[0] % (unsigned)op->fields);
            Buffer   *other = &call->buffer[j];
            if (i == j || b->at == NULL || other->at == NULL)
                continue;
            const int64_t e = (int64_t)other->element, row = other->cols * e, stride = other->stride * e;
            const int64_t mine = span_of(b), its = span_of(other);
            const int64_t deltas[] = { 0,   e,     -e,      row,   -row, row - e, stride,  -stride, stride - row,
                                       its, -mine, its - e, e - mine, 1, row + e, stride + row };
            other->at = slot[home[j]].begin + SLOT_SIZE / 2 - SLOT_SIZE / 8;
            b->at = other->at + PICK(deltas, plan->wrong[k].more[1]);
            home[i] = home[j];
        }
    }
    for (int i = 0; i < op->fields; i++) { /* an overlap may have moved what an earlier one leant on */
        Buffer *b = &call->buffer[i];
        if (b->at != NULL && (b->at < slot[home[i]].begin || b->at + span_of(b) > slot[home[i]].end))
            home[i] = -1;
        for (int k = 0; b->at != NULL && home[i] < 0 && k < op->fields; k++)
            if (b->at >= slot[k].begin && b->at + span_of(b) <= slot[k].end)
                home[i] = k;
        if (b->at != NULL && home[i] < 0)
            b->at = NULL;
        if (b->at != NULL)
            watch(home[i], b->at, span_of(b));
    }
}

static void save(uint8_t (*copy)[SLOT_SIZE])
{
    for (int i = 0; i < SLOTS - 1; i++)
        if (slot[i].low != NULL)
            memcpy(copy[i], slot[i].low, (size_t)(slot[i].high - slot[i].low));
}

static void restore(uint8_t (*copy)[SLOT_SIZE])
{
    for (int i = 0; i < SLOTS - 1; i++)
        if (slot[i].low != NULL)
            memcpy(slot[i].low, copy[i], (size_t)(slot[i].high - slot[i].low));
}

/* ---- findings ---- */

static char story[2048]; /* the call, for a report */

__attribute__((noreturn, format(printf, 1, 2))) static void found(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "FOUND: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n  %s\n", story);
    va_end(args);
    abort();
}

static void tell(const Call *call, const wf_exec *where)
{
    const What *w = &call->what;
    int         at = snprintf(story, sizeof story,
                              "%s x_dtype=%d w_dtype=%d layout=%d kind=%d flags=%u n=%lld c=%lld hw=%lld groups=%lld "
                              "strides=%lld,%lld,%lld,%lld,%lld,%lld eps=%g extra=%g drop=%g threads=%d "
                              "where.flags=0x%x backend=%d variant=%s workspace=%p+%zu\n ",
                              call->op->name, w->x_dtype, w->w_dtype, w->layout, w->kind, w->flags, (long long)w->n,
                              (long long)w->c, (long long)w->hw, (long long)w->groups, (long long)w->x_stride,
                              (long long)w->y_stride, (long long)w->dx_stride, (long long)w->dy_stride,
                              (long long)w->residual_stride, (long long)w->sum_stride, w->eps, w->extra, w->drop,
                              where->threads, where->flags, (int)where->backend,
                              where->variant ? where->variant : "-", where->workspace, where->workspace_size);
    for (int i = 0; call->real && i < call->op->fields && at < (int)sizeof story; i++)
        at += snprintf(story + at, sizeof story - (size_t)at, " %s=%p+%lld", call->op->field[i].name,
                       (void *)call->buffer[i].at, call->buffer[i].at ? (long long)span_of(&call->buffer[i]) : 0);
}

/* No byte has changed but those of the workspace and of outputs' elements; without `outputs` none at all. */
static void check_untouched(const Call *call, bool outputs, const wf_exec *where)
{
    for (int i = 0; i < SLOTS - 1; i++) {
        if (slot[i].low == NULL || memcmp(slot[i].low, before[i], (size_t)(slot[i].high - slot[i].low)) == 0)
            continue;
        for (uint8_t *at = slot[i].low; at < slot[i].high; at++) {
            if (*at == before[i][at - slot[i].low])
                continue;
            bool legal = outputs && (uintptr_t)at - (uintptr_t)where->workspace < where->workspace_size;
            for (int k = 0; outputs && !legal && k < call->op->fields; k++)
                legal = is_output(call, k) && call->buffer[k].at != NULL && holds(&call->buffer[k], at);
            if (!legal)
                found("%s changed byte %td of slot %d (%p)%s", call->op->name, at - slot[i].low, i, (void *)at,
                      where->flags & WF_DRY_RUN ? " in a dry run" : "");
        }
    }
}

static bool same_number(const Buffer *b, const uint8_t *p, const uint8_t *q)
{
    if (memcmp(p, q, b->element) == 0)
        return true;
    if (b->dtype < 0)
        return false;
    uint64_t aligned[2] = { 0, 0 };
    memcpy(&aligned[0], p, b->element);
    memcpy(&aligned[1], q, b->element);
    const double a = dtype_load((wf_dtype)b->dtype, &aligned[0], 0), c = dtype_load((wf_dtype)b->dtype, &aligned[1], 0);
    return a != a && c != c;
}

/* The outputs now have the bits that they had in `first`; a NaN's payload is free. */
static void check_same_bits(const Call *call, const int home[MAX_FIELDS])
{
    for (int i = 0; i < call->op->fields; i++) {
        const Buffer *b = &call->buffer[i];
        if (!is_output(call, i) || b->at == NULL)
            continue;
        const uint8_t *was = first[home[i]] + (b->at - slot[home[i]].low);
        for (int64_t row = 0; row < b->rows; row++)
            for (int64_t k = 0; k < b->cols; k++) {
                const int64_t at = (row * b->stride + k) * (int64_t)b->element;
                if (!same_number(b, b->at + at, was + at))
                    found("a second run gives other bits in %s[%lld, %lld]", call->op->field[i].name, (long long)row,
                          (long long)k);
            }
    }
}

/* ---- the call ---- */

static void in_pieces(void *pool, int64_t n, void (*body)(void *, int64_t, int64_t), void *arg)
{
    const int64_t piece = *(const int64_t *)pool;
    for (int64_t end = n; end > 0; end -= piece) /* the last piece first */
        body(arg, end > piece ? end - piece : 0, end);
}

static wf_exec plan_where(const Plan *plan, const Call *call)
{
    static int64_t pieces[] = { 1, 3, 7, 1000000 };
    wf_exec        where = { .size = sizeof where, .backend = WF_CPU, .flags = plan->where_flags };
    unsigned       how;
    if (plan->pieces % 4 != 0) {
        where.parallel_for = in_pieces;
        where.pool = &PICK(pieces, plan->pieces / 4);
    }
    where.threads = (int32_t)(plan->pieces / 16 % 4);
    if (plan->variant % 4 != 0)
        where.variant = wf_variant(call->op->name, WF_CPU, (int)(plan->variant % 4) - 1);
    if (is_wrong(plan, EXEC_FLAGS, &how))
        where.flags |= 1u << how % 32;
    /* WF_CUDA where it must refuse: the buffers here are the host's, which a kernel may not be given. */
    if (is_wrong(plan, BACKEND, &how))
        where.backend = (wf_backend)(how % 2 == 0 ? WF_CUDA : (int)how - 2);
    if (where.backend == WF_CUDA && wf_variant(call->op->name, WF_CUDA, 0))
        where.backend = (wf_backend)2;
    if (is_wrong(plan, THREADS, &how)) {
        if (how & 1)
            where.threads = -(int32_t)how;
        else
            where.reserved = how;
    }
    if (is_wrong(plan, VARIANT, &how))
        where.variant = how % 2 == 0 ? "no such variant" : "";
    return where;
}

static void scramble_workspace(const wf_exec *where, uint64_t seed)
{
    uint8_t *at = where->workspace;
    if (at != NULL && at >= slot[WORKSPACE_SLOT].begin && at < slot[WORKSPACE_SLOT].end)
        scramble(at, at + (where->workspace_size < SLOT_SIZE ? where->workspace_size : SLOT_SIZE), seed);
}

static void plan_workspace(const Plan *plan, const Call *call, wf_exec *where)
{
    unsigned     how;
    const size_t need = call->op->workspace(call->what_at, WF_CPU);
    if (what_is_bad(call) && need != 0)
        found("%s_workspace is %zu where `what` is invalid", call->op->name, need);
    if (!call->real || need > WORKSPACE_MAX)
        return;
    where->workspace_size = need;
    if (is_wrong(plan, SMALL_WORKSPACE, &how))
        where->workspace_size = how % 4 == 0 ? 0 : need - (need > 0 ? how / 4 % need : 0);
    where->workspace = slot[WORKSPACE_SLOT].end - where->workspace_size;
    if (is_wrong(plan, SMALL_WORKSPACE, &how) && how % 4 == 1)
        where->workspace = NULL;
    if (is_wrong(plan, SHARED_WORKSPACE, &how) && where->workspace_size > 0 && where->workspace_size <= SLOT_SIZE / 4) {
        const int     i = (int)(how % (unsigned)call->op->fields);
        const Buffer *b = &call->buffer[i];
        if (b->at != NULL && b->at >= slot[i].begin && b->at < slot[i].end)
            where->workspace = slot[i].end - b->at < (int64_t)where->workspace_size
                                   ? slot[i].end - where->workspace_size
                                   : b->at;
    }
    scramble_workspace(where, plan->seed + 99);
}

/* with: size and the pointers in the order of the struct; seed and offset in between, if it has them. */
static void place_with(const Plan *plan, Call *call)
{
    uint64_t  image[24] = { call->op->with_size };
    const int seed_word = call->op->seed_word;
    unsigned  how;
    for (int i = 0; i < call->op->fields; i++)
        image[call->op->field[i].word] = call->real ? (uint64_t)(uintptr_t)call->buffer[i].at
                                                    : ((uint64_t)i + 1) << 44 | (plan->absent & 0xf0);
    if (seed_word > 0) {
        image[seed_word] = call->seed;
        image[seed_word + 1] = call->offset;
    }
    bool         dirty_tail;
    const size_t stated = stated_size(plan, WITH_SIZE, call->op->with_size, &dirty_tail);
    call->with_at = place_struct(WITH_SLOT, image, call->op->with_size, stated, dirty_tail);
    for (int i = 0; i < call->op->fields; i++) /* what lies beyond a shorter struct counts as zero */
        if ((size_t)call->op->field[i].word * 8 + 8 > stated)
            call->buffer[i].at = NULL;
    if (stated < (size_t)(seed_word + 2) * 8) {
        call->offset = 0;
        call->seed = stated < (size_t)(seed_word + 1) * 8 ? 0 : call->seed;
    }
    if (is_wrong(plan, NO_STRUCT, &how) && how % 3 == 1)
        call->with_at = NULL;
}

static wf_status run(const Call *call)
{
    return call->op->call(call->what_at, call->with_at, call->where_at);
}

static void check_refusal(const Call *call, wf_status status)
{
    const char  *text = wf_error_detail();
    const size_t length = strlen(call->op->name);
    if (strncmp(text, call->op->name, length) != 0 || strncmp(text + length, ": ", 2) != 0 || strlen(text) < length + 5)
        found("%s, but the text is \"%s\"", wf_status_string(status), text);
}

static void buffers_before(const Call *call, const int home[MAX_FIELDS], Buffer was[MAX_FIELDS])
{
    for (int i = 0; i < call->op->fields; i++) {
        was[i] = call->buffer[i];
        if (was[i].at != NULL)
            was[i].at = before[home[i]] + (call->buffer[i].at - slot[home[i]].low);
    }
}

/* The same call again, otherwise executed, must give the same bits. */
static void check_again(const Plan *plan, Call *call, wf_exec *where, const int home[MAX_FIELDS])
{
    static int64_t piece = 2;
    save(first);
    restore(before);
    scramble_workspace(where, plan->seed + 7);
    where->parallel_for = where->parallel_for == NULL ? in_pieces : NULL;
    where->pool = &piece;
    where->threads = 1;
    where->variant = wf_variant(call->op->name, WF_CPU, (int)(plan->other_variant % 3));
    memcpy(slot[WHERE_SLOT].low, where, sizeof *where);
    const wf_status status = run(call);
    if (status == WF_UNSUPPORTED)
        return;
    if (status != WF_OK)
        found("a second run with variant %s is %s: %s", where->variant, wf_status_string(status), wf_error_detail());
    check_same_bits(call, home);
    counts.repeated++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Plan     plan = plan_call(data, size);
    unsigned how;
    int      home[MAX_FIELDS];
    if (slot[0].begin == NULL)
        reserve_slots();
    for (int i = 0; i < SLOTS; i++)
        slot[i].low = slot[i].high = NULL;

    Call         call = { .op = plan.op, .seed = plan.seed * 0x100000001, .offset = plan.seed >> 3 };
    bool         dirty_tail;
    uint64_t     image[32];
    const size_t what_stated = stated_size(&plan, WHAT_SIZE, plan.op->what_size, &dirty_tail);
    what_encode(plan.op, &plan.what, image);
    memset((char *)image + (what_stated < plan.op->what_size ? what_stated : plan.op->what_size), 0,
           what_stated < plan.op->what_size ? plan.op->what_size - what_stated : 0);
    what_decode(plan.op, image, &call.what);
    call.what_at = place_struct(WHAT_SLOT, image, plan.op->what_size, what_stated, dirty_tail);
    if (is_wrong(&plan, NO_STRUCT, &how) && how % 3 == 0)
        call.what_at = NULL;

    call.real = is_small(call.op, &call.what);
    if (call.real)
        place_buffers(&plan, &call, home);
    place_with(&plan, &call);
    wf_exec where = plan_where(&plan, &call);
    call.where_at = &where;
    plan_workspace(&plan, &call, &where);
    const size_t where_stated = stated_size(&plan, WHERE_SIZE, sizeof where, &dirty_tail);
    if (where_stated >= 16 && where_stated < sizeof where)
        memset((char *)&where + where_stated, 0, sizeof where - where_stated);
    if (!call.real && allowed_statuses(&call) != 1u << WF_INVALID) {
        where.flags |= WF_DRY_RUN; /* too large to be had */
        if (plan.absent & 1)
            call.with_at = NULL;
    }
    call.where_at = place_struct(WHERE_SLOT, &where, sizeof where, where_stated, dirty_tail);
    if (is_wrong(&plan, NO_STRUCT, &how) && how % 3 == 2)
        call.where_at = NULL;
    tell(&call, &where);

    for (int i = 0; call.real && i < MAX_FIELDS; i++)
        scramble(slot[i].low, slot[i].high, plan.seed + (uint64_t)i);
    const unsigned allowed = allowed_statuses(&call);
    Reference     *reference = call.real && allowed >> WF_OK & 1 ? reference_new(&call, plan.data, plan.seed) : NULL;
    save(before);
    char           text[512];
    snprintf(text, sizeof text, "%s", wf_error_detail());
    const wf_status status = run(&call);
    if (!(allowed >> status & 1))
        found("%s (%s), allowed are the statuses 0x%x", wf_status_string(status), wf_error_detail(), allowed);
    const bool done = status == WF_OK && call.real && !(where.flags & WF_DRY_RUN) && reference != NULL;
    check_untouched(&call, done, &where);
    counts.refused += status != WF_OK;
    counts.dry += status == WF_OK && !done;
    counts.compared += done;
    if (status != WF_OK)
        check_refusal(&call, status);
    else if (strcmp(text, wf_error_detail()) != 0)
        found("WF_OK, but the text is now \"%s\"", wf_error_detail());
    if (done) {
        Buffer was[MAX_FIELDS];
        buffers_before(&call, home, was);
        const char *wrong = reference_check(reference, was);
        if (wrong != NULL)
            found("%s\n  %s", wrong, reference_line(reference));
        if (where_stated == sizeof where)
            check_again(&plan, &call, &where, home);
    }
    reference_free(reference);
    return 0;
}
