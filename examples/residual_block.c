/* A residual block of convolutions (ResNet), forward and backward: y = relu(x + norm(conv(relu(norm(conv(x)))))). What stands
 * between its convolutions is done in two ways: by BatchNorm and plain loops for the addition and ReLU, and fused, by
 * BatchNorm alone. Both must give the same numbers; the bytes that each way moves and its time are printed.
 * Build: cc -O3 residual_block.c $(pkg-config --cflags --libs welford) -lm */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <welford.h>

enum { N = 8, C = 32, SIDE = 32, HW = SIDE * SIDE, SIZE = N * C * HW, TAPS = C * 9, RUNS = 3 };

typedef struct Norm { float gamma[C], beta[C], mean[C], mean_lo[C], rstd[C], dgamma[C], dbeta[C]; } Norm;
typedef struct Block {
    Norm   norm[2];
    float  weight[2][C * TAPS], dweight[2][C * TAPS];
    float  x[SIZE], conv[2][SIZE], middle[SIZE], y[SIZE];
    float  dy[SIZE], dconv[2][SIZE], dmiddle[SIZE], dskip[SIZE], dx[SIZE];
    double moved, seconds; /* by what stands between the convolutions */
} Block;

static wf_exec where = {.size = sizeof where, .backend = WF_CPU, .threads = 1};

