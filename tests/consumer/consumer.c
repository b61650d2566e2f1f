/* A program outside the tree, built against an installed welford. C and C++ both accept it; it fails if a call does. */
#include <stdio.h>
#include <string.h>
#include <welford.h>

int main(void)
{
    float x[8] = {1, 2, 3, 4, 5, 5, 5, 5}, y[8];
    wf_layernorm what;
    wf_layernorm_forward_args with;
    wf_exec where;

    memset(&what, 0, sizeof what);
    memset(&with, 0, sizeof with);
    memset(&where, 0, sizeof where);
    what.size = sizeof what;
    what.rows = 2;
    what.cols = 4;
    what.eps = 1e-5;
    with.size = sizeof with;
    with.x = x;
    with.y = y;
    where.size = sizeof where;
    where.backend = WF_CPU;
    if (wf_version() != WF_VERSION || wf_layernorm_forward(&what, &with, &where) != WF_OK) {
        fprintf(stderr, "consumer: version %#x, %s\n", (unsigned)wf_version(), wf_error_detail());
        return 1;
    }
    /* The second row is constant: exactly 0. The first is symmetric about 2.5. */
    return y[4] == 0 && y[7] == 0 && y[0] == -y[3] && y[0] < -1.3f && y[0] > -1.4f ? 0 : 2;
}
