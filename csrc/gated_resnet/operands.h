// The check of a gated block's tensors against its extents: what stands between a caller and
// memory.
#pragma once

#include <array>
#include <vector>

#include "../common/borrowed.h"
#include "gated_resnet.h"

namespace dsmooth {

enum class GatedDirection { kForward, kBackward };

// One number for each tensor of the field table, in its order.
enum class GatedField {
#define FIELD(name, ...) name,
#include "../../dsmooth/functional/gated_resnet.def"
#undef FIELD
  kCount
};

inline constexpr int kGatedFields = static_cast<int>(GatedField::kCount);

// A tensor that a call in a direction may have.
struct GatedName {
  const char* name;
  GatedField field;
  bool is_gradient;  // of the field, not the field itself
};
const std::vector<GatedName>& gated_names(GatedDirection direction);

// The tensors of a call; some are absent.
struct GatedGiven {
  std::array<Borrowed, kGatedFields> tensors, gradients;

  Borrowed& at(const GatedName& name) {
    return (name.is_gradient ? gradients : tensors)[static_cast<int>(name.field)];
  }
};

// The call without its dropout numbers, after a check of every tensor: presence, shape, dtype,
// device, memory order. The padding is checked when the call runs. Throws std::invalid_argument,
// which names the tensor, what was expected and what came.
GatedCall check_gated_operands(const GatedGiven& given, GatedDirection direction);

}  // namespace dsmooth
