// Marks of functions that CUDA compiles for host and device, and everyone else for the host alone.
#pragma once

#if defined(__CUDACC__)
#define DSMOOTH_HOST_DEVICE __host__ __device__
#define DSMOOTH_INLINE __host__ __device__ __forceinline__
#else
#define DSMOOTH_HOST_DEVICE
#define DSMOOTH_INLINE inline __attribute__((always_inline))
#endif
