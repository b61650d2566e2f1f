/* test_onnx.c - the ONNX project's own node tests, from Debian's package libonnx-testdata, for the operators welford
 * has. Every folder is looked at: one whose graph uses one of these operators, or whose name says so, is run or is
 * named below with the reason why not. WELFORD_ONNX_DATA names another data folder, WELFORD_ONNX_CASE one to run. */
#include "onnx.h"

#include <check.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "welford.h"

Suite *onnx_suite(void);

#define PACKAGE "libonnx-testdata"

enum { EXPECTED_RUNS = 39, EXPECTED_SKIPS = 23, MAX_CASES = 128, PATH_SIZE = 512, MAX_FILES = 8 };

static const char *const groups[] = { "node", "pytorch-converted", "pytorch-operator" };

static const struct { const char *name, *reason; } skips[] = {
    { "test_training_dropout", "its mask comes from NumPy's generator" },
    { "test_training_dropout_default", "its mask comes from NumPy's generator" },
    { "test_training_dropout_default_mask", "its mask comes from NumPy's generator" },
    { "test_training_dropout_mask", "its mask comes from NumPy's generator" },
};
/* Skipped too: the operator spelled out in others, with the data of the folder whose name lacks this ending. */
static const char expanded[] = "_expanded";

typedef struct OnnxCase {
    const char *group;
    char        name[128];
} OnnxCase;

static OnnxCase runs[MAX_CASES], skipped[MAX_CASES], unlisted[MAX_CASES];
static int      run_count, skip_count, unlisted_count;

typedef struct Operator {
    const char *op_type;
    void (*run)(const char *folder, const OnnxNode *node, const char *variant);
    const char *variants_of; /* each variant of this operation runs the case */
} Operator;

static void run_batchnorm(const char *folder, const OnnxNode *node, const char *variant);
static void run_instancenorm(const char *folder, const OnnxNode *node, const char *variant);
static void run_layernorm(const char *folder, const OnnxNode *node, const char *variant);
static void run_dropout(const char *folder, const OnnxNode *node, const char *variant);

static const Operator operators[] = {
    { "BatchNormalization", run_batchnorm, "batchnorm_train" },
    { "InstanceNormalization", run_instancenorm, "instancenorm_train" },
    { "LayerNormalization", run_layernorm, "layernorm_forward" },
    { "Dropout", run_dropout, "dropout_forward" },
};
enum { OPERATORS = sizeof operators / sizeof *operators };

static const Operator *find_operator(const char *op_type)
{
    for (int i = 0; i < OPERATORS; i++)
        if (strcmp(operators[i].op_type, op_type) == 0)
            return &operators[i];
    return NULL;
}

static const char *data_folder(void)
{
    const char *folder = getenv("WELFORD_ONNX_DATA");
    return folder != NULL && *folder != '\0' ? folder : "/usr/share/libonnx-testdata/data";
}

static void case_folder(char path[PATH_SIZE], const OnnxCase *c)
{
    snprintf(path, PATH_SIZE, "%s/%s/%s", data_folder(), c->group, c->name);
}

/* ---- which folders ---- */

static bool ends_in(const char *name, const char *end)
{
    const size_t size = strlen(name), end_size = strlen(end);
    return size >= end_size && strcmp(name + size - end_size, end) == 0;
}

static bool name_says_so(const char *name)
{
    return strncmp(name, "test_batchnorm", 14) == 0 || strncmp(name, "test_BatchNorm", 14) == 0 ||
           strncmp(name, "test_instancenorm", 17) == 0 || strncmp(name, "test_InstanceNorm", 17) == 0 ||
           strncmp(name, "test_layer_norm", 15) == 0 || strncmp(name, "test_LayerNorm", 14) == 0 ||
           strstr(name, "dropout") != NULL || strstr(name, "Dropout") != NULL;
}

