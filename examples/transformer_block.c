/* A block of a pre-norm transformer (GPT-2), forward and backward. What stands between its matrix products is done in two
 * ways: by calls of their own - dropout, an addition, LayerNorm - and fused, by LayerNorm of a sum. Both must give the same
 * numbers; the bytes that each way moves and its time are printed. The products are plain loops on one thread, with one
 * head of attention and no bias. Build: cc -O3 transformer_block.c $(pkg-config --cflags --libs welford) -lm */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <welford.h>

enum { T = 256, D = 512, H = 4 * D, RUNS = 3 }; /* tokens, width, hidden units */

typedef struct Norm { float gamma[D], beta[D], mean[T], rstd[T], dgamma[D], dbeta[D]; } Norm;
typedef struct Weights { float qkv[3][D * D], out[D * D], up[D * H], down[H * D]; } Weights;
typedef struct Block {
    Weights w, dw;
    Norm    norm[3]; /* before attention, before the MLP, behind the block */
    float   x[T * D], h1[T * D], qkv[3][T * D], share[T * T], mixed[T * D], attention[T * D];
    float   sum1[T * D], h2[T * D], up[T * H], active[T * H], mlp[T * D], sum2[T * D], y[T * D];
    float   dy[T * D], dsum2[T * D], dmlp[T * D], dh2[T * D], dsum1[T * D], dattention[T * D], dh1[T * D], dx[T * D];
    double  moved, seconds; /* by what stands between the products */
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

/* ---- between the products ---- */

static const wf_layernorm plain = {.size = sizeof plain, .rows = T, .cols = D, .eps = 1e-5};
static const wf_layernorm of_dropped = {.size = sizeof of_dropped, .rows = T, .cols = D, .eps = 1e-5, .p = 0.1};

static void add(const float *a, const float *b, float *out)
{
    for (int i = 0; i < T * D; i++)
        out[i] = a[i] + b[i];
}

static void drop(bool backward, unsigned offset, const float *x, float *y)
{
    wf_dropout what = {.size = sizeof what, .n = 1, .c = 1, .hw = T * D, .p = of_dropped.p};
    wf_dropout_args with = {.size = sizeof with, .x = x, .y = y, .seed = 42, .offset = offset};
    must(backward ? wf_dropout_backward(&what, &with, &where) : wf_dropout_forward(&what, &with, &where));
}

static void tally(Block *b, double start, int passes)
{
    b->seconds += now() - start;
    b->moved += (double)passes * T * D * sizeof(float);
}

/* sum = residual + dropout(branch), y = norm(sum) */
static void join(Block *b, bool fused, int i, const float *residual, const float *branch, float *sum, float *y)
{
    static float dropped[T * D];
    Norm *n = &b->norm[i];
    const double start = now();
    wf_layernorm_forward_args with = {.size = sizeof with, .gamma = n->gamma, .beta = n->beta, .y = y, .mean = n->mean,
                                      .rstd = n->rstd};
    if (fused) {
        with.x = branch, with.residual = residual, with.sum = sum, with.seed = 42, with.offset = (unsigned)i;
        must(wf_layernorm_forward(&of_dropped, &with, &where));
        tally(b, start, 4); /* read branch, residual; write sum, y */
    } else {
        drop(false, (unsigned)i, branch, dropped);
        add(residual, dropped, sum);
        with.x = sum;
        must(wf_layernorm_forward(&plain, &with, &where));
        tally(b, start, 2 + 3 + 2);
    }
}

/* dsum: what arrives at the sum from behind, NULL: nothing. dbranch NULL: nothing was added there. */
static void join_backward(Block *b, bool fused, int i, const float *dy, const float *sum, const float *dsum,
                          float *dresidual, float *dbranch)
{
    static float scratch[T * D];
    Norm *n = &b->norm[i];
    const double start = now();
    wf_layernorm_backward_args with = {.size = sizeof with, .dy = dy, .gamma = n->gamma, .mean = n->mean, .rstd = n->rstd,
                                       .dgamma = n->dgamma, .dbeta = n->dbeta};
    if (fused) {
        with.sum = sum, with.dsum = dsum, with.dresidual = dresidual, with.dx = dbranch;
        with.seed = 42, with.offset = (unsigned)i;
        must(wf_layernorm_backward(dbranch ? &of_dropped : &plain, &with, &where));
        tally(b, start, 3 + (dsum != NULL) + (dbranch != NULL)); /* dy, sum, dresidual */
    } else {
        with.x = sum, with.dx = dsum ? scratch : dresidual;
        must(wf_layernorm_backward(&plain, &with, &where));
        if (dsum)
            add(scratch, dsum, dresidual);
        if (dbranch)
            drop(true, (unsigned)i, dresidual, dbranch);
        tally(b, start, 3 + (dsum ? 3 : 0) + (dbranch ? 2 : 0));
    }
}

/* ---- the products ---- */

static void transpose(int m, int n, const float *a, float *out)
{
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            out[j * m + i] = a[i * n + j];
}

/* c[m, n] = or += a[m, k] b[k, n]; 'T': a is [k, m], b is [n, k]. */
static void product(int m, int n, int k, const float *a, char a_how, const float *b, char b_how, float *c, bool accumulate)
{
    static float a_room[T * H > D * H ? T * H : D * H], b_room[T * H > D * H ? T * H : D * H];
    if (a_how == 'T')
        transpose(k, m, a, a_room), a = a_room;
    if (b_how == 'T')
        transpose(n, k, b, b_room), b = b_room;
    if (!accumulate)
        memset(c, 0, (size_t)m * (size_t)n * sizeof *c);
    for (int from = 0; from < k; from += 64) /* 64 rows of b stay in the cache */
        for (int i = 0; i < m; i++)
            for (int l = from; l < k && l < from + 64; l++)
                for (int j = 0; j < n; j++)
                    c[i * n + j] += a[i * k + l] * b[l * n + j];
}

static void attention_forward(Block *b)
{
    for (int i = 0; i < 3; i++)
        product(T, D, D, b->h1, 'N', b->w.qkv[i], 'N', b->qkv[i], false);
    product(T, T, D, b->qkv[0], 'N', b->qkv[1], 'T', b->share, false);
    for (int i = 0; i < T; i++) { /* a token sees itself and those before it */
        float *row = b->share + i * T, total = 0;
        for (int j = 0; j < T; j++)
            total += row[j] = j <= i ? expf(row[j] / sqrtf(D)) : 0;
        for (int j = 0; j < T; j++)
            row[j] /= total;
    }
    product(T, D, T, b->share, 'N', b->qkv[2], 'N', b->mixed, false);
    product(T, D, D, b->mixed, 'N', b->w.out, 'N', b->attention, false);
}

static void attention_backward(Block *b)
{
    static float dmixed[T * D], dqkv[3][T * D], dshare[T * T];
    product(D, D, T, b->mixed, 'T', b->dattention, 'N', b->dw.out, false);
    product(T, D, D, b->dattention, 'N', b->w.out, 'T', dmixed, false);
    product(T, D, T, b->share, 'T', dmixed, 'N', dqkv[2], false);
    product(T, T, D, dmixed, 'N', b->qkv[2], 'T', dshare, false);
    for (int i = 0; i < T; i++) {
        float *d = dshare + i * T, mean = 0;
        for (int j = 0; j < T; j++)
            mean += d[j] * b->share[i * T + j];
        for (int j = 0; j < T; j++)
            d[j] = (d[j] - mean) * b->share[i * T + j] / sqrtf(D);
    }
    product(T, D, T, dshare, 'N', b->qkv[1], 'N', dqkv[0], false);
    product(T, D, T, dshare, 'T', b->qkv[0], 'N', dqkv[1], false);
    for (int i = 0; i < 3; i++) {
        product(D, D, T, b->h1, 'T', dqkv[i], 'N', b->dw.qkv[i], false);
        product(T, D, D, dqkv[i], 'N', b->w.qkv[i], 'T', b->dh1, i > 0);
    }
}

static void mlp_forward(Block *b)
{
    product(T, H, D, b->h2, 'N', b->w.up, 'N', b->up, false);
    for (int i = 0; i < T * H; i++) /* GELU */
        b->active[i] = b->up[i] * 0.5f * (1 + erff(b->up[i] * 0.70710678f));
    product(T, D, H, b->active, 'N', b->w.down, 'N', b->mlp, false);
}

static void mlp_backward(Block *b)
{
    static float dup[T * H];
    product(H, D, T, b->active, 'T', b->dmlp, 'N', b->dw.down, false);
    product(T, H, D, b->dmlp, 'N', b->w.down, 'T', dup, false);
    for (int i = 0; i < T * H; i++) {
        const float u = b->up[i];
        dup[i] *= 0.5f * (1 + erff(u * 0.70710678f)) + u * 0.39894228f * expf(-u * u / 2);
    }
    product(D, H, T, b->h2, 'T', dup, 'N', b->dw.up, false);
    product(T, D, H, dup, 'N', b->w.up, 'T', b->dh2, false);
}

/* ---- the block ---- */

static void step(Block *b, bool fused)
{
    wf_layernorm_forward_args first = {.size = sizeof first, .x = b->x, .gamma = b->norm[0].gamma, .beta = b->norm[0].beta,
                                       .y = b->h1, .mean = b->norm[0].mean, .rstd = b->norm[0].rstd};
    b->moved = b->seconds = 0;
    must(wf_layernorm_forward(&plain, &first, &where));
    attention_forward(b);
    join(b, fused, 1, b->x, b->attention, b->sum1, b->h2);
    mlp_forward(b);
    join(b, fused, 2, b->sum1, b->mlp, b->sum2, b->y);

    join_backward(b, fused, 2, b->dy, b->sum2, NULL, b->dsum2, b->dmlp);
    mlp_backward(b);
    join_backward(b, fused, 1, b->dh2, b->sum1, b->dsum2, b->dsum1, b->dattention);
    attention_backward(b);
    join_backward(b, fused, 0, b->dh1, b->x, b->dsum1, b->dx, NULL);
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
    static Block block[2]; /* unfused, fused */
    const size_t forward = wf_layernorm_forward_workspace(&of_dropped, WF_CPU);
    where.workspace_size = wf_layernorm_backward_workspace(&of_dropped, WF_CPU);
    where.workspace_size = forward > where.workspace_size ? forward : where.workspace_size;
    where.workspace = malloc(where.workspace_size);
    draw((float *)&block[0].w, sizeof(Weights) / sizeof(float), 0, 0.05f);
    draw(block[0].x, T * D, 0, 2);
    draw(block[0].dy, T * D, 0, 1);
    for (int i = 0; i < 3; i++) {
        draw(block[0].norm[i].gamma, D, 1, 0.5f);
        draw(block[0].norm[i].beta, D, 0, 0.5f);
    }
    block[1] = block[0];

    double best[2] = {INFINITY, INFINITY};
    for (int run = 0; run < 2 * RUNS; run++) {
        step(&block[run % 2], run % 2);
        best[run % 2] = fmin(best[run % 2], block[run % 2].seconds);
    }
    free(where.workspace);

    for (int i = 0; i < 2; i++)
        printf("%-8s %5.2f MB in %6.1f us between the products\n", i ? "fused" : "unfused", block[i].moved * 1e-6, best[i] * 1e6);
    printf("saved    %.0f %% of the bytes, %.0f %% of the time\n", 100 * (1 - block[1].moved / block[0].moved),
           100 * (1 - best[1] / best[0]));
    const double y = apart(block[0].y, block[1].y, T * D), dx = apart(block[0].dx, block[1].dx, T * D);
    const double dw = apart((float *)&block[0].dw, (float *)&block[1].dw, sizeof(Weights) / sizeof(float));
    printf("apart by %g of the largest y, %g of dx, %g of the weights' gradients\n", y, dx, dw);
    return y < 1e-5 && dx < 1e-5 && dw < 1e-5 ? 0 : 1;
}
