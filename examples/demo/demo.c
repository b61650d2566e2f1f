/* The demonstration: what each layer of the library is for, on real data, in a few minutes. See --help. */
#include "report.h"
#include "selfcheck.h"
#include "workers.h"

#include <cblas.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <welford.h>

typedef struct options {
    bool quick, check, help;
    int seeds, panel, threads;
    int64_t images;
    const char *backend, *out, *svg, *layers;
} options;

static const char usage[] =
    "usage: demo [options]\n"
    "  --quick             all panels at reduced size and a short check, in seconds\n"
    "  --check             only compare trainings with those by naive layers; status 1 if they differ\n"
    "  --panel N           only panel N (1 learning rate, 2 batch size, 3 initialisation, 4 dropout,\n"
    "                      5 InstanceNorm, 6 running statistics)\n"
    "  --seeds N           seeds per cell, 1 to 16 (3)\n"
    "  --images N          images a run sees (panel 4: four times as many)\n"
    "  --backend B         cpu; cuda: layers and matrix products on a GPU; both: the panels on the CPU, the curves of\n"
    "                      the check on both, overlaid (cpu)\n"
    "  --layers L          welford or naive: whose layers the panels use (welford)\n"
    "  --threads N         runs at a time (one per processor)\n"
    "  --out DIR           where the report goes (build/demo)\n"
    "  --svg FILE          write the overview picture there too\n"
    "Data: $FASHION_MNIST_DIR, else /usr/share/datasets/fashion-mnist (Debian's dataset-fashion-mnist), else the small\n"
    "subset that comes with the sources.\n";

/* Takes "--name value" and "--name=value". */
static options parse(int argc, char **argv)
{
    options o = {.seeds = 3, .threads = workers_default(), .backend = "cpu", .out = "build/demo", .layers = "welford"};
    for (int i = 1; i < argc; i++) {
        const char *equals = strchr(argv[i], '=');
        size_t length = equals ? (size_t)(equals - argv[i]) : strlen(argv[i]);
        struct {
            const char *name;
            bool *flag;
            int *number;
            int64_t *large;
            const char **text;
        } known[] = {
            {.name = "--quick", .flag = &o.quick},       {.name = "--check", .flag = &o.check},
            {.name = "--help", .flag = &o.help},         {.name = "--seeds", .number = &o.seeds},
            {.name = "--panel", .number = &o.panel},     {.name = "--threads", .number = &o.threads},
            {.name = "--images", .large = &o.images},    {.name = "--backend", .text = &o.backend},
            {.name = "--out", .text = &o.out},           {.name = "--svg", .text = &o.svg},
            {.name = "--layers", .text = &o.layers},
        };
        size_t k = 0, count = sizeof known / sizeof *known;
        while (k < count && (strlen(known[k].name) != length || strncmp(known[k].name, argv[i], length) != 0))
            k++;
        if (k == count || (known[k].flag && equals))
            die("unknown option %s (--help lists them)", argv[i]);
        if (known[k].flag) {
            *known[k].flag = true;
            continue;
        }
        const char *value = equals ? equals + 1 : i + 1 < argc ? argv[++i] : NULL;
        if (!value)
            die("%s needs a value", known[k].name);
        char *end;
        long long number = strtoll(value, &end, 10);
        if (known[k].text)
            *known[k].text = value;
        else if (*end || end == value || number < 1 || number > 10000000)
            die("%s=%s: expected a positive number", known[k].name, value);
        else if (known[k].number)
            *known[k].number = (int)number;
        else
            *known[k].large = number;
    }
    if (o.seeds > MAX_SEEDS)
        die("--seeds=%d: at most %d", o.seeds, MAX_SEEDS);
    if (o.panel > PANELS)
        die("--panel=%d: there are %d", o.panel, PANELS);
    if (o.images && o.images < 1024)
        die("--images=%lld: at least 1024", (long long)o.images);
    return o;
}

/* The variant that LayerNorm picks on the CPU, as a dry run finds it; the front of the list is tried first, as the library
 * does. */
static const char *cpu_variant(void)
{
    wf_layernorm what = {.size = sizeof what, .rows = 64, .cols = 128, .eps = 1e-5};
    wf_exec exec = {.size = sizeof exec, .flags = WF_DRY_RUN};
    for (int i = 0; (exec.variant = wf_variant("layernorm_forward", WF_CPU, i)); i++)
        if (wf_layernorm_forward(&what, NULL, &exec) == WF_OK)
            return exec.variant;
    return "any";
}

