#include "plan.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "../common/bfloat16.h"

namespace dsmooth::sampler {
namespace {

// Panels as even as possible; two at least, so that two threads can share a single image.
std::vector<Panel> cut(const Op& op, int max_units) {
  const int units = (op.n + kUnit - 1) / kUnit;
  const int count = std::max((units + max_units - 1) / max_units, std::min(units, 2));
  const int per_column = op.gate ? 2 : 1;
  std::vector<Panel> panels;
  int column = 0, channel = 0;
  for (int i = 0; i < count; ++i) {
    Panel panel{};
    panel.units = units / count + (i < units % count);
    panel.column = column;
    panel.channel = channel;
    panel.channels = std::clamp(op.channels() - channel, 0, panel.units * kUnit / per_column);
    column += panel.units * kUnit;
    channel += panel.channels;
    panels.push_back(panel);
  }
  return panels;
}

int count_columns(const std::vector<Panel>& panels) {
  return panels.back().column + panels.back().units * kUnit;
}

// Calls f(column, output) for the columns of a panel, but for its padding, and what they compute.
template <class F>
void each_output(const Op& op, const Panel& panel, F f) {
  const int half = panel.units * kUnit / 2;
  for (int column = 0; column < panel.units * kUnit; ++column) {
    const int within = op.gate ? column % half : column;
    if (within < panel.channels)
      f(column, panel.channel + within + (op.gate && column >= half ? op.n / 2 : 0));
  }
}

void pack_column(const Term& term, int output, bool bf16, int width, float* to) {
  const size_t length = static_cast<size_t>(term.taps) * static_cast<size_t>(term.channels);
  const float* w = term.weight.data() + static_cast<size_t>(output) * length;
  for (size_t k = 0; k < length; ++k) {
    if (!bf16) {
      to[k * static_cast<size_t>(width)] = w[k];
    } else {
      const bfloat16 value = to_bfloat16(w[k]);
      char* word = reinterpret_cast<char*>(to + k / 2 * static_cast<size_t>(width));
      std::memcpy(word + k % 2 * sizeof value, &value, sizeof value);
    }
  }
}

}  // namespace

MatrixView Plan::pack(const Op& op, Part part, Panels panels) {
  const std::vector<const Term*> terms = terms_of(op, part);
  const int columns = count_columns(panels);
  if (terms.empty()) return {nullptr, 0, columns};
  const auto depth_of = [&](const Term& term) {
    return static_cast<size_t>(term.taps * term.channels / (kernels_.bf16 ? 2 : 1));
  };
  size_t depth = 0;
  for (const Term* term : terms) depth += depth_of(*term);
  float* b = keep(depth * static_cast<size_t>(columns));
  for (Panel& panel : panels) {
    const int width = panel.units * kUnit;
    panel.b = b;
    for (const Term* term : terms) {
      each_output(op, panel, [&](int column, int output) {
        pack_column(*term, output, kernels_.bf16, width, b + column);
      });
      b += depth_of(*term) * static_cast<size_t>(width);
    }
  }
  const Panels& kept = panels_.emplace_back(std::move(panels));
  return {kept.data(), static_cast<int>(kept.size()), columns};
}

const float* Plan::pack_columns(const Op& op, const Panels& panels,
                                const std::vector<float>& values, int rows) {
  const auto depth = static_cast<size_t>(rows);
  const auto columns = static_cast<size_t>(count_columns(panels));
  float* const packed = keep(depth * columns);
  for (const Panel& panel : panels)
    each_output(op, panel, [&](int column, int output) {
      for (size_t row = 0; row < depth; ++row)
        packed[row * columns + static_cast<size_t>(panel.column + column)] =
            values[static_cast<size_t>(output) * depth + row];
    });
  return packed;
}

Plan::Plan(Program given, const TileKernels& kernels) : kernels_(kernels) {
  const Program program = checked(std::move(given));
  skeleton_ = Skeleton(program, kernels.bf16, 1);
  for (size_t i = 0; i < program.ops.size(); ++i) {
    const Op& op = program.ops[i];
    const Panels panels = cut(op, kernels.max_units);
    skeleton_.ops[i].row = pack(op, Part::kRow, panels);
    skeleton_.ops[i].pixel = pack(op, Part::kPixel, panels);
    skeleton_.ops[i].bias = pack_columns(op, panels, op.bias, 1);
    if (!op.projection.empty())
      skeleton_.add_projection(i, pack_columns(op, panels, op.projection, program.condition_size));
  }
}

}  // namespace dsmooth::sampler
