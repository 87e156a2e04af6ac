// The layout of a gated resnet's images, weights and sums. Its convolutions and the gradients of
// their weights, as products over padded images.
// Compiled once per instruction set: see vector_math.h for what that forbids.
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

// The extents of a gated resnet's images, packed weights and sums. A padded image has the
// convolution's columns of zeros on both sides. There are more on the right: then every tap finds
// whole pairs of columns, from an even or an odd column on. Rows outside the image are not stored,
// and taps that would read them are left out. Gradients of a convolution's outputs are padded on
// the opposite sides.
template <class D>
struct Layout : GatedShape {
  int64_t cols, pairs;                  // of a padded image; pairs of columns
  int64_t back_top, back_left;          // padding of gradients
  int f, f2, s2;                        // channels of h, of concat_elu(h), of concat_elu(skips)
  int64_t f_cells, f2_cells, s2_cells;  // cells of these channels of one pixel
  int64_t f_pad, f2_pad, s2_pad;        // these channels in columns of a product
  int64_t steps;                        // cells of a row's pixels, where pixels are summed over
  int64_t chunk;                        // rows whose weight gradient is computed at once

  static constexpr int64_t kChunkCells = 56;  // of a channel: two operands then fit the first cache

  explicit Layout(const GatedShape& shape) : GatedShape(shape) {
    cols = round_up(width + kernel_w - 1, 2) + 2, pairs = cols / 2;
    back_top = kernel_h - 1 - pad_top, back_left = kernel_w - 1 - pad_left;
    f = filters, f2 = 2 * f, s2 = 2 * all_skip_channels();
    f_cells = round_up(f, D::kPair) / D::kPair, f2_cells = f2 / D::kPair, s2_cells = s2 / D::kPair;
    f_pad = round_up(f, D::kColumns), f2_pad = round_up(f2, D::kColumns);
    s2_pad = round_up(s2, D::kColumns);
    steps = round_up(width, D::kPair) / D::kPair;
    chunk = smaller(larger(kChunkCells / steps, 1), smaller(height, kMostRows));
  }

  static constexpr int64_t kMostRows = 16;

  // Rows [first, last) of a kernel that lie inside an image, or of an image that a kernel's row
  // sees.
  struct Range {
    int64_t first, last;
  };
  // Rows of the kernel inside the image at output row r, which sees input rows r - above and on.
  Range kernel_rows(int64_t r, int64_t above) const {
    return {larger(above - r, 0), smaller(height + above - r, kernel_h)};
  }
  // Output rows at which row i of the kernel lies inside the image.
  Range output_rows(int i) const {
    return {larger(pad_top - i, 0), smaller(height + pad_top - i, height)};
  }

  // Packed weights: [tap][cell of the channel summed over][the other channel].
  int64_t conv_in_start() const { return taps() * f2_cells * f2_pad; }
  int64_t nin_start() const {
    return conv_in_start() + taps() * larger(f2_cells * f_pad, f_cells * f2_pad);
  }
  int64_t all_cells() const { return nin_start() + larger(s2_cells * f_pad, f_cells * s2_pad); }

  // Sums: [tap][input channel][output channel] of conv_out, conv_in and nin; then the biases.
  int64_t conv_out_sums() const { return taps() * f2 * f2_pad; }
  int64_t conv_in_sums() const { return taps() * f2 * f_pad; }
  int64_t nin_sums() const { return s2 * f_pad; }
  int64_t weight_sums() const { return conv_out_sums() + conv_in_sums() + nin_sums(); }
  int64_t all_sums() const { return weight_sums() + f2_pad + f_pad; }
};

// Pixels of `stride` elements, with columns of zeros beside the image.
template <class D>
struct PaddedImage {
  typename D::Element* data;
  int64_t stride, cols;
  int64_t top, left;  // rows and columns before a pixel that a kernel sees
  // A gradient has its pixels again for sums over pixels: in pairs of columns, of `n_pad` cells.
  typename D::Cell* pairs = nullptr;
  int64_t n_pad = 0;

