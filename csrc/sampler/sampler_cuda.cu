// The kernels that draw every pixel; cuda_launch.cpp launches them.
#include "sample_kernel.cuh"

namespace dsmooth::sampler {

SampleKernel sample_kernel(bool bf16) { return bf16 ? sample<Bf16, false> : sample<float, false>; }

}  // namespace dsmooth::sampler
