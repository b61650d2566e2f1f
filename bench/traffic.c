/* traffic.c - the bytes that a call must move: each activation once; parameters and statistics aside. */
#include <string.h>

#include "bench.h"
#include "data.h"

Traffic traffic_of(const Case *c)
{
    const Norm norm = op_norm(c->op);
    const bool rows = norm == LAYERNORM || norm == RMSNORM, backward = op_is_backward(c->op);
    const double e = (double)dtype_size(c->x);
    const double count = rows ? (double)c->rows * (double)c->cols : (double)c->n * (double)c->c * (double)c->hw;
    const bool frozen = (norm == BATCHNORM || norm == INSTANCENORM) && backward && c->flags & WF_FROZEN;
    Traffic t = { 0 };
    int passes = 2, again = 0;
    const char *what = "read x, write y";
    if (norm == DROPOUT) {
        what = backward ? "read dy, write dx" : "read x, write y";
    } else if (backward && c->null & NULL_DX) {
        what = "read x, dy";
    } else if (backward && frozen && c->null & NULL_DGAMMA && c->null & NULL_DBETA) {
        what = "read dy, write dx";
    } else if (backward) {
        passes = 3;
        again = frozen ? 0 : 2;
        what = "read x, dy; write dx";
    } else {
        again = op_is_infer(c->op) ? 0 : 1;
    }
    t.bytes = passes * e * count;
    double mask = 0;
    if (norm == DROPOUT && !backward && !(c->null & NULL_MASK))
        mask = (c->flags & WF_FEATURES ? (double)c->n * (double)c->c : count) / 8;
    t.bytes += mask;
    t.bytes_two_reads = again ? t.bytes + again * e * count : 0;
    snprintf(t.formula, sizeof t.formula, "%s: %d x %g bytes x %.0f elements%s%s", what, passes, e, count,
             mask > 0 ? " + mask" : "", again == 2 ? "; x, dy twice: 5 x" : again ? "; x twice: 3 x" : "");
    return t;
}
