// The gated resnet over a range of images with the vectors of one instruction set. Compiled once
// per set, each time with its own DSMOOTH_ISA; see vector_math.h for the restrictions.
//
// Each image passes through the whole gated resnet before the next one starts, so intermediate
// results stay in the L2 cache.
#include "convolution.h"
#include "passes.h"
#include "weights.h"

namespace dsmooth::DSMOOTH_ISA {
namespace {

template <class D, class T>
class GatedResnet {
  using P = Passes<D, T>;
  using Scalar = typename D::Scalar;
  using Element = typename D::Element;
  using Cell = typename D::Cell;
  using Padded = PaddedImage<D>;
  static constexpr bool kPairs = D::kPair == 2;

 public:
  static GatedSizes sizes(const GatedShape& shape) {
    const Layout<D> p(shape);
    Scratch scratch;
    if (shape.batch > 0) Buffers(p, scratch);
    return {static_cast<size_t>(p.all_cells()) * sizeof(Cell) +
                static_cast<size_t>(2 * p.f + p.f2) * sizeof(Scalar),
            static_cast<size_t>(scratch.used), static_cast<size_t>(p.all_sums()) * sizeof(Scalar)};
  }

  static void forward(const GatedCall& call, const void* packed, int64_t first, int64_t last,
                      void* scratch) {
    GatedResnet resnet(call.shape, call.dropout, packed, Scratch{static_cast<char*>(scratch)});
    for (int64_t image = first; image < last; ++image) resnet.forward_image(call, image);
  }

  static void backward(const GatedCall& call, const void* packed, int64_t first, int64_t last,
                       void* scratch, void* sums) {
    GatedResnet resnet(call.shape, call.dropout, packed, Scratch{static_cast<char*>(scratch)});
    auto* group = static_cast<Scalar*>(sums);
    const Layout<D>& layout = resnet.layout_;
    if (group != nullptr) fill_zero(group + layout.weight_sums(), layout.f2_pad + layout.f_pad);
    for (int64_t image = first; image < last; ++image)
      resnet.backward_image(call, image, image == first, group);
  }

 private:
  struct Buffers {
    Padded x, h;                // concat_elu of x and of h, one at a time in backward
    Padded grad_gates, grad_h;  // shifted the other way
    Padded skip;                // concat_elu of some rows of the skips, and in pairs of columns
    Cell* skip_pairs;
    Element *x_slope, *h_slope, *skip_slope;  // exp(-|v|) of x, h and some rows of the skips
    Scalar *sums, *keep;                      // of rows of pixels; dropout's factors of an image
    T* h_row;
    PixelOperands<D> operands;

    Buffers(const Layout<D>& p, Scratch& scratch)
        : x(image(scratch, p.pixels, p.f2, p.cols, p.pad_top, p.pad_left)),
          h(image(scratch, p.pixels, p.f2, p.cols, p.pad_top, p.pad_left)),
          grad_gates(image(scratch, p.pixels, p.f2, p.cols, p.back_top, p.back_left)),
          grad_h(image(scratch, p.pixels, p.f_cells * D::kPair, p.cols, p.back_top, p.back_left)),
          skip(image(scratch, p.skip_pixels, p.s2, p.cols, 0, 0)),
          skip_pairs(scratch.take<Cell>(kPairs ? p.skip_pixels / 2 * p.s2_pad : 0)),
          x_slope(scratch.take<Element>(p.height * p.width * p.f)),
          h_slope(scratch.take<Element>(p.height * p.width * p.f)),
          skip_slope(scratch.take<Element>(p.rows_at_once * p.width * p.s2 / 2)),
          sums(scratch.take<Scalar>(p.run_of(p.rows_at_once) * larger(p.f2_pad, p.s2_pad))),
          keep(scratch.take<Scalar>(p.height * p.width * p.f2)),
          h_row(scratch.take<T>(p.width * p.f)),
          operands(p, scratch) {}

    static Padded image(Scratch& scratch, int64_t pixels, int64_t stride, int64_t cols, int64_t top,
                        int64_t left) {
      return {scratch.take<Element>(pixels * stride), pixels, stride, cols, top, left};
    }
  };

  static const Scalar* numbers(const void* p) { return static_cast<const Scalar*>(p); }

