// The kernel of the sampler; sampler_cuda.cpp launches it.
#include "sampler_cuda.h"

namespace dsmooth::sampler {
namespace {

struct ThreadBlock {
  static constexpr int kWarps = 8, kWarpLanes = 32;
  __device__ int lane() const { return static_cast<int>(threadIdx.x); }
  __device__ void sync() const { __syncthreads(); }
  __device__ unsigned char* shared() const {
    extern __shared__ __align__(128) unsigned char memory[];
    return memory;
  }
};
static_assert(kKernelThreads == ThreadBlock::kWarps * ThreadBlock::kWarpLanes);

// One block a multiprocessor: shared memory holds no second one.
template <class T>
__global__ void __launch_bounds__(kKernelThreads, 1)
    sample_kernel(const __grid_constant__ BlockRun run) {
  ThreadBlock block;
  run_block<T>(run, static_cast<int>(blockIdx.x), block);
}

}  // namespace

SampleKernel sample_kernel(bool bf16) { return bf16 ? sample_kernel<Bf16> : sample_kernel<float>; }

}  // namespace dsmooth::sampler
