/* A program that opens the library at run time, as bindings of other languages do:  dlopen /path/libwelford.so.0 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (!library) {
        fprintf(stderr, "%s\n", argc > 1 ? dlerror() : "which library?");
        return 1;
    }
    uint32_t (*version)(void);
    *(void **)&version = dlsym(library, "wf_version");
    return version && version() > 0 ? 0 : 1;
}
