/* Inference without the norms: BatchNorm folded into the convolution before it, LayerNorm's gamma and beta into the linear
 * layer behind it. Prints how far the folded layers are from those they replace.
 * Build: cc fold.c $(pkg-config --cflags --libs welford) -lm */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <welford.h>

enum { IN = 16, OUT = 32, SIDE = 8, K = 3, PIXELS = SIDE * SIDE, TAPS = IN * K * K, ROWS = 5 };

static float image[IN * PIXELS], kernel[OUT * TAPS], folded_kernel[OUT * TAPS], conv[OUT * PIXELS], folded_conv[OUT * PIXELS];
static float x[ROWS * IN], xhat[ROWS * IN], weight[OUT * IN], folded_weight[OUT * IN], y[ROWS * OUT], folded_y[ROWS * OUT];
static float bias[OUT], folded_bias[OUT], scale[OUT], shift[OUT], mean[OUT], var[OUT];
static char  workspace[4096];

static void must(wf_status status)
{
    if (status) {
        fprintf(stderr, "%s: %s\n", wf_status_string(status), wf_error_detail());
        exit(1);
    }
}

static void draw(float *to, int count, float low, float high)
{
    for (int i = 0; i < count; i++)
        to[i] = low + (high - low) * (float)(rand() / (RAND_MAX + 1.0));
}

static void convolve(const float *weights, const float *biases, float *out) /* padded by zeros to the same size */
{
    for (int o = 0; o < OUT; o++)
        for (int p = 0; p < PIXELS; p++) {
            float sum = biases[o];
            for (int t = 0; t < TAPS; t++) {
                const int row = p / SIDE + t / K % K - K / 2, col = p % SIDE + t % K - K / 2;
                if (row >= 0 && row < SIDE && col >= 0 && col < SIDE)
                    sum += weights[o * TAPS + t] * image[t / (K * K) * PIXELS + row * SIDE + col];
            }
            out[o * PIXELS + p] = sum;
        }
}

static void linear(const float *in, const float *weights, const float *biases, float *out)
{
    for (int i = 0; i < ROWS * OUT; i++) {
        out[i] = biases[i % OUT];
        for (int k = 0; k < IN; k++)
            out[i] += in[i / OUT * IN + k] * weights[i % OUT * IN + k];
    }
}

static void compare(const char *what, const float *a, const float *b, int count)
{
    float apart = 0, largest = 0;
    for (int i = 0; i < count; i++) {
        apart = fmaxf(apart, fabsf(a[i] - b[i]));
        largest = fmaxf(largest, fabsf(a[i]));
    }
    printf("%-24s largest output %8.4f, largest difference %.1e\n", what, largest, apart);
}

int main(void)
{
    wf_exec where = {.size = sizeof where, .backend = WF_CPU, .workspace = workspace, .workspace_size = sizeof workspace};
    draw(image, IN * PIXELS, -1, 1), draw(kernel, OUT * TAPS, -.1f, .1f), draw(x, ROWS * IN, 2, 5);
    draw(weight, OUT * IN, -.5f, .5f), draw(bias, OUT, -1, 1), draw(scale, OUT, .5f, 1.5f), draw(shift, OUT, -1, 1);
    draw(mean, OUT, -1, 1), draw(var, OUT, .1f, 1);

    /* Convolution, BatchNorm with its running statistics; then the convolution alone. */
    wf_batchnorm norm = {.size = sizeof norm, .n = 1, .c = OUT, .hw = PIXELS, .eps = 1e-5};
    wf_batchnorm_infer_args infer = {.size = sizeof infer, .x = conv, .gamma = scale, .beta = shift, .running_mean = mean,
                                     .running_var = var, .y = conv};
    wf_fold fold = {.size = sizeof fold, .rows = OUT, .cols = TAPS, .eps = 1e-5};
    wf_fold_args parts = {.size = sizeof parts, .weight = kernel, .bias = bias, .gamma = scale, .beta = shift, .mean = mean,
                          .var = var, .folded_weight = folded_kernel, .folded_bias = folded_bias};
    convolve(kernel, bias, conv);
    must(wf_batchnorm_infer(&norm, &infer, &where));
    must(wf_fold_batchnorm(&fold, &parts, &where));
    convolve(folded_kernel, folded_bias, folded_conv);
    compare("convolution + BatchNorm", conv, folded_conv, OUT * PIXELS);

    /* LayerNorm, linear; then LayerNorm without gamma and beta. */
    wf_layernorm layer = {.size = sizeof layer, .rows = ROWS, .cols = IN, .eps = 1e-5};
    wf_layernorm_forward_args forward = {.size = sizeof forward, .x = x, .gamma = scale, .beta = shift, .y = xhat};
    must(wf_layernorm_forward(&layer, &forward, &where));
    linear(xhat, weight, bias, y);
    fold = (wf_fold){.size = sizeof fold, .rows = OUT, .cols = IN};
    parts.weight = weight, parts.folded_weight = folded_weight;
    must(wf_fold_layernorm(&fold, &parts, &where));
    forward.gamma = forward.beta = NULL;
    must(wf_layernorm_forward(&layer, &forward, &where));
    linear(xhat, folded_weight, folded_bias, folded_y);
    compare("LayerNorm + linear", y, folded_y, ROWS * OUT);
    return 0;
}