  GatedResnet(const GatedShape& shape, const GatedDropout& dropout, const void* packed,
              Scratch scratch)
      : layout_(shape),
        dropout_(dropout),
        buffers_(layout_, scratch),
        convolutions_(layout_, buffers_.operands, buffers_.sums) {
    // The zeros around the images remain: passes write only the interior.
    fill_margins(buffers_.x, layout_.height);
    fill_margins(buffers_.h, layout_.height);
    fill_margins(buffers_.grad_gates, layout_.height);
    if (buffers_.grad_h.stride == layout_.f)
      fill_margins(buffers_.grad_h, layout_.height);
    else  // the last channel's partner is zero
      fill_zero(buffers_.grad_h.data, buffers_.grad_h.pixels * buffers_.grad_h.stride);
    fill_margins(buffers_.skip, layout_.skip_rows);
    conv_out_ = static_cast<const Cell*>(packed);
    conv_in_ = conv_out_ + layout_.conv_in_start();
    nin_ = conv_out_ + layout_.nin_start();
  }

  void fill_margins(const Padded& image, int64_t rows) const {
    Element* zeros = image.data;
    for (int64_t r = 0; r < rows; ++r) {
      fill_zero(zeros, image.inside(r) - zeros);
      zeros = image.inside(r) + layout_.width * image.stride;
    }
    fill_zero(zeros, image.data + image.pixels * image.stride - zeros);
  }

  // Calls body(first, count) for the rows in [first, last) that are convolved at once.
  template <class Body>
  void for_rows(int64_t first, int64_t last, const Body& body) const {
    for (int64_t r = first; r < last; r += layout_.rows_at_once)
      body(r, smaller(layout_.rows_at_once, last - r));
  }

  void forward_image(const GatedCall& call, int64_t image) {
    const Layout<D>& p = layout_;
    const int64_t first = image * p.height * p.width;
    const T* x = static_cast<const T*>(call.tensors.x) + first * p.f;
    T* y = static_cast<T*>(call.tensors.y) + first * p.f;
    const Scalar* image_bias = row_of<const Scalar>(call.tensors.image_bias, image);
    const int64_t line = p.width * p.f;
    draw_keep(first);
    for (int64_t r = 0; r < p.height; ++r) {
      P::write_concat_elu(x + r * line, p.width, p.f, buffers_.x.inside(r), p.f2, p.f, nullptr,
                          nullptr);
    }
    for_rows(0, p.height, [&](int64_t r0, int64_t rows) {
      convolutions_.convolve(buffers_.x, conv_in_, p.f_pad, r0, rows);
      if (p.s2 > 0) {
        write_skip_rows(call.tensors, first + r0 * p.width, rows, buffers_.skip.data, nullptr);
        convolutions_.convolve_points(buffers_.skip.data, p.s2_cells, nin_, p.f_pad, rows, true);
      }
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t r = r0 + i;
        T* h = call.tensors.h == nullptr ? buffers_.h_row
                                         : static_cast<T*>(call.tensors.h) + first * p.f + r * line;
        P::write_biased(convolutions_.row_sums(i, p.f_pad), p.f_pad, numbers(call.tensors.bias_in),
                        p.s2 > 0 ? numbers(call.tensors.bias_nin) : nullptr, p.width, p.f, h);
        P::write_concat_elu(h, p.width, p.f, buffers_.h.inside(r), p.f2, p.f, keep_row(r), nullptr);
      }
    });
    for_rows(0, p.height, [&](int64_t r0, int64_t rows) {
      convolutions_.convolve(buffers_.h, conv_out_, p.f2_pad, r0, rows);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = (r0 + i) * line;
        T* gates = call.tensors.gates == nullptr
                       ? nullptr
                       : static_cast<T*>(call.tensors.gates) + 2 * (first * p.f + at);
        P::write_gated(convolutions_.row_sums(i, p.f2_pad), p.f2_pad,
                       numbers(call.tensors.bias_out), image_bias, x + at, p.width, p.f, y + at,
                       gates);
      }
    });
  }