  typename D::Element* row(int64_t r) const { return data + r * cols * stride; }
  typename D::Element* inside(int64_t r) const { return row(r) + left * stride; }
  int64_t pixel_cells() const { return stride / D::kPair; }
};

// A thread's memory, handed out piece by piece. With no memory it only counts the bytes.
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

// out[q][c] = the cell of in[2q][c] and in[2q + 1][c]. Products that sum over pixels read
// neighbouring columns side by side.
template <class D>
void pair_columns(const typename D::Element* in, int64_t stride, int64_t pairs, int channels,
                  typename D::Cell* out, int64_t out_stride) {
  if constexpr (D::kPair == 2) {
    for (int64_t q = 0; q < pairs; ++q, in += 2 * stride, out += out_stride) {
      for (int c = 0; c < channels; ++c) {
        out[c] = static_cast<typename D::Cell>(in[c]) |
                 static_cast<typename D::Cell>(in[stride + c]) << 16;
      }
    }
  }
}

// `row` takes the sums of a row of pixels; `even` and `odd` are room for an image in pairs of
// columns, from an even and from an odd column on.
template <class D>
class Convolutions {
  using Scalar = typename D::Scalar;
  using Element = typename D::Element;
  using Cell = typename D::Cell;
  static constexpr bool kPairs = D::kPair == 2;

 public:
  // Rows of cells of neighbouring pixels: how a sum over pixels sees its operands.
  struct CellRows {
    const Cell* start;
    int64_t row, step;  // cells from a row to the next, from a pixel's (or pair's) to the next
  };

  static const Cell* cells(const Element* p) { return reinterpret_cast<const Cell*>(p); }

  Convolutions(const Layout<D>& layout, Scalar* row, Cell* even, Cell* odd)
      : layout_(layout), row_(row), even_(even), odd_(odd) {
    for (int i = 0; i < layout_.kernel_h; ++i) {
      for (int j = 0; j < layout_.kernel_w; ++j) {
        const int64_t pixel = i * layout_.cols + j;
        wide_taps_[i * layout_.kernel_w + j] = pixel * layout_.f2_cells;
        narrow_taps_[i * layout_.kernel_w + j] = pixel * layout_.f_cells;
      }
    }
  }

  // row_[c][n] = the convolution of a padded image, of F or 2F channels, at the pixels of output
  // row r.
  void convolve_row(const PaddedImage<D>& image, const Cell* packed, int64_t n_pad, int64_t r) {
    const int64_t cells = image.pixel_cells();
    const auto [first, last] = layout_.kernel_rows(r, image.top);
    const int64_t before = first * layout_.kernel_w;
    convolve(image.row(r - image.top + first), cells,
             cells == layout_.f2_cells ? wide_taps_ : narrow_taps_,
             (last - first) * layout_.kernel_w, packed + before * cells * n_pad, n_pad, false);
  }

  // row_[c][n] (+)= a convolution by a kernel of one tap at the pixels of a row, which starts at
  // `in`.
  void convolve_points(const Element* in, int64_t pixel_cells, const Cell* packed, int64_t n_pad,
                       bool add) {
    constexpr int64_t kNoOffset = 0;
    convolve(in, pixel_cells, &kNoOffset, 1, packed, n_pad, add);
  }

  // row_[c][n] (+)= a convolution at the pixels of a row; `in` is where the first tap of the first
  // pixel lies.
  void convolve(const Element* in, int64_t pixel_cells, const int64_t* offsets, int64_t taps,
                const Cell* packed, int64_t n_pad, bool add) {
    const TileArgs<D> tile{.a = cells(in),
                           .a_row = pixel_cells,
                           .a_step = 1,
                           .a_offsets = offsets,
                           .b = packed,
                           .b_step = n_pad,
                           .b_outer = pixel_cells * n_pad,
                           .outer = taps,
                           .inner = pixel_cells,
                           .out = row_,
                           .out_row = n_pad,
                           .add = add};
    run_tiles<D, false>(tile, layout_.width, n_pad);
  }

