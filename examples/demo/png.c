/* Grey pictures as PNG data URIs, so that the report needs no files beside it. */
#include "report.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

static void base64(FILE *f, const uint8_t *bytes, size_t count)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < count; i += 3) {
        uint32_t three = (uint32_t)bytes[i] << 16;
        three |= i + 1 < count ? (uint32_t)bytes[i + 1] << 8 : 0;
        three |= i + 2 < count ? bytes[i + 2] : 0;
        for (size_t k = 0; k < 4; k++)
            fputc(k <= count - i ? digits[three >> (18 - 6 * k) & 63] : '=', f);
    }
}

static uint8_t *put32(uint8_t *to, uint32_t v)
{
    for (int shift = 24; shift >= 0; shift -= 8)
        *to++ = (uint8_t)(v >> shift);
    return to;
}

/* length, type, content, CRC of type and content */
static uint8_t *put_chunk(uint8_t *to, const char *type, const uint8_t *content, size_t size)
{
    to = put32(to, (uint32_t)size);
    memcpy(to, type, 4);
    if (size)
        memcpy(to + 4, content, size);
    return put32(to + 4 + size, (uint32_t)crc32(0, to, (uInt)(4 + size)));
}

void png_data_uri(FILE *f, const uint8_t *pixels, int width, int height)
{
    size_t raw_size = (size_t)height * (size_t)(width + 1);
    uLongf packed_size = compressBound((uLong)raw_size);
    uint8_t *raw = malloc(raw_size), *packed = malloc(packed_size), *png = malloc(packed_size + 64);
    if (!raw || !packed || !png)
        die("out of memory");
    for (int y = 0; y < height; y++) {
        raw[y * (width + 1)] = 0; /* no filter */
        memcpy(raw + y * (width + 1) + 1, pixels + y * width, (size_t)width);
    }
    if (compress2(packed, &packed_size, raw, (uLong)raw_size, 9) != Z_OK)
        die("cannot compress a picture");
    uint8_t head[13] = {0};
    put32(put32(head, (uint32_t)width), (uint32_t)height);
    head[8] = 8; /* bits, grey */
    memcpy(png, "\x89PNG\r\n\x1a\n", 8);
    uint8_t *end = put_chunk(png + 8, "IHDR", head, sizeof head);
    end = put_chunk(end, "IDAT", packed, packed_size);
    end = put_chunk(end, "IEND", NULL, 0);
    fputs("data:image/png;base64,", f);
    base64(f, png, (size_t)(end - png));
    free(raw);
    free(packed);
    free(png);
}
