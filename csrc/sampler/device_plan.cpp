#include "device_plan.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace dsmooth::sampler {
namespace {

constexpr size_t kAlignment = 128;

// Panels of at most `columns` columns, as even as possible, of whole fragments; in the panels of a
// gate A and G have equally many.
std::vector<Panel> cut(const Op& op, int columns) {
  const int sides = op.gate ? 2 : 1;
  const int fragments = (op.channels() + kFragment - 1) / kFragment;
  const int most = columns / kFragment / sides;
  const int count = (fragments + most - 1) / most;
  std::vector<Panel> panels;
  int channel = 0;
  for (int i = 0; i < count; ++i) {
    const int width = (fragments / count + (i < fragments % count)) * kFragment;
    panels.push_back({nullptr, width * sides / kUnit, sides * channel, channel,
                      std::min(width, op.channels() - channel)});
    channel += width;
  }
  return panels;
}

std::vector<float> pack_bias(const Op& op) {
  const size_t channels = static_cast<size_t>(op.channels());
  const size_t side = static_cast<size_t>(padded_to_fragments(op.channels()));
  std::vector<float> bias(side * (op.gate ? 2 : 1));
  for (size_t i = 0; i < op.bias.size(); ++i) bias[i / channels * side + i % channels] = op.bias[i];
  return bias;
}

}  // namespace

template <class T>
const T* DevicePlan::append(const std::vector<T>& values) {
  const size_t place = (image_.size() + kAlignment - 1) / kAlignment * kAlignment;
  image_.resize(place + values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(image_.data() + place, values.data(), values.size() * sizeof(T));
  return reinterpret_cast<const T*>(place);
}

template <class T>
void DevicePlan::relocate(const T* array, size_t n, size_t field) {
  for (size_t i = 0; i < n; ++i)
    pointers_.push_back(reinterpret_cast<uintptr_t>(array) + i * sizeof(T) + field);
}

const float* DevicePlan::pack_panel(const Op& op, const std::vector<const Term*>& terms,
                                    const Panel& panel) {
  const size_t width = static_cast<size_t>(panel.units * kUnit);
  std::vector<float> rows;
  for (const Term* term : terms) {
    const size_t channels = static_cast<size_t>(term->channels);
    const size_t taps = static_cast<size_t>(term->taps);
    const size_t padded = static_cast<size_t>(padded_to_fragments(term->channels));
    const size_t first = rows.size();
    rows.resize(first + taps * padded * width);
    for (size_t column = 0; column < width; ++column) {
      const int output = output_of(op, panel, static_cast<int>(column));
      if (output < 0) continue;
      const float* weight = term->weight.data() + static_cast<size_t>(output) * taps * channels;
      for (size_t tap = 0; tap < taps; ++tap)
        for (size_t k = 0; k < channels; ++k)
          rows[first + (tap * padded + k) * width + column] = weight[tap * channels + k];
    }
  }
  if (!network_.bf16) return append(rows);
  std::vector<Bf16> rounded(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) put(&rounded[i], rows[i]);
  return reinterpret_cast<const float*>(append(rounded));
}

MatrixView DevicePlan::pack(const Op& op, Part part) {
  const std::vector<const Term*> terms = terms_of(op, part);
  const int columns = padded_to_fragments(op.channels()) * (op.gate ? 2 : 1);
  if (terms.empty()) return {nullptr, 0, columns, 0};
  std::vector<Panel> panels = cut(op, part == Part::kRow ? kRowColumns : kPixelColumns);
  int depth = 0;
  for (const Term* term : terms) depth += term->taps * padded_to_fragments(term->channels);
  for (Panel& panel : panels) {
    panel.b = pack_panel(op, terms, panel);
    int& widest = columns_[static_cast<int>(part)];
    widest = std::max(widest, panel.units * kUnit);
  }
  const Panel* place = append(panels);
  relocate(place, panels.size(), offsetof(Panel, b));
  return {place, static_cast<int>(panels.size()), columns, depth};
}

DevicePlan::DevicePlan(Program given, bool bf16) {
  const Program program = checked_by_pass(std::move(given));
  skeleton_ = Skeleton(program, bf16, kGranule / static_cast<int>(sizeof(float)));
  network_ = skeleton_.network;
  const size_t n = program.ops.size();
  for (size_t i = 0; i < n; ++i) {
    OpView& op = skeleton_.ops[i];
    op.row = pack(program.ops[i], Part::kRow);
    op.pixel = pack(program.ops[i], Part::kPixel);
    op.bias = append(pack_bias(program.ops[i]));
  }
  std::vector<OpView> ops = skeleton_.ops;
  const TermView* terms = append(skeleton_.terms);
  for (OpView& op : ops) op.terms = terms + (op.terms - skeleton_.terms.data());
  network_.caches = append(skeleton_.caches);
  network_.ops = append(ops);
  for (const size_t field : {offsetof(OpView, terms), offsetof(OpView, bias),
                             offsetof(OpView, row) + offsetof(MatrixView, panels),
                             offsetof(OpView, pixel) + offsetof(MatrixView, panels)})
    relocate(network_.ops, n, field);
  image_.resize((image_.size() + kAlignment - 1) / kAlignment * kAlignment);
}

void DevicePlan::write(void* to, uintptr_t address) {
  for (const size_t place : pointers_) {
    uintptr_t pointer;
    std::memcpy(&pointer, image_.data() + place, sizeof pointer);
    pointer += address;
    std::memcpy(image_.data() + place, &pointer, sizeof pointer);
  }
  std::memcpy(to, image_.data(), image_.size());
  image_ = {};
  const auto moved = [address](auto* place) {
    return reinterpret_cast<decltype(place)>(reinterpret_cast<uintptr_t>(place) + address);
  };
  network_.caches = moved(network_.caches);
  network_.ops = moved(network_.ops);
}

Workspace DevicePlan::workspace(int images, int height, int width) const {
  Workspace workspace{};
  workspace.words =
      lay_out_workspace(skeleton_.network, images, height, width, [&](int i, size_t word) {
        if (i == skeleton_.network.n_caches) workspace.cache_words = word;
      });
  return workspace;
}

}  // namespace dsmooth::sampler
