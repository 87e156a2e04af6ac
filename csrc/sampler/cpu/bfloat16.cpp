// The sampler's tiles of bfloat16 operands.
#include "vector_kernels.h"
#if defined(__AMX_BF16__)
#include "amx_tiles.h"
#endif

namespace dsmooth::sampler::DSMOOTH_ISA {
namespace {

#if defined(__AMX_BF16__)
constexpr CpuKernels kBfloat16Kernels = {
    .instruction_set = DSMOOTH_ISA_NAME,
    .bf16 = true,
    .lanes = kLanes,
    .max_units = kSums * kUnits,
    .unit_step = kUnits,
    .slice = kRows,
    .max_rows = [](int units) { return units <= kSums * kUnits ? kRows : 0; },
    .tile = tile<>,
    .finish = finish<bfloat16>,
    .weigh = weigh};
#else
#if defined(__AVX512BF16__)
using Dot = isa::PairDot;
#else
// Pairs of bfloat16 in the bits of a float, multiplied one by one as floats.
struct Dot : isa::PlainDot<float> {
  using Half = isa::NoHalf;

  DSMOOTH_INLINE static V low(V pairs) { return M::from_bits(M::bits(pairs) << 16); }
  DSMOOTH_INLINE static V high(V pairs) { return M::from_bits(M::bits(pairs) & 0xffff0000u); }
  DSMOOTH_INLINE static V multiply_add(V sum, Cells a, Cells b) {
    return M::multiply_add(high(a.v), high(b.v), M::multiply_add(low(a.v), low(b.v), sum));
  }
};
#endif
constexpr const CpuKernels& kBfloat16Kernels = kKernels<Dot, bfloat16>;
#endif

}  // namespace

const CpuKernels* bfloat16_kernels() { return &kBfloat16Kernels; }

}  // namespace dsmooth::sampler::DSMOOTH_ISA
