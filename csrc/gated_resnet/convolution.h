// The layout of a gated resnet's images, weights and sums; its convolutions and their weight
// gradients as matrix products over padded images. Compiled once per instruction set: see
// vector_math.h for the restrictions.
#pragma once

#include "../common/gemm.h"
#include "gated_resnet.h"
#if defined(__AMX_BF16__)
#include "matrix_tiles.h"
#endif

namespace dsmooth::DSMOOTH_ISA {
namespace {

DSMOOTH_INLINE int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
DSMOOTH_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
DSMOOTH_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// How products run over the pixels of a padded image with `cols` columns. Sums over pixels are
// taken in units.
struct PixelRuns {
  int64_t margin;                         // zeros after a padded image, which a product may read
  int64_t rows_at_once;                   // of pixels that are convolved
  int64_t units, unit_cells, unit_pitch;  // cells that are summed; from a unit to the next
  int64_t chunk;                          // units whose weight gradient is computed at once
  int64_t skip_rows, skip_pixels;         // of the skips in memory at once
};

// A chunk's operands fit the L1 cache.
DSMOOTH_INLINE int64_t units_of_chunk(const PixelRuns& runs, int64_t cells) {
  return smaller(larger(cells / runs.unit_cells, 1), runs.units);
}

// With vectors a run, and a unit, is a row of the image.
template <int kPair>
PixelRuns runs_of_vectors(const GatedShape& shape, int64_t cols) {
  PixelRuns runs{};
  runs.rows_at_once = 1, runs.units = shape.height;
  runs.unit_cells = round_up(shape.width, kPair) / kPair, runs.unit_pitch = cols / kPair;
  runs.chunk = units_of_chunk(runs, 56);
  runs.skip_rows = runs.chunk, runs.skip_pixels = runs.skip_rows * cols;
  return runs;
}

// A padded image is also one line of pixels, in which each tap is at a constant distance. Matrix
// registers multiply runs of this line, including zeros, since a row of pixels does not fill them.
// A unit is a piece of the line that fills a register.
constexpr int64_t kPiece = 16;  // cells

inline PixelRuns runs_of_matrix_registers(const GatedShape& shape, int64_t cols) {
  constexpr int64_t kLine = 128;  // pixels
  PixelRuns runs{};
  runs.margin = 2 * kPiece + round_up(shape.kernel_w, 2);
  runs.rows_at_once = smaller(larger(kLine / cols, 1), shape.height);
  runs.units = round_up(shape.height * (cols / 2), kPiece) / kPiece;
  runs.unit_cells = runs.unit_pitch = kPiece;
  runs.chunk = units_of_chunk(runs, 64);
  runs.skip_rows = shape.height, runs.skip_pixels = (2 * runs.units + 1) * kPiece;
  return runs;
}

// The extents of a gated resnet's images, packed weights and sums. A padded image has the
// convolution's rows and columns of zeros around it. There are extra columns on the right, so that
// every tap reads whole pairs of columns, starting at an even or an odd column. Gradients of a
// convolution's outputs are padded on the opposite sides.
template <class D>
struct Layout : GatedShape, PixelRuns {
  int64_t cols;                         // of a padded image
  int64_t pixels;                       // of a padded image and its margin
  int64_t back_top, back_left;          // padding of gradients
  int f, f2, s2;                        // channels of h, of concat_elu(h), of concat_elu(skips)
  int64_t f_cells, f2_cells, s2_cells;  // cells of these channels of one pixel
  int64_t f_pad, f2_pad, s2_pad;        // these channels in columns of a product

  explicit Layout(const GatedShape& shape) : GatedShape(shape) {
    cols = round_up(round_up(width, D::kPair) + kernel_w - 1, 2);
    static_cast<PixelRuns&>(*this) =
        D::kMatrix ? runs_of_matrix_registers(shape, cols) : runs_of_vectors<D::kPair>(shape, cols);
    pixels = (height + kernel_h - 1) * cols + margin;
    back_top = kernel_h - 1 - pad_top, back_left = kernel_w - 1 - pad_left;
    f = filters, f2 = 2 * f, s2 = 2 * all_skip_channels();
    f_cells = round_up(f, D::kPair) / D::kPair, f2_cells = f2 / D::kPair, s2_cells = s2 / D::kPair;
    f_pad = round_up(f, D::kColumns), f2_pad = round_up(f2, D::kColumns);
    s2_pad = round_up(s2, D::kColumns);
  }

  // Rows of a product.
  static int64_t rows_of(int64_t count) { return round_up(count, D::kMatrix ? kPiece : 1); }
  // Pixels of the line from the first of some image rows to the last.
  int64_t run_of(int64_t rows) const { return rows_of((rows - 1) * cols + width); }

