/* traffic.c - the bytes that a call must move: each activation once; parameters and statistics aside. */
#include <string.h>

#include "bench.h"
#include "data.h"

typedef struct Role { Tensor which; const char *name; } Role;

static const Role read_forward[] = { { T_X, "x" }, { T_RESIDUAL, "residual" }, { T_COUNT, NULL } };
static const Role written_forward[] = { { T_SUM, "sum" }, { T_Y, "y" }, { T_COUNT, NULL } };
static const Role read_backward[] = { { T_X, "x" }, { T_SUM, "sum" }, { T_DY, "dy" }, { T_DSUM, "dsum" },
                                      { T_RESIDUAL, "residual" }, { T_Y, "y" }, { T_COUNT, NULL } };
static const Role written_backward[] = { { T_DRESIDUAL, "dresidual" }, { T_DX, "dx" }, { T_COUNT, NULL } };

/* Bytes of these tensors, whose names and number, by bytes of an element, are noted. */
static double passes(const Plan *p, const Role *roles, const char *verb, int count[9], char *what, size_t size)
{
    double bytes = 0;
    for (; roles->name; roles++) {
        const Extent *t = &p->t[roles->which];
        if (!t->given)
            continue;
        const size_t at = strlen(what), e = dtype_size(t->dtype);
        snprintf(what + at, size - at, "%s%s%s", bytes > 0 ? ", " : verb, bytes > 0 ? "" : " ", roles->name);
        bytes += (double)p->count * (double)e;
        count[e]++;
    }
    return bytes;
}

/* What is normalized, once more; backward dy too, and what z is had from. A sum that is not kept is made again. */
static double read_again(const Plan *p)
{
    const bool backward = op_is_backward(p->c->op);
    if (!p->slots || p->frozen || (backward && !p->t[T_DX].given && !p->t[T_DRESIDUAL].given))
        return 0;
    const Tensor x = p->t[T_SUM].given ? T_SUM : T_X;
    size_t e = dtype_size(p->t[x].dtype);
    e += backward ? dtype_size(p->t[T_DY].dtype) : 0;
    e += backward && p->t[T_Y].given ? dtype_size(p->t[T_Y].dtype) : 0;
    e += (backward || case_adds(p->c)) && x == T_X && p->t[T_RESIDUAL].given ? dtype_size(p->t[T_RESIDUAL].dtype) : 0;
    return (double)p->count * (double)e;
}

Traffic traffic_of(const Plan *p)
{
    const bool backward = op_is_backward(p->c->op);
    int count[9] = { 0 }; /* by bytes of an element */
    Traffic t = { 0 };
    const Role *reads = backward ? read_backward : read_forward;
    /* Nothing but dx, with statistics that are constants: a product of dy alone. */
    if (backward && p->frozen && !p->t[T_DGAMMA].given && !p->t[T_DBETA].given && !p->t[T_Z].given)
        reads++;
    t.read = passes(p, reads, "read", count, t.formula, sizeof t.formula);
    t.written = passes(p, backward ? written_backward : written_forward, "; write", count, t.formula, sizeof t.formula);
    t.again = read_again(p);
    const char *joint = ": ";
    for (int e = 1; e < 9; e++) {
        const size_t at = strlen(t.formula);
        if (count[e])
            snprintf(t.formula + at, sizeof t.formula - at, "%s%d x %d", joint, count[e], e), joint = " + ";
    }
    const size_t at = strlen(t.formula);
    snprintf(t.formula + at, sizeof t.formula - at, " bytes x %lld elements%s", (long long)p->count,
             p->t[T_MASK].given ? " + mask" : "");
    *(backward ? &t.read : &t.written) += (double)p->t[T_MASK].size;
    t.bytes = t.read + t.written;
    return t;
}
