// The kernel with operands in bfloat16; launch.cpp launches it.
#include "block_run.cuh"

namespace dsmooth::sampler {

SampleKernel bfloat16_kernel() { return sample<Bf16>; }

}  // namespace dsmooth::sampler
