/* fuzz_replay.c - the fuzz target without libFuzzer: runs the files named, and all files of folders named; or
 * --seeds FOLDER writes a first corpus there. */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST_BYTES = 256, SEEDS_EACH = 24, WAYS = 16 };

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

static void write_seed(const char *folder, int number, const uint8_t *data, size_t size)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/seed-%04d", folder, number);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

/* Of every operation: calls at random, and each thing that can be wrong with it by itself, in several ways. The places of
 * the bytes are those of fuzz_plan.c. */
static int write_seeds(const char *folder)
{
    uint64_t state = 1;
    int      number = 0;
    mkdir(folder, 0777);
    for (int op = 0; op < operation_count; op++) {
        for (int i = 0; i < SEEDS_EACH; i++) {
            uint8_t data[32];
            for (size_t k = 0; k < sizeof data; k++)
                data[k] = (uint8_t)random_bits(&state);
            data[0] = (uint8_t)op;
            data[2] &= 0x0f; /* nothing wrong */
            write_seed(folder, number++, data, sizeof data);
        }
        for (int wrong = 0; wrong < WRONGS; wrong++)
            for (uint8_t how = 0; how < WAYS; how++) {
                const bool    two = wrong == OVERLAP; /* takes two more bytes: the other buffer and the distance */
                const uint8_t data[] = { (uint8_t)op, 0, 0x10, (uint8_t)wrong, how, two ? how / 2 : 0, two ? how * 5 : 4 };
                write_seed(folder, number++, data, sizeof data);
            }
    }
    printf("%d seeds in %s\n", number, folder);
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
