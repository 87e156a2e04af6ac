// The sampler's tiles of float32 operands, compiled once per instruction set: nothing here may run
// before the CPU has been asked.
#include "../common/bfloat16.h"
#include "../common/host_device.h"
#include "tile_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dsmooth::sampler::DSMOOTH_ISA {
namespace {

#include "simd.h"
#include "tile.h"

constexpr TileKernels kKernels = {DSMOOTH_ISA_NAME, false,         kMaxPanelUnits,
                                  max_rows,         any_tile<F32>, finish<float>};

}  // namespace

const TileKernels* float32_tiles() { return &kKernels; }

}  // namespace dsmooth::sampler::DSMOOTH_ISA
