// Marks of functions that CUDA compiles for host and device, and everyone else for the host alone;
// of large ones that need one copy only on the device, where all else is inlined; and of short
// loops, whose arrays stay in registers only if unrolled, on both or on the device alone, and of
// those that are better left as they are.
#pragma once

#if defined(__CUDACC__)
#define DSMOOTH_HOST_DEVICE __host__ __device__
#define DSMOOTH_INLINE __host__ __device__ __forceinline__
#define DSMOOTH_DEVICE_ONCE __noinline__
#define DSMOOTH_DEVICE_UNROLL _Pragma("unroll")
#define DSMOOTH_DEVICE_ROLL _Pragma("unroll 1")
#define DSMOOTH_UNROLL _Pragma("unroll")
#else
#define DSMOOTH_HOST_DEVICE
#define DSMOOTH_INLINE inline __attribute__((always_inline))
#define DSMOOTH_DEVICE_ONCE
#define DSMOOTH_DEVICE_UNROLL
#define DSMOOTH_DEVICE_ROLL
#define DSMOOTH_UNROLL _Pragma("GCC unroll 16")
#endif
