#include "plan.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "../common/bfloat16.h"

namespace dsmooth::sampler {

Words::Words(size_t count) : count_(count) {
  if (count == 0) return;
  const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
  data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
  if (!data_) throw std::bad_alloc();
  std::memset(data_.get(), 0, bytes);
}

void Words::clear() {
  if (count_) std::memset(data_.get(), 0, count_ * sizeof(float));
}

void Words::Free::operator()(float* p) const { std::free(p); }

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

// The output that a packed column computes, or -1 for padding.
int output_of(const Op& op, const Panel& panel, int column) {
  const int half = panel.units * kUnit / 2;
  const int within = op.gate ? column % half : column;
  if (within >= panel.channels) return -1;
  return panel.channel + within + (op.gate && column >= half ? op.n / 2 : 0);
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

Matrix pack(const Op& op, Part part, const TileKernels& kernels) {
  Matrix matrix;
  const std::vector<const Term*> terms = terms_of(op, part);
  size_t depth = 0;
  for (const Term* term : terms)
    depth += static_cast<size_t>(term->taps * term->channels) / (kernels.bf16 ? 2 : 1);
  matrix.panels = cut(op, kernels.max_units);
  matrix.columns = matrix.panels.back().column + matrix.panels.back().units * kUnit;
  if (terms.empty()) {
    matrix.panels.clear();
    return matrix;
  }
  matrix.words = Words(depth * static_cast<size_t>(matrix.columns));
  float* b = matrix.words.data();
  for (Panel& panel : matrix.panels) {
    const int width = panel.units * kUnit;
    panel.b = b;
    for (const Term* term : terms) {
      for (int column = 0; column < width; ++column) {
        const int output = output_of(op, panel, column);
        if (output >= 0) pack_column(*term, output, kernels.bf16, width, b + column);
      }
      b += static_cast<size_t>(term->taps * term->channels / (kernels.bf16 ? 2 : 1) * width);
    }
  }
  return matrix;
}

// Output o of row r is values[o * rows + r]; packed rows of columns.
Words pack_columns(const Op& op, const std::vector<float>& values, int rows,
                   const TileKernels& kernels) {
  const std::vector<Panel> panels = cut(op, kernels.max_units);
  const int columns = panels.back().column + panels.back().units * kUnit;
  Words packed(static_cast<size_t>(rows) * static_cast<size_t>(columns));
  for (const Panel& panel : panels)
    for (int column = 0; column < panel.units * kUnit; ++column) {
      const int output = output_of(op, panel, column);
      for (int row = 0; output >= 0 && row < rows; ++row)
        packed.data()[int64_t{row} * columns + panel.column + column] =
            values[static_cast<size_t>(output) * static_cast<size_t>(rows) +
                   static_cast<size_t>(row)];
    }
  return packed;
}

}  // namespace

Plan::Plan(Program given, const TileKernels& kernels) : kernels_(kernels) {
  const Program program = checked_by_phase(std::move(given));
  skeleton_ = Skeleton(program, kernels.bf16, 1);
  for (size_t i = 0; i < program.ops.size(); ++i) {
    const Op& op = program.ops[i];
    planned_.push_back({pack(op, Part::kRow, kernels), pack(op, Part::kPixel, kernels),
                        pack_columns(op, op.bias, 1, kernels),
                        op.projection.empty()
                            ? Words()
                            : pack_columns(op, op.projection, program.condition_size, kernels)});
    const PlannedOp& planned = planned_.back();
    const auto view = [](const Matrix& m) {
      return MatrixView{m.panels.data(), static_cast<int>(m.panels.size()), m.columns};
    };
    skeleton_.ops[i].row = view(planned.row);
    skeleton_.ops[i].pixel = view(planned.pixel);
    skeleton_.ops[i].bias = planned.bias.data();
    if (!op.projection.empty()) skeleton_.add_projection(i, planned.projection.data());
  }
}

State::State(const NetworkView& network, int batch, int height, int width)
    : network_(network), batch_(batch), height_(height), width_(width) {
  for (int i = 0; i <= network.n_caches + network.n_ops; ++i) {
    places_.emplace_back(workspace_words(network, i, batch, height, width));
    pointers_.push_back(places_.back().data());
  }
}

void State::clear(int batch) {
  batch_ = batch;
  for (int i = 0; i < network_.n_caches; ++i) places_[static_cast<size_t>(i)].clear();
}

StateView State::view() const {
  return {&network_, pointers_.data(), pointers_.data() + network_.n_caches, batch_, height_,
          width_,    pointers_.back()};
}

}  // namespace dsmooth::sampler
