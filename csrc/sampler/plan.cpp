#include "plan.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace dsmooth::sampler {

#include "simd_common.h"

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

// The output that a packed column computes, or -1 for padding.
int output_of(const Op& op, const Panel& panel, int column) {
  const int half = panel.units * kUnit / 2;
  const int within = op.gate ? column % half : column;
  if (within >= panel.channels) return -1;
  return panel.channel + within + (op.gate && column >= half ? op.n / 2 : 0);
}

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

void pack_column(const Term& term, int output, bool bf16, int width, float* to) {
  const size_t length = static_cast<size_t>(term.taps) * static_cast<size_t>(term.channels);
  const float* w = term.weight.data() + static_cast<size_t>(output) * length;
  for (size_t k = 0; k < length; ++k) {
    if (!bf16) {
      to[k * static_cast<size_t>(width)] = w[k];
    } else {
      const uint16_t value = round_bf16(w[k]);
      char* word = reinterpret_cast<char*>(to + k / 2 * static_cast<size_t>(width));
      std::memcpy(word + k % 2 * sizeof value, &value, sizeof value);
    }
  }
}

Matrix pack(const Op& op, Part part, const Isa& isa) {
  Matrix matrix;
  std::vector<const Term*> terms;
  size_t depth = 0;
  for (const Term& term : op.terms) {
    // Outside the horizontal stream there is one part only.
    const bool in_row = op.pass == Pass::kHorizontal ? term.row_part : op.pass != Pass::kHead;
    if (in_row != (part == Part::kRow)) continue;
    terms.push_back(&term);
    depth += static_cast<size_t>(term.taps * term.channels) / (isa.bf16 ? 2 : 1);
  }
  matrix.panels = cut(op, isa.max_units);
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
        if (output >= 0) pack_column(*term, output, isa.bf16, width, b + column);
      }
      b += static_cast<size_t>(term->taps * term->channels / (isa.bf16 ? 2 : 1) * width);
    }
  }
  return matrix;
}

Words pack_bias(const Op& op, const Isa& isa) {
  const std::vector<Panel> panels = cut(op, isa.max_units);
  Words bias(static_cast<size_t>(panels.back().column + panels.back().units * kUnit));
  for (const Panel& panel : panels)
    for (int column = 0; column < panel.units * kUnit; ++column) {
      const int output = output_of(op, panel, column);
      if (output >= 0) bias.data()[panel.column + column] = op.bias[static_cast<size_t>(output)];
    }
  return bias;
}

size_t rows_of(const Cache& cache, int height) {
  return static_cast<size_t>(cache.rows ? cache.rows : (height >> cache.level) + 2);
}

size_t words_per_image(const Plan& plan, const Cache& cache, int height, int width) {
  return rows_of(cache, height) * static_cast<size_t>((width >> cache.level) + 2) *
         static_cast<size_t>(plan.words(cache));
}

// Sums wait between the row part and the pixel part.
size_t partial_words_per_image(const Plan& plan, size_t op, int width) {
  const Matrix& row = plan.ops[op].row;
  if (plan.program.ops[op].pass != Pass::kHorizontal || row.panels.empty()) return 0;
  return static_cast<size_t>(width >> plan.program.ops[op].level) *
         static_cast<size_t>(row.columns);
}

}  // namespace

Plan::Plan(Program given, const Isa& chosen) : program(std::move(given)), isa(chosen) {
  check(program);
  for (Op& op : program.ops) {
    PlannedOp planned{pack(op, Part::kRow, isa), pack(op, Part::kPixel, isa), pack_bias(op, isa),
                      op.column_parity != kNone};
    for (Term& term : op.terms) {
      if (program.caches[static_cast<size_t>(term.cache)].level != op.level)
        planned.resamples = true;
      term.weight.clear();  // packed now
      term.weight.shrink_to_fit();
    }
    ops.push_back(std::move(planned));
  }
}

State::State(const Plan& plan, int batch, int height, int width)
    : plan_(plan), batch_(batch), height_(height), width_(width) {
  const size_t images = static_cast<size_t>(batch);
  for (const Cache& cache : plan.program.caches)
    caches_.emplace_back(images * words_per_image(plan, cache, height, width));
  for (size_t i = 0; i < plan.ops.size(); ++i)
    partials_.emplace_back(images * partial_words_per_image(plan, i, width));
}

void State::clear(int batch) {
  batch_ = batch;
  for (Words& cache : caches_) cache.clear();
}

float* State::at(int cache, int row, int column) const {
  const Cache& c = plan_.program.caches[static_cast<size_t>(cache)];
  const int rows = static_cast<int>(rows_of(c, height_));
  const int slot = (row + 1 + rows) % rows;  // row >= -2, and only rings of 3 are asked for -2
  const ptrdiff_t position = static_cast<ptrdiff_t>(slot) * (width(c.level) + 2) + column + 1;
  return caches_[static_cast<size_t>(cache)].data() + position * batch_ * plan_.words(c);
}

float* State::partial(size_t op, int column) const {
  return partials_[op].data() + static_cast<ptrdiff_t>(column) * batch_ * plan_.ops[op].row.columns;
}

size_t State::bytes() const {
  size_t words = 0;
  for (const auto* group : {&caches_, &partials_})
    for (const Words& w : *group) words += w.size();
  return words * sizeof(float);
}

size_t bytes_per_image(const Plan& plan, int height, int width) {
  size_t words = 0;
  for (const Cache& cache : plan.program.caches)
    words += words_per_image(plan, cache, height, width);
  for (size_t i = 0; i < plan.ops.size(); ++i) words += partial_words_per_image(plan, i, width);
  return words * sizeof(float);
}

}  // namespace dsmooth::sampler
