// The sampler's tiles of bfloat16 operands.
#include "vector_kernels.h"

namespace dsmooth::sampler::DSMOOTH_ISA {
namespace {

#if defined(__AVX512BF16__)
using Dot = isa::PairDot;
#else
// Pairs of bfloat16 in the bits of a float, multiplied as floats, one after the other.
struct Dot : isa::PlainDot<float> {
  using Half = isa::NoHalf;

  DSMOOTH_INLINE static V low(V pairs) { return M::from_bits(M::bits(pairs) << 16); }
  DSMOOTH_INLINE static V high(V pairs) { return M::from_bits(M::bits(pairs) & 0xffff0000u); }
  DSMOOTH_INLINE static V multiply_add(V sum, Cells a, Cells b) {
    return M::multiply_add(high(a.v), high(b.v), M::multiply_add(low(a.v), low(b.v), sum));
  }
};
#endif

}  // namespace

const CpuKernels* bfloat16_kernels() { return &kKernels<Dot, bfloat16>; }

}  // namespace dsmooth::sampler::DSMOOTH_ISA
