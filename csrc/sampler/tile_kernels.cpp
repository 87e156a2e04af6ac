#include "tile_kernels.h"

#include "../common/isa.h"

namespace dsmooth::sampler {

#define DSMOOTH_SET(name)             \
  namespace name {                    \
  const TileKernels* float32_tiles(); \
  }
FLOAT32_SETS
#undef DSMOOTH_SET
#define DSMOOTH_SET(name)              \
  namespace name {                     \
  const TileKernels* bfloat16_tiles(); \
  }
BFLOAT16_SETS
#undef DSMOOTH_SET

const TileKernels& find_tile_kernels(const std::string& instruction_set, bool bf16) {
#define DSMOOTH_SET(name) {#name, &name::float32_tiles},
  static const PerInstructionSet<const TileKernels*> float32{FLOAT32_SETS};
#undef DSMOOTH_SET
#define DSMOOTH_SET(name) {#name, &name::bfloat16_tiles},
  static const PerInstructionSet<const TileKernels*> bfloat16{BFLOAT16_SETS};
#undef DSMOOTH_SET
  if (!bf16) return *float32.find(instruction_set);
  const bool extended = instruction_set == "avx512" && has_instruction_set("avx512bf16");
  return *bfloat16.find(extended ? "avx512bf16" : instruction_set);
}

}  // namespace dsmooth::sampler
