// The sanitizers' interfaces for fibers, by names that are empty in other builds.
#pragma once
#include <cstddef>

#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMU_TSAN
extern "C" {
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void  __tsan_destroy_fiber(void *fiber);
void  __tsan_switch_to_fiber(void *fiber, unsigned flags);
void  __tsan_acquire(void *address);
void  __tsan_release(void *address);
void  __tsan_read_range(void *address, unsigned long size);
void  __tsan_write_range(void *address, unsigned long size);
void  AnnotateIgnoreWritesBegin(const char *file, int line);
void  AnnotateIgnoreWritesEnd(const char *file, int line);
void  AnnotateIgnoreSyncBegin(const char *file, int line);
void  AnnotateIgnoreSyncEnd(const char *file, int line);
}
#endif

namespace emu {

#ifdef EMU_ASAN
inline void asan_poison(void *p, size_t size) { __asan_poison_memory_region(p, size); }
inline void asan_unpoison(void *p, size_t size) { __asan_unpoison_memory_region(p, size); }
inline void asan_start_switch(void **fake, const void *base, size_t size) { __sanitizer_start_switch_fiber(fake, base, size); }
inline void asan_finish_switch(void *fake, char **base, size_t *size)
{
    __sanitizer_finish_switch_fiber(fake, const_cast<const void **>(reinterpret_cast<void **>(base)), size);
}
#else
inline void asan_poison(void *, size_t) {}
inline void asan_unpoison(void *, size_t) {}
inline void asan_start_switch(void **, const void *, size_t) {}
inline void asan_finish_switch(void *, char **, size_t *) {}
#endif

#ifdef EMU_TSAN
constexpr bool kTsan = true;
inline void *tsan_current() { return __tsan_get_current_fiber(); }
inline void *tsan_create() { return __tsan_create_fiber(0); }
inline void  tsan_destroy(void *fiber) { __tsan_destroy_fiber(fiber); }
inline void  tsan_switch(void *fiber) { __tsan_switch_to_fiber(fiber, 1 /* a switch orders nothing */); }
inline void  tsan_acquire(const void *p) { __tsan_acquire(const_cast<void *>(p)); }
inline void  tsan_release(const void *p) { __tsan_release(const_cast<void *>(p)); }
inline void  tsan_read(const void *p, size_t size) { __tsan_read_range(const_cast<void *>(p), size); }
inline void  tsan_write(void *p, size_t size) { __tsan_write_range(p, size); }
#else
constexpr bool kTsan = false;
inline void *tsan_current() { return nullptr; }
inline void *tsan_create() { return nullptr; }
inline void  tsan_destroy(void *) {}
inline void  tsan_switch(void *) {}
inline void  tsan_acquire(const void *) {}
inline void  tsan_release(const void *) {}
inline void  tsan_read(const void *, size_t) {}
inline void  tsan_write(void *, size_t) {}
#endif

// While one lives, what the emulator itself allocates, frees and locks is neither an access nor an order of the CUDA thread
// that it does so for. No switch of fibers meanwhile.
struct Untracked {
#ifdef EMU_TSAN
    Untracked()
    {
        AnnotateIgnoreWritesBegin("", 0);
        AnnotateIgnoreSyncBegin("", 0);
    }
    ~Untracked()
    {
        AnnotateIgnoreSyncEnd("", 0);
        AnnotateIgnoreWritesEnd("", 0);
    }
#else
    Untracked() {}
#endif
    Untracked(const Untracked &) = delete;
    Untracked &operator=(const Untracked &) = delete;
};

} // namespace emu
