// The gated resnet over a range of images with the vectors of one instruction set. Compiled once
// per set, each time with its own DSMOOTH_ISA; see vector_math.h for what this forbids.
//
// An image goes through the whole gated resnet before the next one starts. So everything between
// the inputs and the outputs stays in the second-level cache.
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
  using CellRows = typename Convolutions<D>::CellRows;
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
    Cell *even, *odd;           // concat_elu in pairs of columns
    Element* skip;              // concat_elu of some rows of the skips, and in pairs of columns
    Cell* skip_pairs;
    Element *x_slope, *h_slope, *skip_slope;  // exp(-|v|) of x and h, and of a row of the skips
    Scalar *row, *keep;  // sums of a row of pixels; dropout's factors of an image
    T* h_row;

    Buffers(const Layout<D>& p, Scratch& scratch) {
      const auto input = [&] {
        return Padded{scratch.take<Element>(p.height * p.cols * p.f2), p.f2, p.cols, p.pad_top,
                      p.pad_left};
      };
      const auto gradient = [&](int64_t stride, int64_t n_pad) {
        Element* const data = scratch.take<Element>(p.height * p.cols * stride);
        Cell* const pairs = scratch.take<Cell>(kPairs ? p.height * p.steps * n_pad : 0);
        return Padded{data, stride, p.cols, p.back_top, p.back_left, pairs, n_pad};
      };
      x = input();
      h = input();
      grad_gates = gradient(p.f2, p.f2_pad);
      grad_h = gradient(p.f_cells * D::kPair, p.f_pad);
      even = scratch.take<Cell>(kPairs ? p.height * p.pairs * p.f2 : 0);
      odd = scratch.take<Cell>(kPairs ? p.height * p.pairs * p.f2 : 0);
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

  GatedResnet(const GatedShape& shape, const GatedDropout& dropout, const void* packed,
              Scratch scratch)
      : layout_(shape),
        dropout_(dropout),
        buffers_(layout_, scratch),
        convolutions_(layout_, buffers_.row, buffers_.even, buffers_.odd) {
    // The zeros around the images stay: passes write the inside alone.
    fill_margins(buffers_.x);
    fill_margins(buffers_.h);
    fill_margins(buffers_.grad_gates);
    if (buffers_.grad_h.stride == layout_.f)
      fill_margins(buffers_.grad_h);
    else  // the last channel's partner is zero, too
      fill_zero(buffers_.grad_h.data, layout_.height * layout_.cols * buffers_.grad_h.stride);
    fill_zero(buffers_.skip, layout_.chunk * layout_.steps * D::kPair * layout_.s2);
    conv_out_ = static_cast<const Cell*>(packed);
    conv_in_ = conv_out_ + layout_.conv_in_start();
    nin_ = conv_out_ + layout_.nin_start();
  }

  void fill_margins(const Padded& image) const {
    const int64_t right = image.cols - image.left - layout_.width;
    for (int64_t r = 0; r < layout_.height; ++r) {
      fill_zero(image.row(r), image.left * image.stride);
      fill_zero(image.inside(r) + layout_.width * image.stride, right * image.stride);
    }
  }

  // Row r of a gradient of `channels` channels in pairs of columns.
  void pair_row(const Padded& gradient, int channels, int64_t r) const {
    pair_columns<D>(gradient.inside(r), gradient.stride, layout_.steps, channels,
                    gradient.pairs + r * layout_.steps * gradient.n_pad, gradient.n_pad);
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
    for (int64_t r = 0; r < p.height; ++r) {
      convolutions_.convolve_row(buffers_.x, conv_in_, p.f_pad, r);
      if (p.s2 > 0) {
        write_skip_row(call.tensors, first + r * p.width, buffers_.skip, nullptr);
        convolutions_.convolve_points(buffers_.skip, p.s2_cells, nin_, p.f_pad, true);
      }
      T* h = call.tensors.h == nullptr ? buffers_.h_row
                                       : static_cast<T*>(call.tensors.h) + first * p.f + r * line;
      P::write_biased(buffers_.row, p.f_pad, numbers(call.tensors.bias_in),
                      p.s2 > 0 ? numbers(call.tensors.bias_nin) : nullptr, p.width, p.f, h);
      P::write_concat_elu(h, p.width, p.f, buffers_.h.inside(r), p.f2, p.f, keep_row(r), nullptr);
    }
    for (int64_t r = 0; r < p.height; ++r) {
      convolutions_.convolve_row(buffers_.h, conv_out_, p.f2_pad, r);
      T* gates = call.tensors.gates == nullptr
                     ? nullptr
                     : static_cast<T*>(call.tensors.gates) + 2 * (first * p.f + r * line);
      P::write_gated(buffers_.row, p.f2_pad, numbers(call.tensors.bias_out), image_bias,
                     x + r * line, p.width, p.f, y + r * line, gates);
    }
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
    // The sums of an image with a bias of its own are that bias's gradient first.
    Scalar* image_sums = row_of<Scalar>(call.grads.image_bias, image);
    if (image_sums != nullptr) fill_zero(image_sums, p.f2);
    Scalar* gate_sums = image_sums == nullptr ? sums_bias_out : image_sums;
    const Padded &grad_gates = buffers_.grad_gates, &grad_h = buffers_.grad_h;

    draw_keep(first);
    for (int64_t r = 0; r < p.height; ++r) {
      P::write_gate_gradient(grad_y + r * line, gates + 2 * r * line, p.width, p.f,
                             grad_gates.inside(r), p.f2, gate_sums);
      if (!frozen) pair_row(grad_gates, p.f2, r);
      P::write_concat_elu(h + r * line, p.width, p.f, buffers_.h.inside(r), p.f2, p.f, keep_row(r),
                          buffers_.h_slope + r * line);
    }
    if (!frozen) {
      for (int c = 0; image_sums != nullptr && c < p.f2; ++c) sums_bias_out[c] += image_sums[c];
      convolutions_.add_conv_gradient(buffers_.h, grad_gates, first_image, sums);
    }

    for (int64_t r = 0; r < p.height; ++r) {
      convolutions_.convolve_row(grad_gates, conv_out_, p.f2_pad, r);
      P::write_elu_gradient(buffers_.row, p.f2_pad, p.f, h + r * line, buffers_.h_slope + r * line,
                            keep_row(r), nullptr, p.width, p.f, grad_h.inside(r), grad_h.stride,
                            sums_bias_in);
      if (!frozen) pair_row(grad_h, p.f, r);
      P::write_concat_elu(x + r * line, p.width, p.f, buffers_.x.inside(r), p.f2, p.f, nullptr,
                          buffers_.x_slope + r * line);
    }
    if (!frozen) convolutions_.add_conv_gradient(buffers_.x, grad_h, first_image, sums_in);
    for (int64_t r = 0; r < p.height; ++r) {
      convolutions_.convolve_row(grad_h, conv_in_, p.f2_pad, r);
      P::write_elu_gradient(buffers_.row, p.f2_pad, p.f, x + r * line, buffers_.x_slope + r * line,
                            nullptr, grad_y + r * line, p.width, p.f, grad_x + r * line, p.f,
                            nullptr);
    }
    if (p.s2 > 0) backward_skips(call, first, first_image, sums_nin);
  }

  void backward_skips(const GatedCall& call, int64_t first, bool first_image, Scalar* sums) {
    const void* const skips[kMaxSkips] = {call.tensors.skip, call.tensors.skip_2};
    void* const grad_skips[kMaxSkips] = {call.grads.skip, call.grads.skip_2};
    const Layout<D>& p = layout_;
    const int64_t line = p.steps * D::kPair * p.s2;  // elements of a row of buffers_.skip
    for (int64_t r0 = 0; r0 < p.height; r0 += p.chunk) {
      const int64_t rows = smaller(p.chunk, p.height - r0);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t pixel = first + (r0 + r) * p.width;
        Element* skip = buffers_.skip + r * line;
        write_skip_row(call.tensors, pixel, skip, buffers_.skip_slope);
        if (sums != nullptr) {
          pair_columns<D>(skip, p.s2, p.steps, p.s2, buffers_.skip_pairs + r * p.steps * p.s2,
                          p.s2);
        }
        convolutions_.convolve_points(buffers_.grad_h.inside(r0 + r), p.f_cells, nin_, p.s2_pad,
                                      false);
        int64_t channel = 0;
        for (int i = 0; i < kMaxSkips; ++i) {
          const int channels = layout_.skip_channels[i];
          P::write_elu_gradient(buffers_.row + channel, p.s2_pad, p.s2 / 2,
                                static_cast<const T*>(skips[i]) + pixel * channels,
                                buffers_.skip_slope + channel * p.width, nullptr, nullptr, p.width,
                                channels, static_cast<T*>(grad_skips[i]) + pixel * channels,
                                channels, nullptr);
          channel += channels;
        }
      }
      if (sums == nullptr) continue;
      const CellRows a = kPairs ? CellRows{buffers_.skip_pairs, p.steps * p.s2, p.s2}
                                : CellRows{Convolutions<D>::cells(buffers_.skip), line, p.s2};
      convolutions_.add_weight_gradient(a, convolutions_.gradient_rows(buffers_.grad_h, r0), rows,
                                        p.s2, p.f_pad, !first_image || r0 > 0, sums);
    }
  }

  // The 2F numbers of an image in (B, 2F); null where there are none.
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

  void write_skip_row(const GatedTensors& tensors, int64_t pixel, Element* out, Element* slope) {
    const void* const skips[kMaxSkips] = {tensors.skip, tensors.skip_2};
    int64_t channel = 0;
    for (int i = 0; i < kMaxSkips; ++i) {
      const int channels = layout_.skip_channels[i];
      P::write_concat_elu(static_cast<const T*>(skips[i]) + pixel * channels, layout_.width,
                          channels, out + channel, layout_.s2, layout_.s2 / 2, nullptr,
                          slope == nullptr ? nullptr : slope + channel * layout_.width);
      channel += channels;
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

}  // namespace

GatedKernelSet gated_resnet_kernels() {
#if defined(__AVX512BF16__)
  return {{}, {}, kernels_of<PairDot, bfloat16>()};
#else
  return {kernels_of<PlainDot<float>, float>(), kernels_of<PlainDot<double>, double>(),
          kernels_of<PlainDot<float>, bfloat16>()};
#endif
}

}  // namespace dsmooth::DSMOOTH_ISA
