// The convolutions of a block and the gradients of their weights, as products over padded images.
// Compiled once per instruction set: see vector_math.h for what that forbids.
#pragma once

#include "layout.h"

namespace dsmooth::DSMOOTH_ISA {
namespace {

// out[q][c] = the cell of in[2q][c] and in[2q + 1][c]: neighbouring columns side by side, as a
// product that sums over pixels takes them.
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
  struct Rows {
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
  // row r, whose first taps lie in row r - above.
  void convolve_row(const Element* image, int64_t pixel_cells, const Cell* packed, int64_t n_pad,
                    int64_t r, int64_t above) {
    const int64_t* offsets = pixel_cells == layout_.f2_cells ? wide_taps_ : narrow_taps_;
    const auto [first, last] = layout_.kernel_rows(r, above);
    const int64_t before = first * layout_.kernel_w;
    convolve<false>(image + (r - above + first) * layout_.cols * pixel_cells * D::kPair,
                    pixel_cells, offsets, static_cast<int>((last - first) * layout_.kernel_w),
                    packed + before * pixel_cells * n_pad, n_pad);
  }

  // row_[c][n] (+)= a convolution by a kernel of one tap at the pixels of a row, which starts at
  // `in`.
  template <bool kAdd>
  void convolve_points(const Element* in, int64_t pixel_cells, const Cell* packed, int64_t n_pad) {
    constexpr int64_t kNoOffset = 0;
    convolve<kAdd>(in, pixel_cells, &kNoOffset, 1, packed, n_pad);
  }

  // row_[c][n] (+)= a convolution at the pixels of a row; `in` is where the first tap of the first
  // pixel lies.
  template <bool kAdd>
  void convolve(const Element* in, int64_t pixel_cells, const int64_t* offsets, int taps,
                const Cell* packed, int64_t n_pad) {
    TileArgs<D> t;
    t.a = cells(in);
    t.a_row = pixel_cells;
    t.a_step = 1;
    t.a_offsets = offsets;
    t.b = packed;
    t.b_step = n_pad;
    t.b_outer = pixel_cells * n_pad;
    t.outer = taps;
    t.inner = pixel_cells;
    t.out = row_;
    t.out_row = n_pad;
    t.add = kAdd;
    run_tiles<D, false>(t, layout_.width, n_pad);
  }

  // sums[tap][k][n] += the gradient of a convolution's weights over an image; = if `first_image`.
  void add_conv_gradient(const Element* input, const Element* gradient, int64_t gradient_stride,
                         const Cell* gradient_pairs, int64_t n_pad, bool first_image,
                         Scalar* sums) {
    const Layout<D>& p = layout_;
    for (int64_t r = 0; r < (kPairs ? p.height : 0); ++r) {
      const Element* row = input + r * p.cols * p.f2;
      pair_columns<D>(row, p.f2, p.pairs, p.f2, even_ + r * p.pairs * p.f2, p.f2);
      if (p.kernel_w > 1) {
        pair_columns<D>(row + p.f2, p.f2, p.pairs - 1, p.f2, odd_ + r * p.pairs * p.f2, p.f2);
      }
    }
    const int64_t tap_sums = p.f2 * n_pad;
    for (int i = 0; first_image && i < p.kernel_h; ++i) {
      if (p.output_rows(i).first >= p.output_rows(i).last) {
        fill_zero(sums + i * p.kernel_w * tap_sums, p.kernel_w * tap_sums);
      }
    }
    for (int64_t r0 = 0; r0 < p.height; r0 += p.chunk) {
      for (int i = 0; i < p.kernel_h; ++i) {
        const auto inside = p.output_rows(i);
        const int64_t first = larger(r0, inside.first);
        const int64_t rows = smaller(r0 + p.chunk, inside.last) - first;
        if (rows <= 0) continue;
        const bool add = !first_image || first > inside.first;
        const int64_t row = first + i - p.top;
        const Rows b = gradient_rows(gradient, gradient_stride, gradient_pairs, n_pad, first);
        for (int j = 0; j < p.kernel_w; ++j) {
          const Cell* pairs = (j % 2 == 0 ? even_ : odd_) + (row * p.pairs + j / 2) * p.f2;
          const Cell* pixels = cells(input + (row * p.cols + j) * p.f2);
          const Rows a =
              kPairs ? Rows{pairs, p.pairs * p.f2, p.f2} : Rows{pixels, p.cols * p.f2, p.f2};
          add_weight_gradient(a, b, rows, p.f2, n_pad, add, sums + (i * p.kernel_w + j) * tap_sums);
        }
      }
    }
  }

  Rows gradient_rows(const Element* gradient, int64_t stride, const Cell* pairs, int64_t n_pad,
                     int64_t r0) const {
    if (kPairs) return {pairs + r0 * layout_.steps * n_pad, layout_.steps * n_pad, n_pad};
    const int64_t pixel = r0 * layout_.cols + layout_.back_left;
    return {cells(gradient + pixel * stride), layout_.cols * stride, stride};
  }

  // sums[k][n] (+)= the sum over `rows` rows and their pixels of a[pixel][k] b[pixel][n].
  void add_weight_gradient(const Rows& a, const Rows& b, int64_t rows, int k, int64_t n_pad,
                           bool add, Scalar* sums) {
    int64_t offsets[Layout<D>::kMostRows];
    for (int64_t r = 0; r < rows; ++r) offsets[r] = r * a.row;
    TileArgs<D> t;
    t.a = a.start;
    t.a_row = 1;
    t.a_step = a.step;
    t.a_offsets = offsets;
    t.b = b.start;
    t.b_step = b.step;
    t.b_outer = b.row;
    t.outer = rows;
    t.inner = layout_.steps;
    t.out = sums;
    t.out_row = n_pad;
    t.add = add;
    run_tiles<D, true>(t, k, n_pad);
  }

 private:
  const Layout<D>& layout_;
  Scalar* row_;
  Cell *even_, *odd_;
  int64_t wide_taps_[kMaxTaps], narrow_taps_[kMaxTaps];  // of images with 2F and with F channels
};

}  // namespace
}  // namespace dsmooth::DSMOOTH_ISA
