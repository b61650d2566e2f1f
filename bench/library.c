#include "library.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

void *library_open(const char *const names[], const LibraryCall *calls, int count, const char **found)
{
    for (int i = 0; names[i]; i++) {
        void *const library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        void *at = library;
        for (int k = 0; k < count && at; k++) {
            at = dlsym(library, calls[k].name);
            memcpy(calls[k].to, &at, sizeof at); /* ISO C converts no data pointers to functions */
        }
        *found = names[i];
        if (at)
            return library;
    }
    return NULL;
}