  // Packed weights: [tap][cell of the channel summed over][the other channel].
  int64_t conv_in_start() const { return taps() * f2_cells * f2_pad; }
  int64_t nin_start() const {
    return conv_in_start() + taps() * larger(f2_cells * f_pad, f_cells * f2_pad);
  }
  int64_t all_cells() const { return nin_start() + larger(s2_cells * f_pad, f_cells * s2_pad); }

  // Sums: [tap][output channel][input channel] of conv_out, conv_in and nin; then the biases.
  int64_t conv_out_sums() const { return taps() * rows_of(f2) * f2_pad; }
  int64_t conv_in_sums() const { return taps() * rows_of(f) * f2_pad; }
  int64_t nin_sums() const { return rows_of(f) * s2_pad; }
  int64_t weight_sums() const { return conv_out_sums() + conv_in_sums() + nin_sums(); }
  int64_t all_sums() const { return weight_sums() + f2_pad + f_pad; }
};

// Pixels of `stride` elements, with zeros around the image.
template <class D>
struct PaddedImage {
  typename D::Element* data;
  int64_t pixels, stride, cols;
  int64_t top, left;  // rows and columns before the image

  // The addresses of the first tap of row r's first pixel, and of that pixel.
  typename D::Element* row(int64_t r) const { return data + r * cols * stride; }
  typename D::Element* inside(int64_t r) const { return row(r + top) + left * stride; }
  int64_t pixel_cells() const { return stride / D::kPair; }
};

// Allocates pieces of a thread's memory. Without memory it only counts the bytes.
struct Scratch {
  char* start = nullptr;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* piece = start == nullptr ? nullptr : reinterpret_cast<T*>(start + used);
    // One extra vector: a row's last vector may extend beyond the row.
    used += round_up(count * static_cast<int64_t>(sizeof(T)) + 64, 64);
    return piece;
  }
};

template <class T>
void fill_zero(T* p, int64_t count) {
  __builtin_memset(p, 0, static_cast<size_t>(count) * sizeof(T));
}

// out[q][c] = the cell of in[2q][c] and in[2q + 1][c]. Products that sum over pixels read
// neighbouring columns together.
template <class D>
void pair_columns(const typename D::Element* in, int64_t stride, int64_t pairs, int channels,
                  typename D::Cell* out, int64_t out_stride) {
  for (int64_t q = 0; q < pairs; ++q, in += 2 * stride, out += out_stride) {
    for (int c = 0; c < channels; ++c) {
      out[c] = static_cast<typename D::Cell>(in[c]) | static_cast<typename D::Cell>(in[stride + c])
                                                          << 16;
    }
  }
}

// Operands of products over pixels, in an order that differs from that of convolutions.
template <class D>
struct PixelOperands {
  typename D::Cell *even, *odd;  // an image in pairs of columns, from an even and an odd one on
  typename D::Cell* gradient;    // [pair][channel], or [channel][pair] for matrix registers
  int64_t gradient_row;          // cells from a channel to the next of these

  PixelOperands(const Layout<D>& p, Scratch& scratch) {
    const int64_t image = D::kPair == 2 ? p.pixels / 2 * p.f2_pad : 0;
    even = scratch.take<typename D::Cell>(image);
    odd = scratch.take<typename D::Cell>(p.kernel_w > 1 ? image : 0);
    // An odd number of cache lines, so that the rows of a tile fall into different sets.
    gradient_row = (p.units | 1) * p.unit_cells;
    const int64_t channels =
        D::kMatrix ? p.rows_of(p.f2) * gradient_row : p.units * p.unit_cells * p.f2;
    gradient = scratch.take<typename D::Cell>(D::kPair == 2 ? channels : 0);
  }
};

// `sums` holds the sums of the pixels that are convolved at once.
template <class D>
class Convolutions {
  using Scalar = typename D::Scalar;
  using Element = typename D::Element;
  using Cell = typename D::Cell;
  static constexpr bool kPairs = D::kPair == 2;

 public:
  Convolutions(const Layout<D>& layout, const PixelOperands<D>& operands, Scalar* sums)
      : layout_(layout), operands_(operands), sums_(sums) {}

  // The sums of the i-th convolved row.
  const Scalar* row_sums(int64_t i, int64_t n_pad) const {
    return sums_ + i * layout_.cols * n_pad;
  }

  // sums[pixel][n] = the convolution of a padded image, of F or 2F channels, at `rows` output rows
  // from r on.
  void convolve(const PaddedImage<D>& image, const Cell* packed, int64_t n_pad, int64_t r,
                int64_t rows) {
    const int64_t inner = layout_.kernel_w * image.pixel_cells();
    run<false>({.a = cells(image.row(r)),
                .a_row = image.pixel_cells(),
                .a_step = 1,
                .a_outer = layout_.cols * image.pixel_cells(),
                .b = packed,
                .b_step = n_pad,
                .b_outer = inner * n_pad,
                .outer = layout_.kernel_h,
                .inner = inner,
                .out = sums_,
                .out_row = n_pad},
               layout_.run_of(rows), n_pad);
  }

