/* row.c - one row: its tensors are made, the library's result is judged, then the library and its peers are timed. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { ORACLE_ELEMENTS = 1 << 14 /* up to here also the tests' oracle, which needs a microsecond each */ };

typedef struct Bout {
    Result     *r;
    Plan       *p;
    Timer       timer;
    char       *before, *after; /* a slab as it was filled, and as a call left it */
    const Peer *peer[1 + MAX_PEERS]; /* of a contestant; NULL: the library */
} Bout;

char *host_alloc(size_t size) { return aligned_alloc(4096, (size + 4095) / 4096 * 4096); }

static void fail(Result *r, Verdict verdict, const char *why)
{
    r->verdict = verdict;
    snprintf(r->message, sizeof r->message, "%.*s", (int)strcspn(why, "\n"), why);
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

static bool call_library(void *state, char *slab, struct CUstream_st *stream)
{
    return plan_call(state, slab, stream) == WF_OK;
}

/* A call on set 0, filled anew, whose result is then in `after`. NULL or why there is none. */
static const char *try_call(Bout *b, const Contestant *who)
{
    const bool cuda = b->timer.backend == WF_CUDA;
    const char *error = NULL;
    if (cuda)
        gpu_put(b->timer.slab[0], b->before, b->p->slab_size);
    else
        memcpy(b->timer.slab[0], b->before, b->p->slab_size);
    if (!who->call(who->state, b->timer.slab[0], cuda ? gpu_stream() : NULL))
        return who->call == call_library ? wf_error_detail() : "the call failed";
    if (cuda && !gpu_sync(&error))
        return error;
    if (cuda)
        gpu_take(b->after, b->timer.slab[0], b->p->slab_size);
    else
        memcpy(b->after, b->timer.slab[0], b->p->slab_size);
    return NULL;
}

static void add(Bout *b, Contestant who, const Peer *peer)
{
    b->peer[b->r->contestants] = peer;
    b->r->who[b->r->contestants++] = who;
}

static void add_library(Bout *b)
{
    const Contestant who = { .name = "welford", .call = call_library, .state = b->p };
    const bool small = b->p->count <= ORACLE_ELEMENTS && b->p->slots;
    const char *error = try_call(b, &who);
    snprintf(b->r->check, sizeof b->r->check, "%s", small ? "oracle" : b->p->slots ? "reference" : "exact");
    if (error) {
        fail(b->r, plan_call(b->p, b->timer.slab[0], NULL) == WF_UNSUPPORTED ? UNSUPPORTED : FAILED, error);
        return;
    }
    error = reference_check(b->p, b->before, b->after);
    if (!error && small)
        error = run_case(b->p->c, NULL);
    if (error)
        fail(b->r, WRONG, error);
    else
        add(b, who, NULL);
}

/* Every variant that takes the case; a wrong one makes the row wrong. plans, cases: for the contestants to point to. */
static void add_variants(Bout *b, Plan plans[MAX_PEERS], Case cases[MAX_PEERS])
{
    const Case *c = b->p->c;
    const char *name;
    for (int i = 0, n = 0; b->r->verdict == TIMED && (name = wf_variant(op_name(c->op), c->backend, i)) && n < MAX_PEERS; i++) {
        cases[n] = *c;
        plans[n] = *b->p;
        plans[n].c = &cases[n];
        snprintf(cases[n].variant, sizeof cases[n].variant, "%s", name);
        const Contestant who = { .name = name, .call = call_library, .state = &plans[n] };
        if (try_call(b, &who))
            continue;
        const char *error = reference_check(&plans[n++], b->before, b->after);
        if (error)
            fail(b->r, WRONG, error);
        else
            add(b, who, NULL);
    }
}

/* A peer that is far off is left out: its time would mean nothing. Dropout's masks differ by nature. */
static void add_peers(Bout *b, const Peer *const peers[])
{
    for (int i = 0; peers[i] && b->r->verdict == TIMED && b->r->contestants <= MAX_PEERS; i++) {
        Contestant who = { .name = peers[i]->name, .call = peers[i]->call };
        who.state = peers[i]->prepare(b->p, &who.bytes);
        if (!who.state)
            continue;
        const char *error = try_call(b, &who);
        if (!error && b->p->slots)
            error = reference_check_peer(b->p, b->before, b->after);
        if (!error) {
            add(b, who, peers[i]);
            continue;
        }
        fprintf(stderr, "%s leaves out %s %s: %s\n", peers[i]->name, b->r->row->name, op_name(b->p->c->op), error);
        peers[i]->done(who.state);
    }
}

static void time_row(Bout *b, const Options *o, const Peer *const peers[])
{
    static Plan plans[MAX_PEERS];
    static Case cases[MAX_PEERS];
    const char *error;
    plan_fill(b->p, b->before);
    if (!make_sets(&b->timer, b->p, b->before)) {
        fail(b->r, FAILED, "not enough memory");
    } else {
        add_library(b);
        if (o->variants)
            add_variants(b, plans, cases);
        add_peers(b, peers);
        if (b->r->verdict == TIMED && (error = time_all(&b->timer, b->r->who, b->r->contestants)) != NULL)
            fail(b->r, FAILED, error);
    }
    for (int i = 0; i < b->r->contestants; i++)
        if (b->peer[i])
            b->peer[i]->done(b->r->who[i].state);
    free_sets(&b->timer);
}

void row_run(Result *r, const Run *run, const Peer *const peers[])
{
    /* Kept from row to row: where memory is new, its pages cost more than the call. */
    static char *before, *after;
    static size_t size;
    const Options *o = run->options;
    Plan p;
    const char *error = plan_make(&p, &r->row->c);
    if (error) {
        fail(r, FAILED, error);
        return;
    }
    if (p.slab_size > size) {
        free(before);
        free(after);
        before = host_alloc(p.slab_size);
        after = host_alloc(p.slab_size);
        size = before && after ? p.slab_size : 0;
    }
    Bout b = { .r = r, .p = &p, .before = before, .after = after };
    b.timer = (Timer){ .backend = p.c->backend, .cold = o->cold, .threads = o->threads, .min_time = o->min_time };
    if (size)
        time_row(&b, o, peers);
    else
        fail(r, FAILED, "not enough memory");
    r->traffic = traffic_of(&p);
    r->roof = roofline_at(&run->roof, r->traffic.bytes);
    r->peak = roofline_peak(&run->roof);
    r->bound = roofline_bound(&run->roof, &r->traffic);
    plan_free(&p);
}
