/* Fashion-MNIST: 28 x 28 grey images of clothes in ten classes, as IDX files, gzipped or not. */
#ifndef DEMO_FASHION_H
#define DEMO_FASHION_H

#include <stdbool.h>
#include <stdint.h>

enum { IMAGE_SIDE = 28, IMAGE_PIXELS = IMAGE_SIDE * IMAGE_SIDE, CLASSES = 10 };

typedef struct images {
    int64_t count;
    uint8_t *pixels; /* [count, IMAGE_PIXELS], 0 = black */
    uint8_t *labels; /* [count], 0 .. CLASSES - 1        */
} images;

typedef struct fashion {
    images train, test;
    double mean, sd; /* of all training pixels, scaled to 0 .. 1                        */
    bool vendored;   /* the small subset that comes with the sources is all we have     */
    char source[512];
} fashion;

extern const char *const fashion_class[CLASSES];

/* Reads at most so many images of each set: from $FASHION_MNIST_DIR where it is set, else from Debian's package, else
 * the vendored subset. False: nothing was loaded and `source` says why. */
bool fashion_load(fashion *, int64_t train_limit, int64_t test_limit);
void fashion_free(fashion *);

#endif
