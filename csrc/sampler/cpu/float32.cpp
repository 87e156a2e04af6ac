// The sampler's tiles of float32 operands.
#include "vector_kernels.h"

namespace dsmooth::sampler::DSMOOTH_ISA {
namespace {

struct Dot : isa::PlainDot<float> {
  DSMOOTH_INLINE static V multiply_add(V sum, Cells a, Cells b) {
    return M::multiply_add(a.v, b.v, sum);
  }
};

}  // namespace

const CpuKernels* float32_kernels() { return &kKernels<Dot, float>; }

}  // namespace dsmooth::sampler::DSMOOTH_ISA