/* Whose layers are checked, and beside which; returns what the report calls the back-end. */
static const char *choose_backend(settings *s, const char *wanted)
{
    static char text[512];
    bool both = !strcmp(wanted, "both"), gpu = both || !strcmp(wanted, "cuda");
    if (!gpu && strcmp(wanted, "cpu"))
        die("--backend=%s: expected cpu, cuda or both", wanted);
    const char *why_not = gpu ? gpu_open() : NULL;
    if (why_not)
        die("--backend=%s: no GPU to train on: %s", wanted, why_not);
    s->checked = gpu && !both ? &layers_welford_gpu : &layers_welford;
    s->beside = both ? &layers_welford_gpu : NULL;
    if (both)
        snprintf(text, sizeof text, "cpu (%s) and %s", cpu_variant(), gpu_name());
    else if (gpu)
        snprintf(text, sizeof text, "%s", gpu_name());
    else
        snprintf(text, sizeof text, "cpu (%s)", cpu_variant());
    return text;
}

/* OpenBLAS is kept to one thread per call: the demo trains several networks at once instead. */
static const char *prepare_blas(void)
{
    static char name[32] = "CBLAS";
#ifdef OPENBLAS_VERSION
    openblas_set_num_threads(1);
    sscanf(OPENBLAS_VERSION, " %31[^\n]", name);
    for (size_t end = strlen(name); end && name[end - 1] == ' '; end--)
        name[end - 1] = 0;
#endif
    return name;
}

static void find_processor(char *text, size_t size)
{
    char line[256];
    snprintf(text, size, "unknown processor");
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "model name", 10) && strchr(line, ':')) {
            snprintf(text, size, "%s", strchr(line, ':') + 2);
            text[strcspn(text, "\n")] = 0;
            break;
        }
    if (f)
        fclose(f);
}

static void make_folders(const char *path)
{
    char part[1024];
    snprintf(part, sizeof part, "%s", path);
    for (char *slash = part + 1;; slash++)
        if (!*slash || *slash == '/') {
            char kept = *slash;
            *slash = 0;
            if (mkdir(part, 0777) && errno != EEXIST)
                die("cannot make the folder %s: %s", part, strerror(errno));
            *slash = kept;
            if (!kept)
                return;
        }
}

static void choose_sizes(settings *s, const options *o)
{
    s->seeds = o->seeds;
    s->threads = o->threads;
    s->images = o->images ? o->images : o->quick ? 1024 : 24576;
    s->images -= s->images % 64;
    s->tests = o->quick ? 500 : 2000;
    if (s->tests > s->data->test.count)
        s->tests = s->data->test.count;
    s->pool = s->images < s->data->train.count ? s->images : s->data->train.count;
}

int main(int argc, char **argv)
{
    options o = parse(argc, argv);
    if (o.help) {
        fputs(usage, stdout);
        return 0;
    }
    double begun = seconds();
    fashion data;
    settings s = {.data = &data};
    run_facts facts = {.quick = o.quick, .blas = prepare_blas(), .backend = choose_backend(&s, o.backend)};
    char version[32];
    snprintf(version, sizeof version, "%u.%u.%u", wf_version() >> 16, wf_version() >> 8 & 255, wf_version() & 255);
    facts.version = version;
    ui_set_backend(facts.backend);
    find_processor(facts.machine, sizeof facts.machine);

    if (!fashion_load(&data, 60000, 10000))
        die("%s", data.source);
    bool naive = !strcmp(o.layers, "naive");
    if (!naive && strcmp(o.layers, "welford"))
        die("--layers=%s: expected welford or naive", o.layers);
    facts.layers = o.layers;
    s.layers = naive ? &layers_naive : s.checked;
    choose_sizes(&s, &o);

    printf("%swelford %s%s on %s, %s, %d run%s at a time%s\n", ui_bold(), version, ui_plain(), facts.backend, facts.blas,
           s.threads, s.threads == 1 ? "" : "s", naive ? ", NAIVE layers" : "");
    printf("Fashion-MNIST from %s: %lld training and %lld test images\n", data.source, (long long)data.train.count,
           (long long)data.test.count);
    if (data.vendored)
        printf("%sThis is the small subset that comes with the sources: expect rougher numbers. Debian's package "
               "dataset-fashion-mnist has all of it.%s\n", ui_yellow(), ui_plain());
    putchar('\n');

    if (!o.panel && (o.check || !naive)) {
        facts.checked = true;
        facts.check_ok = selfcheck(&s, o.quick ? 40 : 150);
        if (o.check)
            return facts.check_ok ? 0 : 1;
    }
    for (int i = 0; i < PANELS; i++)
        if (!o.panel || o.panel == panels[i].number) {
            panel_measure(&panels[i], &s);
            panel_print(&panels[i]);
            facts.runs += panels[i].runs;
        }
    facts.wall_seconds = seconds() - begun;
    facts.processor_seconds = (double)clock() / CLOCKS_PER_SEC;
    make_folders(o.out);
    numbers_write(o.out, &s, &facts);
    report_write(o.out, &s, &facts);
    if (o.svg)
        overview_write(o.svg, &s, &facts);
    printf("%.1f s in all (%.1f s of processor time). Report: %s%s/demo.html%s (numbers: demo.csv, demo.json)\n",
           facts.wall_seconds, facts.processor_seconds, ui_bold(), o.out, ui_plain());
    fashion_free(&data);
    return facts.checked && !facts.check_ok ? 1 : 0;
}
