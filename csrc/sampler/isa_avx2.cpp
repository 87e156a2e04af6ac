// The sampler's tiles for AVX2 with FMA; compiled with these, so nothing here may run before the
// CPU has been asked.
#include "isa.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

namespace dsmooth::sampler {
#define ISA avx2
namespace ISA {
namespace {
#include "simd_avx2.h"
#include "tile.h"

constexpr Isa kF32 = {"avx2", false, kMaxPanelUnits, max_rows, any_tile<F32>, finish<float>};
constexpr Isa kBf16 = {"avx2", true, kMaxPanelUnits, max_rows, any_tile<Bf16>, finish<uint16_t>};
}  // namespace
}  // namespace ISA

const Isa* isa_avx2(bool bf16) { return bf16 ? &avx2::kBf16 : &avx2::kF32; }

}  // namespace dsmooth::sampler
#else
namespace dsmooth::sampler {
const Isa* isa_avx2(bool) { return nullptr; }
}  // namespace dsmooth::sampler
#endif
