// The gated block over a range of images with the vectors of one instruction set. Compiled once per
// set, each time with its own DSMOOTH_ISA; see vector_math.h for what this forbids.
//
// An image goes through the whole block before the next one starts, so that everything between the
// block's inputs and outputs stays in the second-level cache.
//
// One file though long: forward and backward share the padded extents and buffers defined here.
#include "gated_block.h"
#include "gated_block_passes.h"

namespace dsmooth::DSMOOTH_ISA {
namespace {

DSMOOTH_INLINE int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
DSMOOTH_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
DSMOOTH_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The extents of a block. A padded image has the convolution's columns of zeros on both sides, and
// some more on the right so that pairs of columns exist wherever a tap looks, from an even or an
// odd column on. Rows outside the image are not there: taps that would read them are left out.
// Gradients of a convolution's outputs are padded on the opposite sides.
template <class D>
struct Plan {
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

  explicit Plan(const GatedBlockShape& s) {
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
  // Of the kernel, where output row r sees input rows r - above and on.
  Range kernel_rows(int64_t r, int64_t above) const {
    return {larger(above - r, 0), smaller(height + above - r, kernel_h)};
  }
  // Of the output, for which row i of the kernel lies inside the image.
  Range output_rows(int i) const { return {larger(top - i, 0), smaller(height + top - i, height)}; }

  // Packed weights: [tap][cell of the channel summed over][the other channel].
  int64_t conv_out_cells() const { return taps * f2_cells * f2_pad; }
  int64_t conv_in_cells() const { return taps * f2_cells * f_pad; }
  int64_t conv_in_back_cells() const { return taps * f_cells * f2_pad; }
  int64_t all_cells() const {
    return conv_out_cells() + larger(conv_in_cells(), conv_in_back_cells()) +
           larger(s2_cells * f_pad, f_cells * s2_pad);
  }

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

// How a kernel (out, in, kh, kw) lies in memory.
struct KernelLayout {
  int64_t out, in, tap;  // strides
  KernelLayout(int inputs, int taps, bool taps_outside)
      : out(static_cast<int64_t>(inputs) * taps),
        in(taps_outside ? 1 : taps),
        tap(taps_outside ? inputs : 1) {}
};

template <class D>
typename D::Scalar sum_of_products(const typename D::Scalar* a, const typename D::Scalar* b,
                                   int64_t count) {
  using M = typename D::M;
  typename D::V sum{};
  int64_t i = 0;
  for (; i + D::kLanes <= count; i += D::kLanes) sum += M::load(a + i) * M::load(b + i);
  typename D::Scalar total = 0;
  for (; i < count; ++i) total += a[i] * b[i];
  for (int lane = 0; lane < D::kLanes; ++lane) total += sum[lane];
  return total;
}

// scale[n] = g[n] / |v[n]|, or 1 without gains.
template <class D>
void write_scales(const typename D::Scalar* v, const typename D::Scalar* gain, int n_count,
                  int64_t length, typename D::Scalar* scale) {
  for (int n = 0; n < n_count; ++n, v += length) {
    scale[n] = gain == nullptr ? 1 : gain[n] / D::square_root(sum_of_products<D>(v, v, length));
  }
}

// packed[tap][in / pair][out], weights times their scales.
template <class D>
void pack_forward_kernel(const typename D::Scalar* weight, const KernelLayout& layout,
                         const typename D::Scalar* scale, int outputs, int inputs, int taps,
                         typename D::Cell* packed) {
  const int64_t pad = round_up(outputs, D::kColumns);
  for (int tap = 0; tap < taps; ++tap) {
    for (int cell = 0; cell < inputs / D::kPair; ++cell, packed += pad) {
      const auto* at = weight + tap * layout.tap + cell * D::kPair * layout.in;
      for (int n = 0; n < outputs; ++n, at += layout.out) {
        packed[n] = D::cell(at[0] * scale[n], D::kPair == 2 ? at[layout.in] * scale[n] : 0);
      }
      for (int64_t n = outputs; n < pad; ++n) packed[n] = 0;
    }
  }
}

// packed[last tap first][out / pair][in], weights times their scales.
template <class D>
void pack_backward_kernel(const typename D::Scalar* weight, const KernelLayout& layout,
                          const typename D::Scalar* scale, int outputs, int inputs, int taps,
                          typename D::Cell* packed) {
  const int64_t pad = round_up(inputs, D::kColumns);
  for (int tap = taps - 1; tap >= 0; --tap) {
    for (int n = 0; n < outputs; n += D::kPair, packed += pad) {
      const auto* at = weight + tap * layout.tap + n * layout.out;
      const bool second = D::kPair == 2 && n + 1 < outputs;  // an odd last output has no partner
      for (int k = 0; k < inputs; ++k, at += layout.in) {
        packed[k] = D::cell(at[0] * scale[n], second ? at[layout.out] * scale[n + 1] : 0);
      }
      for (int64_t k = inputs; k < pad; ++k) packed[k] = 0;
    }
  }
}

// Some of the output channels of a convolution, and in how many columns of sums all of them lie.
struct Outputs {
  int64_t first, last, pad;
};

// weight[out][in][tap] = sums[tap][in][out].
template <class Scalar>
void unpack(const Scalar* sums, const Outputs& outputs, const KernelLayout& layout, int inputs,
            int taps, Scalar* weight) {
  for (int64_t n = outputs.first; n < outputs.last; ++n) {
    for (int tap = 0; tap < taps; ++tap) {
      for (int k = 0; k < inputs; ++k) {
        weight[n * layout.out + k * layout.in + tap * layout.tap] =
            sums[(static_cast<int64_t>(tap) * inputs + k) * outputs.pad + n];
      }
    }
  }
}

// The gradient of v from the sums of that of w = g v / |v|, and of g unless there are no gains:
// dg = <dw, v> / |v|, dv = g / |v| (dw - v <dw, v> / |v|^2).
template <class D>
void write_gradient(const typename D::Scalar* sums, const Outputs& outputs,
                    const KernelLayout& layout, int inputs, int taps, const void* weight,
                    const void* gain, void* grad_weight, void* grad_gain) {
  using Scalar = typename D::Scalar;
  auto* grad = static_cast<Scalar*>(grad_weight);
  unpack(sums, outputs, layout, inputs, taps, grad);
  if (gain == nullptr) return;
  const auto* g = static_cast<const Scalar*>(gain);
  const int64_t length = static_cast<int64_t>(inputs) * taps;
  for (int64_t n = outputs.first; n < outputs.last; ++n) {
    const Scalar* v = static_cast<const Scalar*>(weight) + n * length;
    Scalar* dv = grad + n * length;
    const Scalar square = sum_of_products<D>(v, v, length);
    const Scalar along = sum_of_products<D>(dv, v, length);
    const Scalar norm = D::square_root(square);
    static_cast<Scalar*>(grad_gain)[n] = along / norm;
    const Scalar scale = g[n] / norm, back = along / square;
    for (int64_t i = 0; i < length; ++i) dv[i] = scale * (dv[i] - v[i] * back);
  }
}

template <class D, class T>
class Block {
  using P = Passes<D, T>;
  using Scalar = typename D::Scalar;
  using Element = typename D::Element;
  using Cell = typename D::Cell;
  static constexpr bool kPairs = D::kPair == 2;

 public:
  static void pack_forward(const GatedBlockShape& shape, const GatedWeights& w, void* packed) {
    const Packed p(shape, w, packed);
    const Plan<D>& plan = p.plan;
    pack_forward_kernel<D>(numbers(w.conv_out), p.conv, p.scale_out, plan.f2, plan.f2, plan.taps,
                           p.conv_out);
    pack_forward_kernel<D>(numbers(w.conv_in), p.conv, p.scale_in, plan.f, plan.f2, plan.taps,
                           p.conv_in);
    if (plan.s2 > 0) {
      pack_forward_kernel<D>(numbers(w.nin), p.nin_layout, p.scale_nin, plan.f, plan.s2, 1, p.nin);
    }
  }

  static void pack_backward(const GatedBlockShape& shape, const GatedWeights& w, void* packed) {
    const Packed p(shape, w, packed);
    const Plan<D>& plan = p.plan;
    pack_backward_kernel<D>(numbers(w.conv_out), p.conv, p.scale_out, plan.f2, plan.f2, plan.taps,
                            p.conv_out);
    pack_backward_kernel<D>(numbers(w.conv_in), p.conv, p.scale_in, plan.f, plan.f2, plan.taps,
                            p.conv_in);
    if (plan.s2 > 0) {
      pack_backward_kernel<D>(numbers(w.nin), p.nin_layout, p.scale_nin, plan.f, plan.s2, 1, p.nin);
    }
  }

  static size_t packed_bytes(const GatedBlockShape& shape) {
    const Plan<D> plan(shape);
    return static_cast<size_t>(plan.all_cells()) * sizeof(Cell) +
           static_cast<size_t>(2 * plan.f + plan.f2) * sizeof(Scalar);
  }

  static size_t sums_bytes(const GatedBlockShape& shape) {
    return static_cast<size_t>(Plan<D>(shape).all_sums()) * sizeof(Scalar);
  }

  static size_t scratch_bytes(const GatedBlockShape& shape) {
    Scratch nothing;
    const Buffers buffers(shape, nothing);
    return static_cast<size_t>(nothing.used);
  }

  static void forward(const GatedForward& args, const void* packed, int64_t first, int64_t last,
                      void* scratch) {
    Block block(args.shape, args.dropout, packed, scratch);
    for (int64_t image = first; image < last; ++image) {
      args.dropout.active ? block.template forward_image<true>(args, image)
                          : block.template forward_image<false>(args, image);
    }
  }

  static void backward(const GatedBackward& args, const void* packed, int64_t first, int64_t last,
                       void* scratch, void* sums) {
    Block block(args.shape, args.dropout, packed, scratch);
    auto* group = static_cast<Scalar*>(sums);
    const Plan<D>& plan = block.plan_;
    fill_zero(group + plan.weight_sums(), plan.f2_pad + plan.f_pad);
    for (int64_t image = first; image < last; ++image) {
      args.dropout.active
          ? block.template backward_image<true>(args, image, image == first, group)
          : block.template backward_image<false>(args, image, image == first, group);
    }
  }

  static void add_sums(const GatedBlockShape& shape, void* sums, size_t stride, int64_t groups,
                       int64_t part, int64_t parts) {
    const int64_t count = Plan<D>(shape).all_sums();
    const int64_t first = count * part / parts, last = count * (part + 1) / parts;
    auto* total = static_cast<Scalar*>(sums);
    if (groups == 0) fill_zero(total + first, last - first);
    for (int64_t group = 1; group < groups; ++group) {
      const auto* more =
          reinterpret_cast<const Scalar*>(static_cast<const char*>(sums) + group * stride);
      for (int64_t i = first; i < last; ++i) total[i] += more[i];
    }
  }

  static void write_gradients(const GatedBackward& args, const void* sums, int64_t part,
                              int64_t parts) {
    const Plan<D> plan(args.shape);
    const GatedWeights& w = args.weights;
    const auto* total = static_cast<const Scalar*>(sums);
    const KernelLayout conv(plan.f2, plan.taps, args.shape.taps_outside);
    const KernelLayout plain(1, 1, false), nin(plan.s2, 1, false);
    const Outputs wide{plan.f2 * part / parts, plan.f2 * (part + 1) / parts, plan.f2_pad};
    const Outputs narrow{plan.f * part / parts, plan.f * (part + 1) / parts, plan.f_pad};
    write_gradient<D>(total, wide, conv, plan.f2, plan.taps, w.conv_out, w.gain_out,
                      args.grad_conv_out, args.grad_gain_out);
    total += plan.conv_out_sums();
    write_gradient<D>(total, narrow, conv, plan.f2, plan.taps, w.conv_in, w.gain_in,
                      args.grad_conv_in, args.grad_gain_in);
    total += plan.conv_in_sums();
    if (plan.s2 > 0) {
      write_gradient<D>(total, narrow, nin, plan.s2, 1, w.nin, w.gain_nin, args.grad_nin,
                        args.grad_gain_nin);
    }
    total += plan.nin_sums();
    write_gradient<D>(total, wide, plain, 1, 1, nullptr, nullptr, args.grad_bias_out, nullptr);
    total += plan.f2_pad;
    write_gradient<D>(total, narrow, plain, 1, 1, nullptr, nullptr, args.grad_bias_in, nullptr);
  }

 private:
  // Where the packed weights and the scales of their outputs lie.
  struct Packed {
    Plan<D> plan;
    KernelLayout conv, nin_layout;
    Cell *conv_out, *conv_in, *nin;
    Scalar *scale_out, *scale_in, *scale_nin;

    Packed(const GatedBlockShape& shape, const GatedWeights& w, void* packed)
        : plan(shape), conv(plan.f2, plan.taps, shape.taps_outside), nin_layout(plan.s2, 1, false) {
      conv_out = static_cast<Cell*>(packed);
      conv_in = conv_out + plan.conv_out_cells();
      nin = conv_in + larger(plan.conv_in_cells(), plan.conv_in_back_cells());
      scale_out = reinterpret_cast<Scalar*>(conv_out + plan.all_cells());
      scale_in = scale_out + plan.f2;
      scale_nin = scale_in + plan.f;
      const int64_t length = static_cast<int64_t>(plan.f2) * plan.taps;
      write_scales<D>(numbers(w.conv_out), numbers(w.gain_out), plan.f2, length, scale_out);
      write_scales<D>(numbers(w.conv_in), numbers(w.gain_in), plan.f, length, scale_in);
      if (plan.s2 > 0) {
        write_scales<D>(numbers(w.nin), numbers(w.gain_nin), plan.f, plan.s2, scale_nin);
      }
    }
  };

  struct Buffers {
    Element *x, *h;  // padded images: concat_elu of x and of h, one at a time in backward
    Element *grad_gates, *grad_h;  // padded images, shifted the other way
    Cell *even, *odd;              // concat_elu in pairs of columns
    Cell *gates_pairs, *h_pairs, *skip_pairs;
    Element* skip;                            // concat_elu of some rows of the skips
    Element *x_slope, *h_slope, *skip_slope;  // exp(-|v|) of x and h, and of a row of the skips
    Scalar *row, *keep;  // sums of a row of pixels; dropout's factors of an image
    T* h_row;

    Buffers(const GatedBlockShape& shape, Scratch& scratch) {
      const Plan<D> p(shape);
      const int64_t padded = p.height * p.cols;
      x = scratch.take<Element>(padded * p.f2);
      h = scratch.take<Element>(padded * p.f2);
      grad_gates = scratch.take<Element>(padded * p.f2);
      grad_h = scratch.take<Element>(padded * p.f_cells * D::kPair);
      even = scratch.take<Cell>(kPairs ? p.height * p.pairs * p.f2 : 0);
      odd = scratch.take<Cell>(kPairs ? p.height * p.pairs * p.f2 : 0);
      gates_pairs = scratch.take<Cell>(kPairs ? p.height * p.steps * p.f2_pad : 0);
      h_pairs = scratch.take<Cell>(kPairs ? p.height * p.steps * p.f_pad : 0);
      skip = scratch.take<Element>(p.chunk * p.steps * D::kPair * p.s2);
      skip_pairs = scratch.take<Cell>(kPairs ? p.chunk * p.steps * p.s2 : 0);
      row = scratch.take<Scalar>(p.width * larger(p.f2_pad, p.s2_pad));
      keep = scratch.take<Scalar>(p.height * p.width * p.f2);
      x_slope = scratch.take<Element>(p.height * p.width * p.f);
      h_slope = scratch.take<Element>(p.height * p.width * p.f);
      skip_slope = scratch.take<Element>(p.width * p.s2 / 2);
      h_row = scratch.take<T>(p.width * p.f);
    }
  };

  static const Scalar* numbers(const void* p) { return static_cast<const Scalar*>(p); }

  Block(const GatedBlockShape& shape, const GatedDropout& dropout, const void* packed,
        void* scratch)
      : Block(shape, dropout, packed, Scratch{static_cast<char*>(scratch)}) {}

  Block(const GatedBlockShape& shape, const GatedDropout& dropout, const void* packed,
        Scratch scratch)
      : shape_(shape), plan_(shape), dropout_(dropout), buffers_(shape, scratch) {
    // The zeros around the images stay: passes write the inside alone.
    fill_margins(buffers_.x, plan_.f2, plan_.left);
    fill_margins(buffers_.h, plan_.f2, plan_.left);
    fill_margins(buffers_.grad_gates, plan_.f2, plan_.back_left);
    const int64_t h_stride = plan_.f_cells * D::kPair;
    if (h_stride == plan_.f) {
      fill_margins(buffers_.grad_h, h_stride, plan_.back_left);
    } else {  // the last channel's partner is zero, too
      fill_zero(buffers_.grad_h, plan_.height * plan_.cols * h_stride);
    }
    fill_zero(buffers_.skip, plan_.chunk * plan_.steps * D::kPair * plan_.s2);
    conv_out_ = static_cast<const Cell*>(packed);
    conv_in_ = conv_out_ + plan_.conv_out_cells();
    nin_ = conv_in_ + larger(plan_.conv_in_cells(), plan_.conv_in_back_cells());
    for (int i = 0; i < plan_.kernel_h; ++i) {
      for (int j = 0; j < plan_.kernel_w; ++j) {
        const int64_t pixel = i * plan_.cols + j;
        wide_taps_[i * plan_.kernel_w + j] = pixel * plan_.f2_cells;
        narrow_taps_[i * plan_.kernel_w + j] = pixel * plan_.f_cells;
      }
    }
  }

  // Zeros in the columns beside a padded image of `channels`, `left` of them before it.
  void fill_margins(Element* padded, int64_t channels, int64_t left) const {
    const int64_t right = plan_.cols - left - plan_.width;
    for (int64_t r = 0; r < plan_.height; ++r) {
      Element* row = padded + r * plan_.cols * channels;
      fill_zero(row, left * channels);
      fill_zero(row + (left + plan_.width) * channels, right * channels);
    }
  }

  // ---- forward ----

  template <bool kDropout>
  void forward_image(const GatedForward& args, int64_t image) {
    const Plan<D>& p = plan_;
    const int64_t first = image * p.height * p.width;
    const T* x = static_cast<const T*>(args.x) + first * p.f;
    T* y = static_cast<T*>(args.y) + first * p.f;
    const int64_t line = p.width * p.f;
    if constexpr (kDropout) draw_keep(first);
    for (int64_t r = 0; r < p.height; ++r) {
      P::template write_concat_elu<false, false>(
          x + r * line, p.width, p.f, inside(buffers_.x, r, p.f2), p.f2, p.f, nullptr, nullptr);
    }
    for (int64_t r = 0; r < p.height; ++r) {
      convolve_row(buffers_.x, p.f2_cells, wide_taps_, conv_in_, p.f_pad, r, p.top);
      if (p.s2 > 0) {
        write_skip_row<false>(args.skips, first + r * p.width, buffers_.skip);
        convolve<true>(buffers_.skip, p.s2_cells, &kNoOffset, 1, nin_, p.f_pad);
      }
      T* h = args.h == nullptr ? buffers_.h_row : static_cast<T*>(args.h) + first * p.f + r * line;
      P::write_biased(buffers_.row, p.f_pad, numbers(args.weights.bias_in),
                      p.s2 > 0 ? numbers(args.weights.bias_nin) : nullptr, p.width, p.f, h);
      P::template write_concat_elu<kDropout, false>(h, p.width, p.f, inside(buffers_.h, r, p.f2),
                                                    p.f2, p.f, keep_row(r), nullptr);
    }
    for (int64_t r = 0; r < p.height; ++r) {
      convolve_row(buffers_.h, p.f2_cells, wide_taps_, conv_out_, p.f2_pad, r, p.top);
      T* gates = args.gates == nullptr ? nullptr
                                       : static_cast<T*>(args.gates) + 2 * (first * p.f + r * line);
      P::write_gated(buffers_.row, p.f2_pad, numbers(args.weights.bias_out), x + r * line, p.width,
                     p.f, y + r * line, gates);
    }
  }

  // ---- backward ----

  template <bool kDropout>
  void backward_image(const GatedBackward& args, int64_t image, bool first_image, Scalar* sums) {
    const Plan<D>& p = plan_;
    const int64_t first = image * p.height * p.width;
    const int64_t line = p.width * p.f;
    const auto at = [&](const void* data) { return static_cast<const T*>(data) + first * p.f; };
    const T *grad_y = at(args.grad_y), *x = at(args.x), *h = at(args.h);
    const T* gates = static_cast<const T*>(args.gates) + 2 * first * p.f;
    T* grad_x = static_cast<T*>(args.grad_x) + first * p.f;
    Scalar* sums_in = sums + p.conv_out_sums();
    Scalar* sums_nin = sums_in + p.conv_in_sums();
    Scalar* sums_bias_out = sums_nin + p.nin_sums();
    Scalar* sums_bias_in = sums_bias_out + p.f2_pad;
    const int64_t h_stride = p.f_cells * D::kPair;

    if constexpr (kDropout) draw_keep(first);
    for (int64_t r = 0; r < p.height; ++r) {
      Element* out = back_inside(buffers_.grad_gates, r, p.f2);
      P::write_gate_gradient(grad_y + r * line, gates + 2 * r * line, p.width, p.f, out, p.f2,
                             sums_bias_out);
      P::pair_columns(out, p.f2, p.steps, p.f2, buffers_.gates_pairs + r * p.steps * p.f2_pad,
                      p.f2_pad);
      P::template write_concat_elu<kDropout, true>(h + r * line, p.width, p.f,
                                                   inside(buffers_.h, r, p.f2), p.f2, p.f,
                                                   keep_row(r), buffers_.h_slope + r * line);
    }
    add_conv_gradient(buffers_.h, buffers_.grad_gates, p.f2, buffers_.gates_pairs, p.f2_pad,
                      first_image, sums);

    for (int64_t r = 0; r < p.height; ++r) {
      convolve_row(buffers_.grad_gates, p.f2_cells, wide_taps_, conv_out_, p.f2_pad, r, p.back_top);
      Element* out = back_inside(buffers_.grad_h, r, h_stride);
      P::template write_hidden_gradient<kDropout>(buffers_.row, p.f2_pad, h + r * line,
                                                  buffers_.h_slope + r * line, keep_row(r), p.width,
                                                  p.f, out, h_stride, sums_bias_in);
      P::pair_columns(out, h_stride, p.steps, p.f, buffers_.h_pairs + r * p.steps * p.f_pad,
                      p.f_pad);
      P::template write_concat_elu<false, true>(x + r * line, p.width, p.f,
                                                inside(buffers_.x, r, p.f2), p.f2, p.f, nullptr,
                                                buffers_.x_slope + r * line);
    }
    add_conv_gradient(buffers_.x, buffers_.grad_h, h_stride, buffers_.h_pairs, p.f_pad, first_image,
                      sums_in);
    for (int64_t r = 0; r < p.height; ++r) {
      convolve_row(buffers_.grad_h, p.f_cells, narrow_taps_, conv_in_, p.f2_pad, r, p.back_top);
      P::write_input_gradient(buffers_.row, p.f2_pad, p.f, x + r * line,
                              buffers_.x_slope + r * line, grad_y + r * line, p.width, p.f,
                              grad_x + r * line);
    }
    if (p.s2 > 0) backward_skips(args, first, first_image, sums_nin);
  }

  void backward_skips(const GatedBackward& args, int64_t first, bool first_image, Scalar* sums) {
    const Plan<D>& p = plan_;
    const int64_t h_stride = p.f_cells * D::kPair;
    const int64_t line = p.steps * D::kPair * p.s2;  // elements of a row of buffers_.skip
    for (int64_t r0 = 0; r0 < p.height; r0 += p.chunk) {
      const int64_t rows = smaller(p.chunk, p.height - r0);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t pixel = first + (r0 + r) * p.width;
        Element* skip = buffers_.skip + r * line;
        write_skip_row<true>(args.skips, pixel, skip);
        P::pair_columns(skip, p.s2, p.steps, p.s2, buffers_.skip_pairs + r * p.steps * p.s2, p.s2);
        convolve<false>(back_inside(buffers_.grad_h, r0 + r, h_stride), p.f_cells, &kNoOffset, 1,
                        nin_, p.s2_pad);
        int64_t channel = 0;
        for (int i = 0; i < shape_.n_skips; ++i) {
          const int channels = shape_.skip_channels[i];
          P::write_input_gradient(buffers_.row + channel, p.s2_pad, p.s2 / 2,
                                  static_cast<const T*>(args.skips[i]) + pixel * channels,
                                  buffers_.skip_slope + channel * p.width, nullptr, p.width,
                                  channels, static_cast<T*>(args.grad_skips[i]) + pixel * channels);
          channel += channels;
        }
      }
      const Rows a = kPairs ? Rows{buffers_.skip_pairs, p.steps * p.s2, p.s2}
                            : Rows{cells(buffers_.skip), line, p.s2};
      add_weight_gradient(a,
                          gradient_rows(buffers_.grad_h, h_stride, buffers_.h_pairs, p.f_pad, r0),
                          rows, p.s2, p.f_pad, !first_image || r0 > 0, sums);
    }
  }

  // ---- parts ----

  // Rows of cells of neighbouring pixels: how a sum over pixels sees its operands.
  struct Rows {
    const Cell* start;
    int64_t row, step;  // cells from a row to the next, from a pixel's (or pair's) to the next
  };

  static const Cell* cells(const Element* p) { return reinterpret_cast<const Cell*>(p); }

  Element* inside(Element* padded, int64_t r, int64_t stride) const {
    return padded + (r * plan_.cols + plan_.left) * stride;
  }
  Element* back_inside(Element* padded, int64_t r, int64_t stride) const {
    return padded + (r * plan_.cols + plan_.back_left) * stride;
  }

  void draw_keep(int64_t first_pixel) {
    P::write_keep(dropout_, first_pixel * plan_.f2, plan_.height * plan_.width * plan_.f2,
                  buffers_.keep);
  }
  const Scalar* keep_row(int64_t r) const { return buffers_.keep + r * plan_.width * plan_.f2; }

  template <bool kSlope>
  void write_skip_row(const void* const* skips, int64_t pixel, Element* out) {
    int64_t channel = 0;
    for (int i = 0; i < shape_.n_skips; ++i) {
      const int channels = shape_.skip_channels[i];
      P::template write_concat_elu<false, kSlope>(
          static_cast<const T*>(skips[i]) + pixel * channels, plan_.width, channels, out + channel,
          plan_.s2, plan_.s2 / 2, nullptr, buffers_.skip_slope + channel * plan_.width);
      channel += channels;
    }
  }

  // buffers_.row[c][n] = the convolution of a padded image at the pixels of output row r, whose
  // first taps lie in row r - above.
  void convolve_row(const Element* image, int64_t pixel_cells, const int64_t* offsets,
                    const Cell* packed, int64_t n_pad, int64_t r, int64_t above) {
    const auto [first, last] = plan_.kernel_rows(r, above);
    const int64_t before = first * plan_.kernel_w;
    convolve<false>(image + (r - above + first) * plan_.cols * pixel_cells * D::kPair, pixel_cells,
                    offsets, static_cast<int>((last - first) * plan_.kernel_w),
                    packed + before * pixel_cells * n_pad, n_pad);
  }

  // buffers_.row[c][n] (+)= a convolution at the pixels of a row; `in` is where the first tap of
  // the first pixel lies.
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
    t.out = buffers_.row;
    t.out_row = n_pad;
    t.add = kAdd;
    run_tiles<D, false>(t, plan_.width, n_pad);
  }