static bool is_skipped(const char *name)
{
    for (size_t i = 0; i < sizeof skips / sizeof *skips; i++)
        if (strcmp(skips[i].name, name) == 0)
            return true;
    return ends_in(name, expanded);
}

static void sort_case(const OnnxCase *c)
{
    char path[PATH_SIZE + 16];
    case_folder(path, c);
    strcat(path, "/model.onnx");
    OnnxModel  model;
    const bool read = onnx_load_model(path, &model);
    const bool ours = read && find_operator(model.node.op_type) != NULL;
    if (!ours && !name_says_so(c->name))
        goto done;
    if (is_skipped(c->name))
        skipped[skip_count++] = *c;
    else if (ours && model.nodes == 1)
        runs[run_count++] = *c;
    else
        unlisted[unlisted_count++] = *c;
done:
    if (read)
        onnx_free_model(&model);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const OnnxCase *)a)->name, ((const OnnxCase *)b)->name);
}

/* Reads files only, so that the suite may call it in the runner's own process. */
static void scan(void)
{
    const char *only = getenv("WELFORD_ONNX_CASE");
    run_count = skip_count = unlisted_count = 0;
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        char path[PATH_SIZE];
        snprintf(path, sizeof path, "%s/%s", data_folder(), groups[i]);
        DIR *folder = opendir(path);
        if (folder == NULL)
            continue;
        for (const struct dirent *entry; (entry = readdir(folder)) != NULL;) {
            OnnxCase c = { groups[i], "" };
            if (strncmp(entry->d_name, "test_", 5) != 0 || strlen(entry->d_name) >= sizeof c.name)
                continue;
            if (only != NULL && strcmp(only, entry->d_name) != 0)
                continue;
            if (run_count == MAX_CASES || skip_count == MAX_CASES || unlisted_count == MAX_CASES)
                break;
            strcpy(c.name, entry->d_name);
            sort_case(&c);
        }
        closedir(folder);
    }
    qsort(runs, (size_t)run_count, sizeof *runs, by_name);
}

/* ---- one folder's tensors ---- */

typedef struct Data {
    OnnxTensor in[MAX_FILES], out[MAX_FILES]; /* data NULL = not there */
} Data;

static void load_data(const char *folder, Data *data)
{
    *data = (Data){ .in = { { .data = NULL } } };
    for (int i = 0; i < MAX_FILES; i++) {
        char path[PATH_SIZE + 64];
        snprintf(path, sizeof path, "%s/test_data_set_0/input_%d.pb", folder, i);
        onnx_load_tensor(path, &data->in[i]);
        snprintf(path, sizeof path, "%s/test_data_set_0/output_%d.pb", folder, i);
        onnx_load_tensor(path, &data->out[i]);
    }
    ck_assert_msg(data->in[0].data != NULL && data->out[0].data != NULL, "%s: no input_0.pb or no output_0.pb", folder);
}

/* Graphs traced by PyTorch keep their parameters inside the model: they become further inputs. */
static void load_initializers(const char *folder, const OnnxNode *node, Data *data)
{
    char      path[PATH_SIZE + 16];
    OnnxModel model;
    snprintf(path, sizeof path, "%s/model.onnx", folder);
    ck_assert_msg(onnx_load_model(path, &model), "%s cannot be read", path);
    for (int i = 0; i < node->inputs; i++)
        for (int k = 0; k < model.initializers; k++)
            if (strcmp(node->input[i], model.initializer[k].name) == 0) {
                ck_assert_msg(data->in[i].data == NULL, "%s: input %d given twice", folder, i);
                data->in[i] = model.initializer[k];
                model.initializer[k].data = NULL;
            }
    onnx_free_model(&model);
}

static void free_data(Data *data)
{
    for (int i = 0; i < MAX_FILES; i++) {
        onnx_free_tensor(&data->in[i]);
        onnx_free_tensor(&data->out[i]);
    }
}

