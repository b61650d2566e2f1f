/* hd.h - the functions of common/ are the same text for C, C++ and CUDA: WF_HD marks one for host and device, WF_HD_INLINE one
 * that a loop which vectorizes consists of; WF_UNROLL a loop of constant length in it. */
#ifndef WF_COMMON_HD_H
#define WF_COMMON_HD_H

#ifdef __CUDACC__
#define WF_HD        static inline __host__ __device__
#define WF_HD_INLINE static __forceinline__ __host__ __device__
#define WF_UNROLL    _Pragma("unroll")
#else
#define WF_HD        static inline
#define WF_HD_INLINE static inline __attribute__((always_inline))
#define WF_UNROLL    _Pragma("GCC unroll 32")
#endif

#endif
