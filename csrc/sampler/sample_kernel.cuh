// The kernel of the sampler, for the two files that compile it, one for a type of operands. Known
// pixels have a kernel of their own: what it holds for them would cost all other images registers,
// and with them a tenth of the time of a stage. The two share the functions that they call, so that
// one file compiles both.
#pragma once

#include "sampler_cuda.h"

namespace dsmooth::sampler {
namespace {

struct ThreadBlock {
  static constexpr int kWarps = kKernelWarps, kWarpLanes = 32;
  __device__ int lane() const { return static_cast<int>(threadIdx.x); }
  __device__ void sync() const { __syncthreads(); }
  __device__ unsigned char* shared() const {
    extern __shared__ __align__(128) unsigned char memory[];
    return memory;
  }
};

// One block a multiprocessor: shared memory holds no second one.
template <class T, bool kCompletes>
__global__ void __launch_bounds__(kKernelWarps * 32, 1)
    sample(const __grid_constant__ BlockRun run) {
  ThreadBlock block;
  run_block<T, kCompletes>(run, static_cast<int>(blockIdx.x), block);
}

}  // namespace
}  // namespace dsmooth::sampler
