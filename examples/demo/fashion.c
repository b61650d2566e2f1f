#include "fashion.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#ifndef DEMO_DATA_DIR
#define DEMO_DATA_DIR "examples/demo/data"
#endif

const char *const fashion_class[CLASSES] = {"T-shirt", "trousers", "pullover", "dress",   "coat",
                                            "sandal",  "shirt",    "sneaker",  "bag",     "boot"};

static uint32_t big_endian(const uint8_t *b)
{
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

/* Reads an IDX file of bytes ("name.gz" or "name"; gzread takes both): `each` bytes per item, at most `limit` items.
 * Returns the bytes and their number of items, or NULL. */
static uint8_t *read_idx(const char *dir, const char *name, uint32_t magic, int64_t each, int64_t limit, int64_t *count)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.gz", dir, name);
    gzFile file = gzopen(path, "rb");
    if (!file) {
        snprintf(path, sizeof path, "%s/%s", dir, name);
        file = gzopen(path, "rb");
    }
    if (!file)
        return NULL;
    uint8_t *items = NULL, head[16];
    int head_size = each == 1 ? 8 : 16;
    if (gzread(file, head, (unsigned)head_size) == head_size && big_endian(head) == magic &&
        (each == 1 || (big_endian(head + 8) == IMAGE_SIDE && big_endian(head + 12) == IMAGE_SIDE))) {
        *count = big_endian(head + 4);
        if (*count > limit)
            *count = limit;
        items = malloc((size_t)(*count * each) + 1);
        if (items && gzread(file, items, (unsigned)(*count * each)) != *count * each) {
            free(items);
            items = NULL;
        }
    }
    gzclose(file);
    return items;
}

static bool read_images(images *set, const char *dir, const char *prefix, int64_t limit)
{
    char name[64];
    int64_t labels = 0;
    snprintf(name, sizeof name, "%s-images-idx3-ubyte", prefix);
    set->pixels = read_idx(dir, name, 0x803, IMAGE_PIXELS, limit, &set->count);
    snprintf(name, sizeof name, "%s-labels-idx1-ubyte", prefix);
    set->labels = read_idx(dir, name, 0x801, 1, limit, &labels);
    if (!set->pixels || !set->labels || labels != set->count || labels == 0)
        return false;
    for (int64_t i = 0; i < labels; i++)
        if (set->labels[i] >= CLASSES)
            return false;
    return true;
}

static bool load_from(fashion *f, const char *dir, int64_t train_limit, int64_t test_limit)
{
    if (read_images(&f->train, dir, "train", train_limit) && read_images(&f->test, dir, "t10k", test_limit)) {
        snprintf(f->source, sizeof f->source, "%s", dir);
        return true;
    }
    fashion_free(f);
    return false;
}

bool fashion_load(fashion *f, int64_t train_limit, int64_t test_limit)
{
    memset(f, 0, sizeof *f);
    const char *chosen = getenv("FASHION_MNIST_DIR");
    if (chosen && *chosen) {
        if (!load_from(f, chosen, train_limit, test_limit)) {
            snprintf(f->source, sizeof f->source, "FASHION_MNIST_DIR=%s holds no readable Fashion-MNIST", chosen);
            return false;
        }
    } else if (!load_from(f, "/usr/share/datasets/fashion-mnist", train_limit, test_limit)) {
        if (!load_from(f, DEMO_DATA_DIR, train_limit, test_limit)) {
            snprintf(f->source, sizeof f->source,
                     "no Fashion-MNIST: install Debian's dataset-fashion-mnist, set FASHION_MNIST_DIR, or run where "
                     "%s is", DEMO_DATA_DIR);
            return false;
        }
        f->vendored = true;
    }
    double sum = 0, squares = 0, pixels = (double)f->train.count * IMAGE_PIXELS;
    for (int64_t i = 0; i < f->train.count * IMAGE_PIXELS; i++) {
        double v = f->train.pixels[i] / 255.0;
        sum += v;
        squares += v * v;
    }
    f->mean = sum / pixels;
    f->sd = sqrt(squares / pixels - f->mean * f->mean);
    return true;
}

void fashion_free(fashion *f)
{
    free(f->train.pixels);
    free(f->train.labels);
    free(f->test.pixels);
    free(f->test.labels);
    memset(f, 0, sizeof *f);
}