static void need(const char *folder, const OnnxTensor *t, int type, int64_t count)
{
    ck_assert_msg(t->data != NULL && t->type == type && t->count == count,
                  "%s: tensor '%s' has type %d, %lld elements; expected type %d, %lld elements", folder, t->name,
                  t->type, (long long)t->count, type, (long long)count);
}

/* A buffer for what the library is to write, filled with a value that no test expects. */
static float *new_output(int64_t count)
{
    float *buffer = malloc((size_t)count * sizeof *buffer);
    ck_assert_ptr_nonnull(buffer);
    for (int64_t i = 0; i < count; i++)
        buffer[i] = NAN;
    return buffer;
}

/* The command that runs one case alone. */
#define REPEAT "\n  WELFORD_ONNX_CASE=%s build/tests/check onnx"
static const char *last_part(const char *folder)
{
    return strrchr(folder, '/') + 1;
}

/* The expected values were computed by NumPy in float: its error is some 1e-6 of the tensor's scale, which is 1. ONNX's
 * own runner allows rtol = 1e-3. */
static void compare(const char *folder, const char *variant, const char *what, const float *got,
                    const OnnxTensor *expected)
{
    const float *want = expected->data;
    for (int64_t i = 0; i < expected->count; i++) {
        const double error = fabs((double)got[i] - want[i]), bar = 1e-6 + 1e-5 * fabs((double)want[i]);
        ck_assert_msg(error <= bar, "%s (variant %s): %s[%lld] is %.9g, expected %.9g" REPEAT, folder,
                      variant ? variant : "default", what, (long long)i, got[i], want[i], last_part(folder));
    }
}

/* WF_OK, or WF_UNSUPPORTED by a variant that was asked for: false, and the caller has nothing to compare. */
static bool accepted(const char *folder, const char *variant, wf_status status)
{
    if (variant != NULL && status == WF_UNSUPPORTED)
        return false;
    ck_assert_msg(status == WF_OK, "%s (variant %s): %s, %s" REPEAT, folder, variant ? variant : "default",
                  wf_status_string(status), wf_error_detail(), last_part(folder));
    return true;
}

static wf_exec execution(const char *variant, size_t workspace_size)
{
    wf_exec where = { .size = sizeof where, .backend = WF_CPU, .variant = variant, .workspace_size = workspace_size };
    where.workspace = workspace_size > 0 ? malloc(workspace_size) : NULL;
    ck_assert(workspace_size == 0 || where.workspace != NULL);
    return where;
}

static int64_t product(const OnnxTensor *t, int begin, int end)
{
    int64_t p = 1;
    for (int i = begin; i < end; i++)
        p *= t->dims[i];
    return p;
}

/* ---- the operators ---- */

