// The kernels that keep known pixels; cuda_launch.cpp launches them.
#include "sample_kernel.cuh"

namespace dsmooth::sampler {

SampleKernel completion_kernel(bool bf16) {
  return bf16 ? sample<Bf16, true> : sample<float, true>;
}

}  // namespace dsmooth::sampler