  // sums[pixel][n] (+)= a convolution by a kernel of one tap at `rows` rows, which start at `in`.
  void convolve_points(const Element* in, int64_t pixel_cells, const Cell* packed, int64_t n_pad,
                       int64_t rows, bool add) {
    run<false>({.a = cells(in),
                .a_row = pixel_cells,
                .a_step = 1,
                .b = packed,
                .b_step = n_pad,
                .outer = 1,
                .inner = pixel_cells,
                .out = sums_,
                .out_row = n_pad,
                .add = add},
               layout_.run_of(rows), n_pad);
  }

  // Stores the gradient of an image of outputs, in the order that products over pixels read.
  void take_gradient(const PaddedImage<D>& image, int channels) {
    const Layout<D>& p = layout_;
    channels_ = channels;
    if constexpr (D::kMatrix) {
      gradient_ = {operands_.gradient, operands_.gradient_row, 1, p.unit_cells};
      transpose_pairs(image.inside(0), image.stride, p.units, channels, operands_.gradient,
                      operands_.gradient_row);
    } else if constexpr (kPairs) {
      gradient_ = {operands_.gradient, 1, channels, p.unit_cells * channels};
      for (int64_t r = 0; r < p.height; ++r)
        pair_columns<D>(image.inside(r), image.stride, p.unit_cells, channels,
                        operands_.gradient + r * gradient_.unit, channels);
    } else {
      gradient_ = {image.inside(0), 1, image.stride, p.cols * image.stride};
    }
  }

  // sums[tap][n][k] += the gradient of a convolution's weights over an image, given its input and
  // the stored gradient; = if `first_image`.
  void add_conv_gradient(const PaddedImage<D>& input, bool first_image, Scalar* sums) {
    const Layout<D>& p = layout_;
    const int64_t step = kPairs ? p.f2_pad : p.f2, tap_sums = p.rows_of(channels_) * p.f2_pad;
    if constexpr (kPairs) {
      pair_columns<D>(input.data, p.f2, p.pixels / 2, p.f2, operands_.even, step);
      if (p.kernel_w > 1)
        pair_columns<D>(input.data + p.f2, p.f2, p.pixels / 2 - 1, p.f2, operands_.odd, step);
    }
    for (int64_t u = 0; u < p.units; u += p.chunk) {
      for (int tap = 0; tap < p.taps(); ++tap) {
        const int j = tap % p.kernel_w;
        const int64_t at = (tap / p.kernel_w * p.cols + j) / D::kPair + u * p.unit_pitch;
        const Cell* b = !kPairs ? cells(input.data) : j % 2 == 0 ? operands_.even : operands_.odd;
        add_weight_gradient(b + at * step, step, p.f2_pad, u, !first_image || u > 0,
                            sums + tap * tap_sums);
      }
    }
  }

  // sums[n][k] (+)= the sum over the pixels of a chunk, from unit u on, of the stored
  // gradient, [pixel][n], times b[pixel][k].
  void add_weight_gradient(const Cell* b, int64_t step, int64_t k_pad, int64_t u, bool add,
                           Scalar* sums) {
    run<!D::kMatrix>({.a = gradient_.start + u * gradient_.unit,
                      .a_row = gradient_.row,
                      .a_step = gradient_.step,
                      .a_outer = gradient_.unit,
                      .b = b,
                      .b_step = step,
                      .b_outer = layout_.unit_pitch * step,
                      .outer = smaller(layout_.chunk, layout_.units - u),
                      .inner = layout_.unit_cells,
                      .out = sums,
                      .out_row = k_pad,
                      .add = add},
                     layout_.rows_of(channels_), k_pad);
  }

  static const Cell* cells(const Element* p) { return reinterpret_cast<const Cell*>(p); }

 private:
  // Cells from a channel, a pixel or pair, and a unit to the next.
  struct Gradient {
    const Cell* start;
    int64_t row, step, unit;
  };

  template <bool kAdjacent>
  void run(const TileArgs<D>& tile, int64_t rows, int64_t columns) {
#if defined(__AMX_BF16__)
    tiles_.run(tile, rows, columns);
#else
    run_tiles<D, kAdjacent>(tile, rows, columns);
#endif
  }

  const Layout<D>& layout_;
  PixelOperands<D> operands_;
  Scalar* sums_;
  Gradient gradient_{};
  int channels_ = 0;  // of the gradient
#if defined(__AMX_BF16__)
  MatrixTiles tiles_;
#endif
};

}  // namespace
}  // namespace dsmooth::DSMOOTH_ISA
