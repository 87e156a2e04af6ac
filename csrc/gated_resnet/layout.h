// Offsets of the parts of a gated block, and the memory of a thread that computes one. Compiled
// once per instruction set: see vector_math.h for what that forbids.
#pragma once

#include "../common/gemm.h"
#include "gated_resnet.h"

namespace dsmooth::DSMOOTH_ISA {
namespace {

DSMOOTH_INLINE int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
DSMOOTH_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
DSMOOTH_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The extents of a block's images, packed weights and sums. A padded image has the convolution's
// columns of zeros on both sides, and some more on the right so that pairs of columns exist
// wherever a tap looks, from an even or an odd column on. Rows outside the image are not there:
// taps that would read them are left out. Gradients of a convolution's outputs are padded on the
// opposite sides.
template <class D>
struct Layout {
  int64_t height, width;
  int kernel_h, kernel_w, taps;
  int64_t cols, pairs;  // of a padded image; pairs of columns
  int64_t top, left, back_top, back_left;
  int f, f2, s2;                        // channels of h, of concat_elu(h), of concat_elu(skips)
  int64_t f_cells, f2_cells, s2_cells;  // cells of these channels of one pixel
  int64_t f_pad, f2_pad, s2_pad;        // these channels in columns of a product
  int64_t steps;                        // cells of a row's pixels, where pixels are summed over
  int64_t chunk;                        // rows whose weight gradient is computed at once

  static constexpr int64_t kChunkCells = 56;  // of a channel: two operands then fit the first cache

  explicit Layout(const GatedShape& s) {
    height = s.height, width = s.width;
    kernel_h = s.kernel_h, kernel_w = s.kernel_w, taps = s.taps();
    cols = round_up(width + kernel_w - 1, 2) + 2, pairs = cols / 2;
    top = s.pad_top, left = s.pad_left;
    back_top = kernel_h - 1 - top, back_left = kernel_w - 1 - left;
    f = s.filters, f2 = 2 * f, s2 = 2 * s.all_skip_channels();
    f_cells = round_up(f, D::kPair) / D::kPair, f2_cells = f2 / D::kPair, s2_cells = s2 / D::kPair;
    f_pad = round_up(f, D::kColumns), f2_pad = round_up(f2, D::kColumns);
    s2_pad = round_up(s2, D::kColumns);
    steps = round_up(width, D::kPair) / D::kPair;
    chunk = smaller(larger(kChunkCells / steps, 1), smaller(height, kMostRows));
  }

  static constexpr int64_t kMostRows = 16;

  // The rows of a kernel, or of an image, that meet the other: from first to before last.
  struct Range {
    int64_t first, last;
  };
  // Rows of the kernel inside the image at output row r, which sees input rows r - above and on.
  Range kernel_rows(int64_t r, int64_t above) const {
    return {larger(above - r, 0), smaller(height + above - r, kernel_h)};
  }
  // Output rows at which row i of the kernel lies inside the image.
  Range output_rows(int i) const { return {larger(top - i, 0), smaller(height + top - i, height)}; }

  // Packed weights: [tap][cell of the channel summed over][the other channel].
  int64_t conv_in_start() const { return taps * f2_cells * f2_pad; }
  int64_t nin_start() const {
    return conv_in_start() + taps * larger(f2_cells * f_pad, f_cells * f2_pad);
  }
  int64_t all_cells() const { return nin_start() + larger(s2_cells * f_pad, f_cells * s2_pad); }

  // Sums: [tap][input channel][output channel] of conv_out, conv_in and nin; then the biases.
  int64_t conv_out_sums() const { return taps * f2 * f2_pad; }
  int64_t conv_in_sums() const { return taps * f2 * f_pad; }
  int64_t nin_sums() const { return s2 * f_pad; }
  int64_t weight_sums() const { return conv_out_sums() + conv_in_sums() + nin_sums(); }
  int64_t all_sums() const { return weight_sums() + f2_pad + f_pad; }
};

// Memory of a thread, handed out piece by piece; without memory it counts.
struct Scratch {
  char* start = nullptr;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* piece = start == nullptr ? nullptr : reinterpret_cast<T*>(start + used);
    // One vector of slack: a row's last vector may be read beyond the row.
    used += round_up(count * static_cast<int64_t>(sizeof(T)) + 64, 64);
    return piece;
  }
};

template <class T>
void fill_zero(T* p, int64_t count) {
  __builtin_memset(p, 0, static_cast<size_t>(count) * sizeof(T));
}

}  // namespace
}  // namespace dsmooth::DSMOOTH_ISA
