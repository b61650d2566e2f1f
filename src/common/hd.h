/* hd.h - the functions of common/ are the same text for C, C++ and CUDA: WF_HD marks one for host and device. */
#ifndef WF_COMMON_HD_H
#define WF_COMMON_HD_H

#ifdef __CUDACC__
#define WF_HD static inline __host__ __device__
#else
#define WF_HD static inline
#endif

#endif
