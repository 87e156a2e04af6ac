// The kernels with operands in bfloat16; cuda_launch.cpp launches them.
#include "block_run.cuh"

namespace dsmooth::sampler {

SampleKernel bfloat16_kernel(bool completes) {
  return completes ? sample<Bf16, true> : sample<Bf16, false>;
}

}  // namespace dsmooth::sampler