static void run_batchnorm(const char *folder, const OnnxNode *node, const char *variant)
{
    Data data;
    load_data(folder, &data);
    load_initializers(folder, node, &data);
    const OnnxTensor *x = &data.in[0];
    const int64_t     n = x->dims[0], c = x->dims[1], hw = product(x, 2, x->rank);
    need(folder, x, ONNX_FLOAT, n * c * hw);
    for (int i = 1; i < 5; i++)
        need(folder, &data.in[i], ONNX_FLOAT, c);
    float *y = new_output(x->count), *mean = new_output(c), *var = new_output(c);

    const wf_batchnorm what = { .size = sizeof what, .x_dtype = WF_F32, .w_dtype = WF_F32, .layout = WF_NCHW,
                                .flags = WF_BIASED, .n = n, .c = c, .hw = hw, .eps = node->epsilon,
                                .momentum = 1.0 - node->momentum };
    wf_status status;
    wf_exec   where;
    if (node->training_mode) {
        where = execution(variant, wf_batchnorm_train_workspace(&what, WF_CPU));
        const wf_batchnorm_train_args with = { .size = sizeof with, .x = x->data, .gamma = data.in[1].data,
                                               .beta = data.in[2].data, .running_mean_in = data.in[3].data,
                                               .running_var_in = data.in[4].data, .running_mean_out = mean,
                                               .running_var_out = var, .y = y };
        status = wf_batchnorm_train(&what, &with, &where);
    } else {
        where = execution(variant, wf_batchnorm_infer_workspace(&what, WF_CPU));
        const wf_batchnorm_infer_args with = { .size = sizeof with, .x = x->data, .gamma = data.in[1].data,
                                               .beta = data.in[2].data, .running_mean = data.in[3].data,
                                               .running_var = data.in[4].data, .y = y };
        status = wf_batchnorm_infer(&what, &with, &where);
    }
    if (accepted(folder, variant, status)) {
        need(folder, &data.out[0], ONNX_FLOAT, x->count);
        compare(folder, variant, "y", y, &data.out[0]);
        if (node->training_mode) {
            need(folder, &data.out[1], ONNX_FLOAT, c);
            need(folder, &data.out[2], ONNX_FLOAT, c);
            compare(folder, variant, "running mean", mean, &data.out[1]);
            compare(folder, variant, "running variance", var, &data.out[2]);
        }
    }
    free(where.workspace);
    free(y);
    free(mean);
    free(var);
    free_data(&data);
}

static void run_instancenorm(const char *folder, const OnnxNode *node, const char *variant)
{
    Data data;
    load_data(folder, &data);
    load_initializers(folder, node, &data);
    const OnnxTensor *x = &data.in[0];
    const int64_t     n = x->dims[0], c = x->dims[1], hw = product(x, 2, x->rank);
    need(folder, x, ONNX_FLOAT, n * c * hw);
    need(folder, &data.in[1], ONNX_FLOAT, c);
    need(folder, &data.in[2], ONNX_FLOAT, c);
    need(folder, &data.out[0], ONNX_FLOAT, x->count);
    float *y = new_output(x->count);

    const wf_instancenorm what = { .size = sizeof what, .x_dtype = WF_F32, .w_dtype = WF_F32, .layout = WF_NCHW, .n = n,
                                   .c = c, .hw = hw, .eps = node->epsilon };
    const wf_instancenorm_train_args with = { .size = sizeof with, .x = x->data, .gamma = data.in[1].data,
                                              .beta = data.in[2].data, .y = y };
    const wf_exec where = execution(variant, wf_instancenorm_train_workspace(&what, WF_CPU));
    if (accepted(folder, variant, wf_instancenorm_train(&what, &with, &where)))
        compare(folder, variant, "y", y, &data.out[0]);
    free(where.workspace);
    free(y);
    free_data(&data);
}

static void run_layernorm(const char *folder, const OnnxNode *node, const char *variant)
{
    Data data;
    load_data(folder, &data);
    const OnnxTensor *x = &data.in[0];
    const int         axis = (int)(node->axis < 0 ? node->axis + x->rank : node->axis);
    ck_assert_msg(axis >= 0 && axis <= x->rank, "%s: axis %lld", folder, (long long)node->axis);
    const int64_t rows = product(x, 0, axis), cols = product(x, axis, x->rank);
    need(folder, x, ONNX_FLOAT, rows * cols);
    need(folder, &data.in[1], ONNX_FLOAT, cols);
    need(folder, &data.in[2], ONNX_FLOAT, cols);
    need(folder, &data.out[0], ONNX_FLOAT, x->count);
    need(folder, &data.out[1], ONNX_FLOAT, rows);
    need(folder, &data.out[2], ONNX_FLOAT, rows);
    float *y = new_output(x->count), *mean = new_output(rows), *rstd = new_output(rows);

    const wf_layernorm what = { .size = sizeof what, .x_dtype = WF_F32, .w_dtype = WF_F32, .rows = rows, .cols = cols,
                                .eps = node->epsilon };
    const wf_layernorm_forward_args with = { .size = sizeof with, .x = x->data, .gamma = data.in[1].data,
                                             .beta = data.in[2].data, .y = y, .mean = mean, .rstd = rstd };
    const wf_exec where = execution(variant, wf_layernorm_forward_workspace(&what, WF_CPU));
    if (accepted(folder, variant, wf_layernorm_forward(&what, &with, &where))) {
        compare(folder, variant, "y", y, &data.out[0]);
        compare(folder, variant, "mean", mean, &data.out[1]);
        compare(folder, variant, "rstd", rstd, &data.out[2]);
    }
    free(where.workspace);
    free(y);
    free(mean);
    free(rstd);
    free_data(&data);
}

