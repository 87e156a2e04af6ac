// The sampler's bfloat16 tiles for AVX-512 with BF16; compiled with it, so nothing here may run
// before the CPU has been asked.
#include "isa.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__)
#include <immintrin.h>

namespace dsmooth::sampler {
#define ISA avx512_bf16
namespace ISA {
namespace {
#include "simd_avx512.h"
#include "tile.h"

constexpr Isa kBf16 = {"avx512", true, kMaxPanelUnits, max_rows, any_tile<Bf16>, finish<uint16_t>};
}  // namespace
}  // namespace ISA

const Isa* isa_avx512_bf16() { return &avx512_bf16::kBf16; }

}  // namespace dsmooth::sampler
#else
namespace dsmooth::sampler {
const Isa* isa_avx512_bf16() { return nullptr; }
}  // namespace dsmooth::sampler
#endif
