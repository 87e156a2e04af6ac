// Macros for CUDA, which other compilers ignore or almost ignore. HOST_DEVICE: the function runs on
// both. DEVICE_ONCE: a large function is not inlined, unlike all others. UNROLL: unrolls a short
// loop so that its arrays stay in registers; DEVICE_UNROLL: only on the device. DEVICE_ROLL: does
// not unroll.
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
