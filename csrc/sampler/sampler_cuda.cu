// The kernel of the sampler; cuda_launch.cpp launches it.
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
template <class T>
__global__ void __launch_bounds__(kKernelWarps * 32, 1)
    sample(const __grid_constant__ BlockRun run) {
  ThreadBlock block;
  run_block<T>(run, static_cast<int>(blockIdx.x), block);
}

}  // namespace

SampleKernel sample_kernel(bool bf16) { return bf16 ? sample<Bf16> : sample<float>; }

}  // namespace dsmooth::sampler
