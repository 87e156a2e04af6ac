// Marks of functions that CUDA compiles for host and device, and everyone else for the host alone;
// and of short loops over colours, whose arrays stay in registers only if unrolled.
#pragma once

#if defined(__CUDACC__)
#define DSMOOTH_HOST_DEVICE __host__ __device__
#define DSMOOTH_INLINE __host__ __device__ __forceinline__
#define DSMOOTH_UNROLL _Pragma("unroll")
#else
#define DSMOOTH_HOST_DEVICE
#define DSMOOTH_INLINE inline __attribute__((always_inline))
#define DSMOOTH_UNROLL _Pragma("GCC unroll 16")
#endif
