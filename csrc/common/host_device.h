// Macros that mean something to CUDA and nothing, or little, to other compilers. HOST_DEVICE: the
// function runs on both. DEVICE_ONCE: a large function stays one copy, where all else is inlined.
// UNROLL: a short loop whose arrays are to stay in registers; DEVICE_UNROLL, on the device alone.
// DEVICE_ROLL: a loop that is left as it is.
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