/* ONNX: input 1 is the ratio, input 2 whether to train. Without training the ratio is as good as 0. */
static void run_dropout(const char *folder, const OnnxNode *node, const char *variant)
{
    Data data;
    load_data(folder, &data);
    const OnnxTensor *x = &data.in[0], *ratio = &data.in[1], *training = &data.in[2];
    need(folder, x, ONNX_FLOAT, x->count);
    need(folder, &data.out[0], ONNX_FLOAT, x->count);
    const bool train = training->data != NULL && *(const uint8_t *)training->data != 0;
    if (train)
        need(folder, ratio, ONNX_FLOAT, 1);
    float        *y = new_output(x->count);
    const size_t  mask_size = (size_t)(x->count + 7) / 8;
    uint8_t      *mask = malloc(mask_size);
    ck_assert_ptr_nonnull(mask);
    memset(mask, 0xa5, mask_size);

    const wf_dropout what = { .size = sizeof what, .x_dtype = WF_F32, .kind = WF_DROPOUT, .n = 1, .c = 1,
                              .hw = x->count, .p = train ? *(const float *)ratio->data : 0 };
    const wf_dropout_args with = { .size = sizeof with, .x = x->data, .y = y, .mask = mask, .seed = 1 };
    const wf_exec where = execution(variant, wf_dropout_forward_workspace(&what, WF_CPU));
    if (accepted(folder, variant, wf_dropout_forward(&what, &with, &where))) {
        ck_assert_msg(memcmp(y, data.out[0].data, (size_t)x->count * sizeof *y) == 0, "%s: y differs" REPEAT, folder,
                      last_part(folder));
        if (node->outputs > 1) {
            need(folder, &data.out[1], ONNX_BOOL, x->count);
            for (int64_t u = 0; u < x->count; u++)
                ck_assert_msg((mask[u / 8] >> u % 8 & 1) == (((const uint8_t *)data.out[1].data)[u] != 0),
                              "%s: mask[%lld] differs" REPEAT, folder, (long long)u, last_part(folder));
        }
    }
    free(where.workspace);
    free(mask);
    free(y);
    free_data(&data);
}

/* ---- the tests ---- */

START_TEST(onnx_node)
{
    char      folder[PATH_SIZE], path[PATH_SIZE + 16];
    OnnxModel model;
    case_folder(folder, &runs[_i]);
    snprintf(path, sizeof path, "%s/model.onnx", folder);
    ck_assert_msg(onnx_load_model(path, &model), "%s cannot be read", path);
    const Operator *op = find_operator(model.node.op_type);
    ck_assert_ptr_nonnull(op);
    op->run(folder, &model.node, NULL);
    const char *variant;
    for (int i = 0; (variant = wf_variant(op->variants_of, WF_CPU, i)) != NULL; i++)
        op->run(folder, &model.node, variant);
    onnx_free_model(&model);
}
END_TEST

