/* fuzz_replay.c - the fuzz target without libFuzzer: runs the files named, and all files of folders named; or
 * --seeds FOLDER writes a first corpus there. */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST_BYTES = 256, OPERATIONS = 14, SEEDS_EACH = 12 };

static int replay_file(const char *path)
{
    uint8_t data[MOST_BYTES];
    FILE   *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    const size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    fprintf(stderr, "%s\n", path);
    LLVMFuzzerTestOneInput(data, size);
    return 1;
}

static int replay(const char *path)
{
    DIR *folder = opendir(path);
    if (folder == NULL)
        return replay_file(path);
    int count = 0;
    for (const struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char name[1024];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        count += replay_file(name);
    }
    closedir(folder);
    return count;
}

/* Every operation, one half of the seeds with nothing wrong. */
static int write_seeds(const char *folder)
{
    uint32_t state = 1;
    mkdir(folder, 0777);
    for (int i = 0; i < OPERATIONS * SEEDS_EACH; i++) {
        uint8_t data[32];
        for (size_t k = 0; k < sizeof data; k++) {
            state = state * 1664525 + 1013904223;
            data[k] = (uint8_t)(state >> 24);
        }
        data[0] = (uint8_t)(i % OPERATIONS);
        data[2] &= i / OPERATIONS % 2 == 0 ? 0x0f : 0x3f; /* nothing wrong, or up to three things */
        char path[1024];
        snprintf(path, sizeof path, "%s/seed-%03d", folder, i);
        FILE *file = fopen(path, "wb");
        if (file == NULL || fwrite(data, 1, sizeof data, file) != sizeof data || fclose(file) != 0) {
            perror(path);
            return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--seeds") == 0)
        return write_seeds(argv[2]);
    int count = 0;
    for (int i = 1; i < argc; i++)
        count += replay(argv[i]);
    printf("%d inputs replayed: %lld calls refused, %lld accepted in a dry run, %lld run and compared, %lld twice\n",
           count, (long long)counts.refused, (long long)counts.dry, (long long)counts.compared,
           (long long)counts.repeated);
    return count > 0 ? 0 : 1;
}
