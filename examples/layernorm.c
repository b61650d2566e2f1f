/* LayerNorm of two rows, forward and backward. Build: cc layernorm.c $(pkg-config --cflags --libs welford) */
#include <stdio.h>
#include <stdlib.h>
#include <welford.h>

static void must(wf_status status)
{
    if (status) {
        fprintf(stderr, "%s: %s\n", wf_status_string(status), wf_error_detail());
        exit(1);
    }
}

int main(void)
{
    float x[2][4] = {{1, 2, 3, 4}, {10, 10, 10, 14}}, y[2][4], mean[2], rstd[2];
    float dy[2][4] = {{1, 0, 0, 0}, {0, 0, 0, 1}}, dx[2][4];

    wf_layernorm what = {.size = sizeof what, .rows = 2, .cols = 4, .eps = 1e-5}; /* zero elsewhere: float, no strides */
    wf_exec where = {.size = sizeof where, .backend = WF_CPU};

    size_t forward_size = wf_layernorm_forward_workspace(&what, WF_CPU), size = wf_layernorm_backward_workspace(&what, WF_CPU);
    where.workspace_size = forward_size > size ? forward_size : size;
    where.workspace = malloc(where.workspace_size);

    wf_layernorm_forward_args forward = {.size = sizeof forward, .x = x, .y = y, .mean = mean, .rstd = rstd};
    must(wf_layernorm_forward(&what, &forward, &where));
    wf_layernorm_backward_args backward = {.size = sizeof backward, .dy = dy, .x = x, .mean = mean, .rstd = rstd, .dx = dx};
    must(wf_layernorm_backward(&what, &backward, &where));
    free(where.workspace);

    for (int r = 0; r < 2; r++) {
        printf("row %d: mean %g, rstd %.4f\n  y ", r, mean[r], rstd[r]);
        for (int c = 0; c < 4; c++)
            printf(" %8.4f", y[r][c]);
        printf("\n  dx");
        for (int c = 0; c < 4; c++)
            printf(" %8.4f", dx[r][c]);
        printf("\n");
    }
    return 0;
}