  // sums[tap][k][n] += the gradient of a convolution's weights over an image; = if `first_image`.
  void add_conv_gradient(const Element* input, const Element* gradient, int64_t gradient_stride,
                         const Cell* gradient_pairs, int64_t n_pad, bool first_image,
                         Scalar* sums) {
    const Plan<D>& p = plan_;
    for (int64_t r = 0; r < (kPairs ? p.height : 0); ++r) {
      const Element* row = input + r * p.cols * p.f2;
      P::pair_columns(row, p.f2, p.pairs, p.f2, buffers_.even + r * p.pairs * p.f2, p.f2);
      if (p.kernel_w > 1) {
        P::pair_columns(row + p.f2, p.f2, p.pairs - 1, p.f2, buffers_.odd + r * p.pairs * p.f2,
                        p.f2);
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
          const Cell* pairs =
              (j % 2 == 0 ? buffers_.even : buffers_.odd) + (row * p.pairs + j / 2) * p.f2;
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
    if (kPairs) return {pairs + r0 * plan_.steps * n_pad, plan_.steps * n_pad, n_pad};
    const int64_t pixel = r0 * plan_.cols + plan_.back_left;
    return {cells(gradient + pixel * stride), plan_.cols * stride, stride};
  }

  // sums[k][n] (+)= the sum over `rows` rows and their pixels of a[pixel][k] b[pixel][n].
  void add_weight_gradient(const Rows& a, const Rows& b, int64_t rows, int k, int64_t n_pad,
                           bool add, Scalar* sums) {
    int64_t offsets[Plan<D>::kMostRows];
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
    t.inner = plan_.steps;
    t.out = sums;
    t.out_row = n_pad;
    t.add = add;
    run_tiles<D, true>(t, k, n_pad);
  }

  static constexpr int64_t kNoOffset = 0;

  const GatedBlockShape& shape_;
  Plan<D> plan_;
  const GatedDropout& dropout_;
  Buffers buffers_;
  const Cell *conv_out_, *conv_in_, *nin_;
  int64_t wide_taps_[kMaxTaps], narrow_taps_[kMaxTaps];  // of images with 2F and with F channels
};

template <class D, class T>
GatedKernels kernels_of() {
  using B = Block<D, T>;
  return {&B::packed_bytes, &B::scratch_bytes, &B::sums_bytes,
          &B::pack_forward, &B::pack_backward, &B::forward,
          &B::backward,     &B::add_sums,      &B::write_gradients};
}

}  // namespace

GatedKernelSet gated_block_kernels() {
#if defined(__AVX512BF16__)
  return {kernels_of<PlainDot<float>, float>(), kernels_of<PlainDot<double>, double>(),
          kernels_of<PairDot, bfloat16>()};
#else
  return {kernels_of<PlainDot<float>, float>(), kernels_of<PlainDot<double>, double>(),
          kernels_of<PlainDot<float>, bfloat16>()};
#endif
}

}  // namespace dsmooth::DSMOOTH_ISA
