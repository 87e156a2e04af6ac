// The kernels with operands in float32; cuda_launch.cpp launches them.
#include "block_run.cuh"

namespace dsmooth::sampler {

SampleKernel float32_kernel(bool completes) {
  return completes ? sample<float, true> : sample<float, false>;
}

}  // namespace dsmooth::sampler