START_TEST(onnx_nothing_missed)
{
    ck_assert_msg(run_count > 0, "no ONNX node tests under %s: install Debian's package " PACKAGE, data_folder());
    for (int i = 0; i < unlisted_count; i++)
        ck_abort_msg("%s/%s is neither run nor in the list of skips", unlisted[i].group, unlisted[i].name);
    for (int i = 0; i < skip_count; i++) { /* what an expansion would show, the operator's own folder must */
        char twin[sizeof skipped[i].name];
        strcpy(twin, skipped[i].name);
        if (!ends_in(twin, expanded))
            continue;
        twin[strlen(twin) - strlen(expanded)] = '\0';
        bool run = false;
        for (int k = 0; k < run_count; k++)
            run = run || strcmp(runs[k].name, twin) == 0;
        ck_assert_msg(run, "%s is skipped, but %s is not run", skipped[i].name, twin);
    }
    ck_assert_int_eq(run_count, EXPECTED_RUNS);
    ck_assert_int_eq(skip_count, EXPECTED_SKIPS);
}
END_TEST

/* Every beginning of a tensor's file is refused (raw_data comes last), and no damaged byte makes the reader fall over:
 * the copies are exactly sized, so that AddressSanitizer and valgrind see a byte read too far. */
START_TEST(onnx_damaged_tensor)
{
    char   folder[PATH_SIZE], path[PATH_SIZE + 64];
    size_t size;
    case_folder(folder, &runs[0]);
    snprintf(path, sizeof path, "%s/test_data_set_0/output_0.pb", folder);
    uint8_t *file = onnx_load_file(path, &size);
    ck_assert_ptr_nonnull(file);
    OnnxTensor tensor;
    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *part = malloc(cut + (cut == 0));
        memcpy(part, file, cut);
        ck_assert_msg(!onnx_parse_tensor(part, cut, &tensor), "%s: its first %zu of %zu bytes are accepted", path, cut,
                      size);
        free(part);
    }
    for (size_t at = 0; at < size && at < 64; at++)
        for (int bit = 0; bit < 8; bit++) {
            file[at] ^= (uint8_t)(1 << bit);
            if (onnx_parse_tensor(file, size, &tensor))
                onnx_free_tensor(&tensor);
            file[at] ^= (uint8_t)(1 << bit);
        }
    ck_assert(onnx_parse_tensor(file, size, &tensor));
    onnx_free_tensor(&tensor);
    free(file);
}
END_TEST

START_TEST(onnx_damaged_model)
{
    char   folder[PATH_SIZE], path[PATH_SIZE + 16];
    size_t size;
    case_folder(folder, &runs[_i]);
    snprintf(path, sizeof path, "%s/model.onnx", folder);
    uint8_t *file = onnx_load_file(path, &size);
    ck_assert_ptr_nonnull(file);
    OnnxModel model;
    int       refused = 0;
    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *part = malloc(cut + (cut == 0));
        memcpy(part, file, cut);
        if (onnx_parse_model(part, cut, &model))
            onnx_free_model(&model);
        else
            refused++;
        free(part);
    }
    ck_assert_int_gt(refused, (int)size / 2); /* any cut inside the graph, which is most of the file */
    for (size_t at = 0; at < size; at++)
        for (int bit = 0; bit < 8; bit++) {
            file[at] ^= (uint8_t)(1 << bit);
            if (onnx_parse_model(file, size, &model))
                onnx_free_model(&model);
            file[at] ^= (uint8_t)(1 << bit);
        }
    free(file);
}
END_TEST

Suite *onnx_suite(void)
{
    Suite *suite = suite_create("onnx");
    TCase *tcase = tcase_create("onnx");
    scan();
    tcase_set_timeout(tcase, 120);
    if (getenv("WELFORD_ONNX_CASE") == NULL)
        tcase_add_test(tcase, onnx_nothing_missed);
    if (run_count > 0) {
        tcase_add_loop_test(tcase, onnx_node, 0, run_count);
        tcase_add_test(tcase, onnx_damaged_tensor);
        tcase_add_loop_test(tcase, onnx_damaged_model, 0, run_count);
    }
    suite_add_tcase(suite, tcase);
    return suite;
}
