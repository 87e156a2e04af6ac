// The sampler's tiles for any CPU.
#include "isa.h"

namespace dsmooth::sampler {
#define ISA generic
namespace ISA {
namespace {
#include "simd_generic.h"
#include "tile.h"

constexpr Isa kF32 = {"generic", false, kMaxPanelUnits, max_rows, any_tile<F32>, finish<float>};
constexpr Isa kBf16 = {"generic", true, kMaxPanelUnits, max_rows, any_tile<Bf16>, finish<uint16_t>};
}  // namespace
}  // namespace ISA

const Isa* isa_generic(bool bf16) { return bf16 ? &generic::kBf16 : &generic::kF32; }

}  // namespace dsmooth::sampler
