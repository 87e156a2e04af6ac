// Packs a gated resnet's weights in the order that its products read, and unpacks their gradients
// into torch's order. Compiled once per instruction set: see vector_math.h for the restrictions.
#pragma once

#include "convolution.h"

namespace dsmooth::DSMOOTH_ISA {
namespace {

// Memory layout of a kernel (out, in, kh, kw).
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
void write_scales(const void* weight, const void* gains, int n_count, int64_t length,
                  typename D::Scalar* scale) {
  const auto* v = static_cast<const typename D::Scalar*>(weight);
  const auto* gain = static_cast<const typename D::Scalar*>(gains);
  for (int n = 0; n < n_count; ++n, v += length)
    scale[n] = gain == nullptr ? 1 : gain[n] / D::square_root(sum_of_products<D>(v, v, length));
}

// Weights times their scales: packed[tap][in / pair][out], or, for the backward, packed[last tap
// first][out / pair][in].
template <class D, bool kBackward>
void pack_kernel(const void* weight, const KernelLayout& layout, const typename D::Scalar* scale,
                 int outputs, int inputs, int taps, typename D::Cell* packed) {
  const int summed = kBackward ? outputs : inputs, outer = kBackward ? inputs : outputs;
  const int64_t step = kBackward ? layout.out : layout.in;
  const int64_t other_step = kBackward ? layout.in : layout.out;
  const int64_t pad = round_up(outer, D::kColumns);
  for (int t = 0; t < taps; ++t) {
    const auto* tap_weights = static_cast<const typename D::Scalar*>(weight) +
                              (kBackward ? taps - 1 - t : t) * layout.tap;
    for (int k = 0; k < summed; k += D::kPair, packed += pad) {
      const bool second = D::kPair == 2 && k + 1 < summed;  // an odd last one has no partner
      const auto* at = tap_weights + k * step;
      for (int n = 0; n < outer; ++n, at += other_step) {
        packed[n] = D::cell(at[0] * scale[kBackward ? k : n],
                            second ? at[step] * scale[kBackward ? k + 1 : n] : 0);
      }
      for (int64_t n = outer; n < pad; ++n) packed[n] = 0;
    }
  }
}

// A range of a convolution's output channels, and the number that have sums.
struct Outputs {
  int64_t first, last, rows;
};

// Writes the gradient of v, and of the gains g if there are any, from sums[tap][out][in], the
// gradient of w = g v / |v|: dg = <dw, v> / |v|, dv = g / |v| (dw - v <dw, v> / |v|^2).
template <class D>
void write_gradient(const typename D::Scalar* sums, const Outputs& outputs,
                    const KernelLayout& layout, int inputs, int64_t inputs_pad, int taps,
                    const void* weight, const void* gain, void* grad_weight, void* grad_gain) {
  using Scalar = typename D::Scalar;
  auto* grad = static_cast<Scalar*>(grad_weight);
  for (int64_t n = outputs.first; n < outputs.last; ++n) {
    for (int tap = 0; tap < taps; ++tap) {
      for (int k = 0; k < inputs; ++k) {
        grad[n * layout.out + k * layout.in + tap * layout.tap] =
            sums[(tap * outputs.rows + n) * inputs_pad + k];
      }
    }
  }
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

template <class D>
class Weights {
  using Scalar = typename D::Scalar;
  using Cell = typename D::Cell;

 public:
  // The packed weights, followed by the scales of their outputs.
  template <bool kBackward>
  static void pack(const GatedCall& call, void* packed) {
    const Layout<D> layout(call.shape);
    const GatedTensors& w = call.tensors;
    const KernelLayout conv(layout.f2, layout.taps(), layout.taps_outside);
    auto* cells = static_cast<Cell*>(packed);
    auto* scale_out = reinterpret_cast<Scalar*>(cells + layout.all_cells());
    Scalar* scale_in = scale_out + layout.f2;
    Scalar* scale_nin = scale_in + layout.f;
    const int64_t length = static_cast<int64_t>(layout.f2) * layout.taps();
    write_scales<D>(w.conv_out, w.gain_out, layout.f2, length, scale_out);
    write_scales<D>(w.conv_in, w.gain_in, layout.f, length, scale_in);
    pack_kernel<D, kBackward>(w.conv_out, conv, scale_out, layout.f2, layout.f2, layout.taps(),
                              cells);
    pack_kernel<D, kBackward>(w.conv_in, conv, scale_in, layout.f, layout.f2, layout.taps(),
                              cells + layout.conv_in_start());
    if (layout.s2 > 0) {
      const KernelLayout nin(layout.s2, 1, false);
      write_scales<D>(w.nin_skip, w.gain_nin, layout.f, layout.s2, scale_nin);
      pack_kernel<D, kBackward>(w.nin_skip, nin, scale_nin, layout.f, layout.s2, 1,
                                cells + layout.nin_start());
    }
  }

  static void add_sums(const GatedShape& shape, void* sums, size_t stride, int64_t groups,
                       int64_t share, int64_t shares) {
    const int64_t count = Layout<D>(shape).all_sums();
    const int64_t first = count * share / shares, last = count * (share + 1) / shares;
    auto* total = static_cast<Scalar*>(sums);
    if (groups == 0) fill_zero(total + first, last - first);
    for (int64_t group = 1; group < groups; ++group) {
      const auto* more =
          reinterpret_cast<const Scalar*>(static_cast<const char*>(sums) + group * stride);
      for (int64_t i = first; i < last; ++i) total[i] += more[i];
    }
  }

  static void write_gradients(const GatedCall& call, const void* sums, int64_t share,
                              int64_t shares) {
    const Layout<D> layout(call.shape);
    const GatedTensors &w = call.tensors, &grads = call.grads;
    const auto* total = static_cast<const Scalar*>(sums);
    const KernelLayout conv(layout.f2, layout.taps(), layout.taps_outside);
    const KernelLayout plain(1, 1, false), nin(layout.s2, 1, false);
    const auto outputs = [&](int64_t count) {
      return Outputs{count * share / shares, count * (share + 1) / shares, layout.rows_of(count)};
    };
    const Outputs wide = outputs(layout.f2), narrow = outputs(layout.f);
    write_gradient<D>(total, wide, conv, layout.f2, layout.f2_pad, layout.taps(), w.conv_out,
                      w.gain_out, grads.conv_out, grads.gain_out);
    total += layout.conv_out_sums();
    write_gradient<D>(total, narrow, conv, layout.f2, layout.f2_pad, layout.taps(), w.conv_in,
                      w.gain_in, grads.conv_in, grads.gain_in);
    total += layout.conv_in_sums();
    if (layout.s2 > 0) {
      write_gradient<D>(total, narrow, nin, layout.s2, layout.s2_pad, 1, w.nin_skip, w.gain_nin,
                        grads.nin_skip, grads.gain_nin);
    }
    total += layout.nin_sums();
    write_gradient<D>(total, wide, plain, 1, 1, 1, nullptr, nullptr, grads.bias_out, nullptr);
    total += layout.f2_pad;
    write_gradient<D>(total, narrow, plain, 1, 1, 1, nullptr, nullptr, grads.bias_in, nullptr);
  }
};

}  // namespace
}  // namespace dsmooth::DSMOOTH_ISA