  void backward_image(const GatedCall& call, int64_t image, bool first_image, Scalar* sums) {
    const Layout<D>& p = layout_;
    const int64_t first = image * p.height * p.width;
    const int64_t line = p.width * p.f;
    const auto at = [&](const void* data) { return static_cast<const T*>(data) + first * p.f; };
    const T *grad_y = at(call.grads.y), *x = at(call.tensors.x), *h = at(call.tensors.h);
    const T* gates = static_cast<const T*>(call.tensors.gates) + 2 * first * p.f;
    T* grad_x = static_cast<T*>(call.grads.x) + first * p.f;
    const bool frozen = sums == nullptr;
    Scalar* sums_in = frozen ? nullptr : sums + p.conv_out_sums();
    Scalar* sums_nin = frozen ? nullptr : sums_in + p.conv_in_sums();
    Scalar* sums_bias_out = frozen ? nullptr : sums_nin + p.nin_sums();
    Scalar* sums_bias_in = frozen ? nullptr : sums_bias_out + p.f2_pad;
    // With image_bias, an image's sums are first the gradient of its bias.
    Scalar* image_sums = row_of<Scalar>(call.grads.image_bias, image);
    if (image_sums != nullptr) fill_zero(image_sums, p.f2);
    Scalar* gate_sums = image_sums == nullptr ? sums_bias_out : image_sums;
    const Padded &grad_gates = buffers_.grad_gates, &grad_h = buffers_.grad_h;

    draw_keep(first);
    for (int64_t r = 0; r < p.height; ++r) {
      P::write_gate_gradient(grad_y + r * line, gates + 2 * r * line, p.width, p.f,
                             grad_gates.inside(r), p.f2, gate_sums);
      P::write_concat_elu(h + r * line, p.width, p.f, buffers_.h.inside(r), p.f2, p.f, keep_row(r),
                          buffers_.h_slope + r * line);
    }
    if (!frozen) {
      for (int c = 0; image_sums != nullptr && c < p.f2; ++c) sums_bias_out[c] += image_sums[c];
      convolutions_.take_gradient(grad_gates, p.f2);
      convolutions_.add_conv_gradient(buffers_.h, first_image, sums);
    }

    for_rows(0, p.height, [&](int64_t r0, int64_t rows) {
      convolutions_.convolve(grad_gates, conv_out_, p.f2_pad, r0, rows);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t r = r0 + i;
        P::write_elu_gradient(convolutions_.row_sums(i, p.f2_pad), p.f2_pad, p.f, h + r * line,
                              buffers_.h_slope + r * line, keep_row(r), nullptr, p.width, p.f,
                              grad_h.inside(r), grad_h.stride, sums_bias_in);
        P::write_concat_elu(x + r * line, p.width, p.f, buffers_.x.inside(r), p.f2, p.f, nullptr,
                            buffers_.x_slope + r * line);
      }
    });
    if (!frozen) {
      convolutions_.take_gradient(grad_h, p.f);
      convolutions_.add_conv_gradient(buffers_.x, first_image, sums_in);
    }
    for_rows(0, p.height, [&](int64_t r0, int64_t rows) {
      convolutions_.convolve(grad_h, conv_in_, p.f2_pad, r0, rows);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = (r0 + i) * line;
        P::write_elu_gradient(convolutions_.row_sums(i, p.f2_pad), p.f2_pad, p.f, x + at,
                              buffers_.x_slope + at, nullptr, grad_y + at, p.width, p.f,
                              grad_x + at, p.f, nullptr);
      }
    });
    for (int64_t r = 0; p.s2 > 0 && r < p.height; r += p.skip_rows)
      backward_skips(call, first, r, smaller(p.skip_rows, p.height - r), first_image, sums_nin);
  }

  // For some rows starting at `row`.
  void backward_skips(const GatedCall& call, int64_t first, int64_t row, int64_t count,
                      bool first_image, Scalar* sums) {
    const void* const skips[kMaxSkips] = {call.tensors.skip, call.tensors.skip_2};
    void* const grad_skips[kMaxSkips] = {call.grads.skip, call.grads.skip_2};
    const Layout<D>& p = layout_;
    for_rows(row, row + count, [&](int64_t r0, int64_t rows) {
      const int64_t pixel = first + r0 * p.width;
      write_skip_rows(call.tensors, pixel, rows, buffers_.skip.inside(r0 - row),
                      buffers_.skip_slope);
      convolutions_.convolve_points(buffers_.grad_h.inside(r0), p.f_cells, nin_, p.s2_pad, rows,
                                    false);
      for (int64_t i = 0; i < rows; ++i) {
        int64_t channel = 0;
        for (int s = 0; s < kMaxSkips; ++s) {
          const int channels = p.skip_channels[s];
          const int64_t at = (pixel + i * p.width) * channels;
          P::write_elu_gradient(convolutions_.row_sums(i, p.s2_pad) + channel, p.s2_pad, p.s2 / 2,
                                static_cast<const T*>(skips[s]) + at,
                                buffers_.skip_slope + (i * p.s2 / 2 + channel) * p.width, nullptr,
                                nullptr, p.width, channels, static_cast<T*>(grad_skips[s]) + at,
                                channels, nullptr);
          channel += channels;
        }
      }
    });
    if (sums == nullptr) return;
    const int64_t step = kPairs ? p.s2_pad : p.s2;
    const Cell* cells = Convolutions<D>::cells(buffers_.skip.data);
    if constexpr (kPairs) {
      pair_columns<D>(buffers_.skip.data, p.s2, p.skip_pixels / 2, p.s2, buffers_.skip_pairs, step);
      cells = buffers_.skip_pairs;
    }
    const int64_t first_unit = row * p.units / p.height;
    const int64_t last_unit = (row + count) * p.units / p.height;
    for (int64_t u = first_unit; u < last_unit; u += p.chunk) {
      convolutions_.add_weight_gradient(cells + (u - first_unit) * p.unit_pitch * step, step,
                                        p.s2_pad, u, !first_image || u > 0, sums);
    }
  }

  // An image's 2F numbers in (B, 2F), or null.
  template <class Number>
  Number* row_of(void* numbers, int64_t image) const {
    return numbers == nullptr ? nullptr : static_cast<Number*>(numbers) + image * layout_.f2;
  }

  void draw_keep(int64_t first_pixel) {
    if (!dropout_.active) return;
    const int64_t pixels = layout_.height * layout_.width;
    P::write_keep(dropout_, (dropout_.first_image * pixels + first_pixel) * layout_.f2,
                  pixels * layout_.f2, buffers_.keep);
  }
  const Scalar* keep_row(int64_t r) const {
    return dropout_.active ? buffers_.keep + r * layout_.width * layout_.f2 : nullptr;
  }

  // concat_elu of some rows of the skips, starting at `pixel`. `slope` has the rows of one skip,
  // then of the other.
  void write_skip_rows(const GatedTensors& tensors, int64_t pixel, int64_t rows, Element* out,
                       Element* slope) {
    const Layout<D>& p = layout_;
    const void* const skips[kMaxSkips] = {tensors.skip, tensors.skip_2};
    for (int64_t r = 0; r < rows; ++r, pixel += p.width, out += p.cols * p.s2) {
      int64_t channel = 0;
      for (int i = 0; i < kMaxSkips; ++i) {
        const int channels = p.skip_channels[i];
        P::write_concat_elu(
            static_cast<const T*>(skips[i]) + pixel * channels, p.width, channels, out + channel,
            p.s2, p.s2 / 2, nullptr,
            slope == nullptr ? nullptr : slope + (r * p.s2 / 2 + channel) * p.width);
        channel += channels;
      }
    }
  }

  Layout<D> layout_;
  const GatedDropout& dropout_;
  Buffers buffers_;
  Convolutions<D> convolutions_;
  const Cell *conv_out_, *conv_in_, *nin_;
};

template <class D, class T>
GatedKernels kernels_of() {
  using B = GatedResnet<D, T>;
  using W = Weights<D>;
  return {
      &B::sizes,    &W::template pack<false>, &W::template pack<true>, &B::forward, &B::backward,
      &W::add_sums, &W::write_gradients};
}

// float64 is for tests, and one set is enough: more would take a third of the compile time.
template <bool kWanted>
GatedKernels float64_kernels() {
  if constexpr (kWanted) return kernels_of<PlainDot<double>, double>();
  return {};
}

}  // namespace

GatedKernelSet gated_resnet_kernels() {
#if defined(__AMX_BF16__)
  return {{}, {}, kernels_of<MatrixDot, bfloat16>()};
#elif defined(__AVX512BF16__)
  return {{}, {}, kernels_of<PairDot, bfloat16>()};
#elif defined(__AVX512F__)
  return {kernels_of<PlainDot<float>, float>(), {}, {}};
#else
  return {kernels_of<PlainDot<float>, float>(), float64_kernels<kIsGeneric>(),
          kernels_of<PlainDot<float>, bfloat16>()};
#endif
}

}  // namespace dsmooth::DSMOOTH_ISA
