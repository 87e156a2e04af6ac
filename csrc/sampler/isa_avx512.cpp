// The sampler's float32 tiles for AVX-512; compiled with it, so nothing here may run before the CPU
// has been asked.
#include "isa.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

namespace dsmooth::sampler {
#define ISA avx512
namespace ISA {
namespace {
#include "simd_avx512.h"
#include "tile.h"

constexpr Isa kF32 = {"avx512", false, kMaxPanelUnits, max_rows, any_tile<F32>, finish<float>};
}  // namespace
}  // namespace ISA

const Isa* isa_avx512() { return &avx512::kF32; }

}  // namespace dsmooth::sampler
#else
namespace dsmooth::sampler {
const Isa* isa_avx512() { return nullptr; }
}  // namespace dsmooth::sampler
#endif
