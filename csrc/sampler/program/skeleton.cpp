#include <algorithm>
#include <stdexcept>
#include <string>

#include "../components.h"
#include "program.h"

namespace dsmooth::sampler {

Skeleton::Skeleton(const Program& p, bool bf16, int stride_words) {
  const auto resolution_of = [&](const Term& term) { return p.caches[term.cache].resolution; };
  const int groups = p.n_atoms > 0 ? groups_of(p.n_mix + p.n_atoms) : 0;
  for (size_t i = 0; i < p.caches.size(); ++i) {
    const Cache& c = p.caches[i];
    const int words = c.operand && bf16 ? c.channels / 2 : c.channels;
    // After the parameters there is space for two numbers per group.
    const int used = words + (static_cast<int>(i) == p.params ? 2 * groups : 0);
    caches.push_back(
        {c.resolution, c.rows, words, (used + stride_words - 1) / stride_words * stride_words});
  }
  size_t n_terms = 0;
  for (const Op& op : p.ops) n_terms += op.terms.size();
  terms.reserve(n_terms);  // pointers into it stay valid
  for (const Op& op : p.ops) {
    OpView view{};
    static_cast<OpSpec&>(view) = op;
    view.by_column = op.column_parity != kNone;
    view.channels = op.channels();
    view.n_terms = static_cast<int>(op.terms.size());
    view.terms = terms.data() + terms.size();
    for (const Term& term : op.terms) {
      terms.push_back(term);
      view.by_column |= resolution_of(term) != op.resolution;
    }
    ops.push_back(view);
  }
  static_cast<ProgramSpec&>(network) = p;
  network.n_params = p.n_params();
  network.groups = groups;
  network.pixel_words = p.pixel_channels() / (bf16 ? 2 : 1);
  network.feature_words = p.features / (bf16 ? 2 : 1);
  features.resize(static_cast<size_t>(kBytes) * network.feature_words);
  for (size_t i = 0; i < p.feature_table.size(); ++i)
    put_operand(features.data(), i, p.feature_table[i], bf16);
  network.features = features.data();
  network.bf16 = bf16;
  network.n_caches = static_cast<int>(caches.size());
  network.n_ops = static_cast<int>(ops.size());
  network.caches = caches.data();
  network.ops = ops.data();
  for (const Op& op : p.ops)
    for (int phase = static_cast<int>(op.phase) + 1; phase < 5; ++phase)
      ++network.first_of_phase[phase];
  int* first = network.first_at_pixel;
  for (int row = 0; row < kPixelPeriod; ++row)
    for (int column = 0; column < kPixelPeriod; ++column) {
      for (int i = network.begin(Phase::kHorizontal); i < network.end(Phase::kHead); ++i) {
        const OpView& op = ops[i];
        if (op.runs_at_row(row) && op.runs_at_column(column))
          at_pixel.push_back(static_cast<int16_t>(i));
      }
      *++first = static_cast<int>(at_pixel.size());
    }
  network.at_pixel = at_pixel.data();
}

void Skeleton::add_projection(size_t op, const float* projection) {
  ops[op].projection = projection;
  ops[op].image_bias = network.image_bias_columns;
  network.image_bias_columns += ops[op].row.columns;
}

std::vector<const Term*> terms_of(const Op& op, Part part) {
  std::vector<const Term*> terms;
  for (const Term& term : op.terms) {
    const bool in_row = op.phase == Phase::kHorizontal ? term.row_part : op.phase != Phase::kHead;
    if (in_row == (part == Part::kRow)) terms.push_back(&term);
  }
  return terms;
}

Partition partition_among(int64_t n, int64_t workers, int64_t most, int passes) {
  n /= passes;
  most = std::max<int64_t>(most / passes, 1);
  workers = std::min(n, workers);
  const int64_t rounds = (n + workers * most - 1) / (workers * most);
  const int64_t slices = std::min(n, rounds * workers);
  const int64_t largest = (n + slices - 1) / slices * passes;
  return {slices, static_cast<int>(largest), static_cast<int>(workers)};
}

void check_size(int64_t height, int64_t width) {
  const auto is_side = [](int64_t n) { return n > 0 && n <= (1 << 15) && n % 4 == 0; };
  if (is_side(height) && is_side(width)) return;
  throw std::invalid_argument("height and width must be multiples of 4 up to 32768, got " +
                              std::to_string(height) + " and " + std::to_string(width));
}

size_t bytes_per_image(const NetworkView& network, int height, int width) {
  check_size(height, width);
  size_t words = 0;
  for (int i = 0; i < network.n_caches; ++i)
    words += network.caches[i].words_per_image(height, width);
  for (int i = 0; i < network.n_ops; ++i) words += network.partial_words(network.ops[i], width);
  words += network.image_bias_columns;
  return words * sizeof(float);
}

}  // namespace dsmooth::sampler
