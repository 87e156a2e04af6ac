// The kernel with operands in float32; launch.cpp launches it.
#include "block_run.cuh"

namespace dsmooth::sampler {

SampleKernel float32_kernel() { return sample<float>; }

}  // namespace dsmooth::sampler
