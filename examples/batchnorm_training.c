/* BatchNorm as a network uses it: training steps that move the running statistics, backward passes that train gamma and
 * beta, then inference with what was learnt. The layer is to turn channels of mean 3, sd 2 into mean 1, sd 0.5. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <welford.h>

enum { N = 8, C = 3, HW = 16, STEPS = 300 };

static void must(wf_status status)
{
    if (status) {
        fprintf(stderr, "%s: %s\n", wf_status_string(status), wf_error_detail());
        exit(1);
    }
}

/* A fresh batch [N, C, HW], near enough to normal: the sum of 12 uniform numbers has variance 1. */
static void draw(float *x)
{
    for (int i = 0; i < N * C * HW; i++) {
        double sum = -6;
        for (int k = 0; k < 12; k++)
            sum += rand() / (RAND_MAX + 1.0);
        x[i] = (float)(3 + 2 * sum);
    }
}

int main(void)
{
    static float x[N * C * HW], y[N * C * HW], dy[N * C * HW];
    float gamma[C] = {1, 1, 1}, beta[C] = {0}, dgamma[C], dbeta[C], mean[C], rstd[C];
    float running_mean[C] = {0}, running_var[C] = {1, 1, 1};

    wf_batchnorm what = {.size = sizeof what, .n = N, .c = C, .hw = HW, .eps = 1e-5, .momentum = 0.1};
    /* One workspace, large enough for all that this program calls. */
    size_t sizes[] = {wf_batchnorm_train_workspace(&what, WF_CPU), wf_batchnorm_backward_workspace(&what, WF_CPU),
                      wf_batchnorm_infer_workspace(&what, WF_CPU)};
    size_t size = 1;
    for (int i = 0; i < 3; i++)
        size = sizes[i] > size ? sizes[i] : size;
    void *workspace = malloc(size);
    wf_exec where = {.size = sizeof where, .backend = WF_CPU, .workspace = workspace, .workspace_size = size};

    wf_batchnorm_train_args train = {.size = sizeof train, .x = x, .gamma = gamma, .beta = beta, .y = y, .mean = mean,
                                     .rstd = rstd, .running_mean_in = running_mean, .running_var_in = running_var,
                                     .running_mean_out = running_mean, .running_var_out = running_var};
    wf_batchnorm_backward_args backward = {.size = sizeof backward, .dy = dy, .x = x, .gamma = gamma, .mean = mean,
                                           .rstd = rstd, .dgamma = dgamma, .dbeta = dbeta}; /* dx is not wanted here */
    for (int step = 0; step < STEPS; step++) {
        draw(x);
        must(wf_batchnorm_train(&what, &train, &where));
        /* loss = average of (y - target)^2 / 2 with target = 1 + 0.5 (x - 3) / 2 */
        for (int i = 0; i < N * C * HW; i++)
            dy[i] = (y[i] - (1 + 0.5f * (x[i] - 3) / 2)) / (N * HW);
        must(wf_batchnorm_backward(&what, &backward, &where));
        for (int c = 0; c < C; c++) {
            gamma[c] -= 0.1f * dgamma[c];
            beta[c] -= 0.1f * dbeta[c];
        }
    }

    draw(x);
    wf_batchnorm_infer_args infer = {.size = sizeof infer, .x = x, .gamma = gamma, .beta = beta,
                                     .running_mean = running_mean, .running_var = running_var, .y = y};
    must(wf_batchnorm_infer(&what, &infer, &where));
    printf("channel  running mean  running sd   gamma    beta\n");
    for (int c = 0; c < C; c++)
        printf("%7d  %12.3f  %10.3f  %6.3f  %6.3f\n", c, running_mean[c], sqrt(running_var[c]), gamma[c], beta[c]);
    printf("x[0] = %.3f becomes y[0] = %.3f (wanted: %.3f)\n", x[0], y[0], 1 + 0.5 * (x[0] - 3) / 2);
    free(workspace);
    return 0;
}
