// The kernel of the CUDA sampler, for the type of operands DSMOOTH_OPERAND: Bf16 or float.
// dsmooth/cuda/images.py compiles it by NVRTC; setup.py by nvcc, where there is one.
#include "block_run.cuh"

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

}  // namespace

// One block per multiprocessor: shared memory has no space for a second one.
extern "C" __global__ void __launch_bounds__(kKernelWarps * 32, 1)
    sample(const __grid_constant__ BlockRun run) {
  ThreadBlock block;
  run_block<DSMOOTH_OPERAND>(run, static_cast<int>(blockIdx.x), block);
}

}  // namespace dsmooth::sampler