  // sums[tap][k][n] += the gradient of a convolution's weights over an image; = if `first_image`.
  void add_conv_gradient(const PaddedImage<D>& input, const PaddedImage<D>& gradient,
                         bool first_image, Scalar* sums) {
    const Layout<D>& p = layout_;
    for (int64_t r = 0; r < (kPairs ? p.height : 0); ++r) {
      const Element* row = input.row(r);
      pair_columns<D>(row, p.f2, p.pairs, p.f2, even_ + r * p.pairs * p.f2, p.f2);
      if (p.kernel_w > 1)
        pair_columns<D>(row + p.f2, p.f2, p.pairs - 1, p.f2, odd_ + r * p.pairs * p.f2, p.f2);
    }
    const int64_t tap_sums = p.f2 * gradient.n_pad;
    for (int i = 0; first_image && i < p.kernel_h; ++i)
      if (p.output_rows(i).first >= p.output_rows(i).last)
        fill_zero(sums + i * p.kernel_w * tap_sums, p.kernel_w * tap_sums);
    for (int64_t r0 = 0; r0 < p.height; r0 += p.chunk) {
      for (int i = 0; i < p.kernel_h; ++i) {
        const auto inside = p.output_rows(i);
        const int64_t first = larger(r0, inside.first);
        const int64_t rows = smaller(r0 + p.chunk, inside.last) - first;
        if (rows <= 0) continue;
        const bool add = !first_image || first > inside.first;
        const int64_t row = first + i - p.pad_top;
        const CellRows b = gradient_rows(gradient, first);
        for (int j = 0; j < p.kernel_w; ++j) {
          const Cell* pairs = (j % 2 == 0 ? even_ : odd_) + (row * p.pairs + j / 2) * p.f2;
          const Cell* pixels = cells(input.row(row) + j * p.f2);
          const CellRows a = kPairs ? CellRows{pairs, p.pairs * p.f2, p.f2}
                                    : CellRows{pixels, p.cols * p.f2, p.f2};
          add_weight_gradient(a, b, rows, p.f2, gradient.n_pad, add,
                              sums + (i * p.kernel_w + j) * tap_sums);
        }
      }
    }
  }

  CellRows gradient_rows(const PaddedImage<D>& gradient, int64_t r0) const {
    const int64_t row = layout_.steps * gradient.n_pad;
    if (kPairs) return {gradient.pairs + r0 * row, row, gradient.n_pad};
    return {cells(gradient.inside(r0)), gradient.cols * gradient.stride, gradient.stride};
  }

  // sums[k][n] (+)= the sum over `rows` rows and their pixels of a[pixel][k] b[pixel][n].
  void add_weight_gradient(const CellRows& a, const CellRows& b, int64_t rows, int k, int64_t n_pad,
                           bool add, Scalar* sums) {
    int64_t offsets[Layout<D>::kMostRows];
    for (int64_t r = 0; r < rows; ++r) offsets[r] = r * a.row;
    const TileArgs<D> tile{.a = a.start,
                           .a_row = 1,
                           .a_step = a.step,
                           .a_offsets = offsets,
                           .b = b.start,
                           .b_step = b.step,
                           .b_outer = b.row,
                           .outer = rows,
                           .inner = layout_.steps,
                           .out = sums,
                           .out_row = n_pad,
                           .add = add};
    run_tiles<D, true>(tile, k, n_pad);
  }

 private:
  const Layout<D>& layout_;
  Scalar* row_;
  Cell *even_, *odd_;
  int64_t wide_taps_[kMaxTaps], narrow_taps_[kMaxTaps];  // of images with 2F and with F channels
};

}  // namespace
}  // namespace dsmooth::DSMOOTH_ISA