static void must(wf_status status)
{
    if (status) {
        fprintf(stderr, "%s: %s\n", wf_status_string(status), wf_error_detail());
        exit(1);
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- between the convolutions ---- */

static wf_batchnorm batchnorm(bool fused)
{
    return (wf_batchnorm){.size = sizeof(wf_batchnorm), .n = N, .c = C, .hw = HW, .eps = 1e-5,
                          .activation = fused ? WF_RELU : WF_ACTIVATION_NONE};
}

static void tally(Block *b, double start, int passes)
{
    b->seconds += now() - start;
    b->moved += (double)passes * SIZE * sizeof(float);
}

/* y = relu(norm(conv) + skip); skip NULL: 0 */
static void end_layer(Block *b, bool fused, int i, const float *skip, float *y)
{
    Norm              *n = &b->norm[i];
    const wf_batchnorm what = batchnorm(fused);
    const double       start = now();
    wf_batchnorm_train_args with = {.size = sizeof with, .x = b->conv[i], .gamma = n->gamma, .beta = n->beta, .y = y,
                                    .mean = n->mean, .mean_lo = n->mean_lo, .rstd = n->rstd};
    with.residual = fused ? skip : NULL;
    must(wf_batchnorm_train(&what, &with, &where));
    if (!fused)
        for (int j = 0; j < SIZE; j++) {
            const float z = skip ? y[j] + skip[j] : y[j];
            y[j] = z > 0 ? z : 0;
        }
    tally(b, start, 2 + (skip != NULL) + (fused ? 0 : 2)); /* conv, skip, y; y again, twice */
}

/* dskip NULL: there was no skip. */
static void end_layer_backward(Block *b, bool fused, int i, const float *dy, const float *y, float *dskip)
{
    static float       scratch[SIZE];
    Norm              *n = &b->norm[i];
    float *const       dz = dskip ? dskip : scratch;
    const wf_batchnorm what = batchnorm(fused);
    const double       start = now();
    wf_batchnorm_backward_args with = {.size = sizeof with, .dy = dy, .x = b->conv[i], .gamma = n->gamma, .mean = n->mean,
                                       .mean_lo = n->mean_lo, .rstd = n->rstd, .dx = b->dconv[i], .dgamma = n->dgamma,
                                       .dbeta = n->dbeta};
    if (fused) {
        with.beta = n->beta;
        with.y = dskip ? y : NULL; /* without a skip ReLU's decisions come from x, which is read anyway */
        with.dresidual = dskip;
    } else {
        for (int j = 0; j < SIZE; j++)
            dz[j] = y[j] > 0 ? dy[j] : 0;
        with.dy = dz;
    }
    must(wf_batchnorm_backward(&what, &with, &where));
    tally(b, start, fused ? 3 + 2 * (dskip != NULL) : 6); /* dy, conv, dconv, with a skip y and dskip; unfused dz twice */
}

/* ---- convolutions, 3 x 3, padded by zeros ---- */

/* Rows, or columns, [from, to) of y that have an x so far below, or to the right. */
static void reach(int shift, int *from, int *to)
{
    *from = shift < 0 ? -shift : 0;
    *to = shift > 0 ? SIDE - shift : SIDE;
}

/* For each picture out and in, and each tap between them: 'y': y += w x; 'x': x += w y; 'w': w += sum of x y. */
static void convolve(char what, float *x, float *w, float *y)
{
    for (int i = 0; i < N * C * TAPS; i++) {
        const int t = i % 9, in = i / 9 % C, out = i / TAPS % C, sample = i / TAPS / C;
        float    *a = x + (sample * C + in) * HW, *b = y + (sample * C + out) * HW, *tap = w + out * TAPS + in * 9 + t;
        const int down = t / 3 - 1, right = t % 3 - 1;
        int       top, bottom, left, end;
        float     total = 0;
        reach(down, &top, &bottom);
        reach(right, &left, &end);
        for (int row = top; row < bottom; row++) {
            float *const from = a, *const to = b + row * SIDE;
            const int    at = (row + down) * SIDE + right;
            for (int col = left; col < end; col++)
                if (what == 'y')
                    to[col] += *tap * from[at + col];
                else if (what == 'x')
                    from[at + col] += *tap * to[col];
                else
                    total += from[at + col] * to[col];
        }
        if (what == 'w')
            *tap += total;
    }
}

/* ---- the block ---- */

static void step(Block *b, bool fused)
{
    b->moved = b->seconds = 0;
    memset(b->conv, 0, sizeof b->conv);
    memset(b->dmiddle, 0, sizeof b->dmiddle);
    memset(b->dweight, 0, sizeof b->dweight);
    convolve('y', b->x, b->weight[0], b->conv[0]);
    end_layer(b, fused, 0, NULL, b->middle);
    convolve('y', b->middle, b->weight[1], b->conv[1]);
    end_layer(b, fused, 1, b->x, b->y);

    end_layer_backward(b, fused, 1, b->dy, b->y, b->dskip);
    convolve('w', b->middle, b->dweight[1], b->dconv[1]);
    convolve('x', b->dmiddle, b->weight[1], b->dconv[1]);
    end_layer_backward(b, fused, 0, b->dmiddle, b->middle, NULL);
    convolve('w', b->x, b->dweight[0], b->dconv[0]);
    memcpy(b->dx, b->dskip, sizeof b->dx);
    convolve('x', b->dx, b->weight[0], b->dconv[0]);
}

static void draw(float *out, int count, float center, float size) /* uniform */
{
    for (int i = 0; i < count; i++)
        out[i] = center + size * (2 * ((float)rand() / (float)RAND_MAX) - 1);
}

/* The largest difference of two arrays over the largest value. */
static double apart(const float *a, const float *b, int count)
{
    double most = 0, difference = 0;
    for (int i = 0; i < count; i++) {
        most = fmax(most, fabs((double)a[i]));
        difference = fmax(difference, fabs((double)a[i] - b[i]));
    }
    return isfinite(most) && most > 0 ? difference / most : INFINITY;
}

int main(void)
{
    static Block       block[2]; /* unfused, fused */
    const wf_batchnorm what = batchnorm(true);
    const size_t       train = wf_batchnorm_train_workspace(&what, WF_CPU);
    where.workspace_size = wf_batchnorm_backward_workspace(&what, WF_CPU);
    where.workspace_size = train > where.workspace_size ? train : where.workspace_size;
    where.workspace = malloc(where.workspace_size);
    draw((float *)block[0].weight, 2 * C * TAPS, 0, 0.05f);
    draw(block[0].x, SIZE, 0, 1);
    draw(block[0].dy, SIZE, 0, 1);
    for (int i = 0; i < 2; i++) {
        draw(block[0].norm[i].gamma, C, 1, 0.5f);
        draw(block[0].norm[i].beta, C, 0, 0.5f);
    }
    block[1] = block[0];

    double best[2] = {INFINITY, INFINITY};
    for (int run = 0; run < 2 * RUNS; run++) {
        step(&block[run % 2], run % 2);
        best[run % 2] = fmin(best[run % 2], block[run % 2].seconds);
    }
    free(where.workspace);

    for (int i = 0; i < 2; i++)
        printf("%-8s %5.2f MB in %6.1f us between the convolutions\n", i ? "fused" : "unfused", block[i].moved * 1e-6,
               best[i] * 1e6);
    printf("saved    %.0f %% of the bytes, %.0f %% of the time\n", 100 * (1 - block[1].moved / block[0].moved),
           100 * (1 - best[1] / best[0]));
    const double y = apart(block[0].y, block[1].y, SIZE), dx = apart(block[0].dx, block[1].dx, SIZE);
    const double dw = apart((float *)block[0].dweight, (float *)block[1].dweight, 2 * C * TAPS);
    printf("apart by %g of the largest y, %g of dx, %g of the weights' gradients\n", y, dx, dw);
    return y < 1e-5 && dx < 1e-5 && dw < 1e-5 ? 0 : 1;
}
