/* library.h - peers' libraries, opened at run time: none is needed to build or to start the program. */
#ifndef WELFORD_BENCH_LIBRARY_H
#define WELFORD_BENCH_LIBRARY_H

typedef struct LibraryCall {
    const char *name;
    void *to; /* the pointer to set */
} LibraryCall;
/* The first of these (NULL at the end) that is here and has all calls, whose pointers are set; its name in *found. NULL:
 * there is none. */
void *library_open(const char *const names[], const LibraryCall *calls, int count, const char **found);

#endif
