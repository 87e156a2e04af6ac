// Elementwise passes of the gated resnet over rows of pixels, between its convolutions. Compiled
// once per instruction set: see vector_math.h for the restrictions.
//
// D is the arithmetic of the convolutions (common/gemm.h), T the type of activations in memory.
#pragma once

#include "../common/gemm.h"
#include "../common/philox.h"
#include "gated_resnet.h"

#define DSMOOTH_INLINE_LAMBDA __attribute__((always_inline))

namespace dsmooth::DSMOOTH_ISA {

template <class D, class T>
struct Passes {
  using M = typename D::M;
  using V = typename D::V;
  using Scalar = typename D::Scalar;
  using Element = typename D::Element;
  using Cell = typename D::Cell;
  static constexpr int kLanes = D::kLanes;
  static constexpr bool kRough = sizeof(T) == 2;  // activations have 8 bits of precision

  // Calls body(first, count) for the vectors of n numbers; full vectors are compiled separately.
  template <class Body>
  DSMOOTH_INLINE static void for_vectors(int n, const Body& body) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
    if (i < n) body(i, n - i);
  }

  // elu(v) = v > 0 ? v : m and elu(-v) = v > 0 ? m : -v with m = exp(-|v|) - 1; in the
  // derivatives v becomes 1 and m becomes e = exp(-|v|).
  DSMOOTH_INLINE static ExpPair<V> exp_minus_abs(V v) {
    return kRough ? M::rough_exp_pair(-M::abs(v)) : M::exp_pair(-M::abs(v));
  }

  // v times the factors at `keep + at`; a zero factor gives 0 even for a NaN. Without dropout
  // `keep` is null and the result is v.
  DSMOOTH_INLINE static V kept(V v, const Scalar* keep, int64_t at, int count) {
    if (keep == nullptr) return v;
    const V factor = M::load(keep + at, count);
    return M::select(factor != 0, v * factor, V{});
  }

  // out[p][c] = elu(in[p][c]), out[p][negative + c] = elu(-in[p][c]), with dropout; and unless it
  // is null, slope[p][c] = exp(-|in[p][c]|), for the backward. Pixels of `out` are `stride`
  // elements apart, those of `keep` 2 `channels`.
  static void write_concat_elu(const T* in, int64_t pixels, int channels, Element* out,
                               int64_t stride, int64_t negative, const Scalar* keep,
                               Element* slope) {
    for (int64_t p = 0; p < pixels; ++p, in += channels, out += stride) {
      const int64_t at = p * 2 * channels;
      for_vectors(channels, [&](int c, int count) DSMOOTH_INLINE_LAMBDA {
        const V v = M::load(in + c, count);
        const ExpPair<V> exp = exp_minus_abs(v);
        const V m = exp.em1;
        if (slope != nullptr) M::store(exp.e, slope + p * channels + c, count);
        M::store(kept(M::select(v > 0, v, m), keep, at + c, count), out + c, count);
        M::store(kept(M::select(v > 0, m, -v), keep, at + channels + c, count), out + negative + c,
                 count);
      });
    }
  }

  // The gradient of v, given `positive` of elu(v), `negative` of elu(-v), and e.
  DSMOOTH_INLINE static V through_concat_elu(V v, V e, V positive, V negative) {
    return M::select(v > 0, positive - negative * e, positive * e - negative);
  }

  // out = sums + bias (+ more_bias), from rows of `stride` sums a pixel.
  static void write_biased(const Scalar* sums, int64_t stride, const Scalar* bias,
                           const Scalar* more_bias, int64_t pixels, int channels, T* out) {
    for (int64_t p = 0; p < pixels; ++p, sums += stride, out += channels) {
      for_vectors(channels, [&](int c, int count) DSMOOTH_INLINE_LAMBDA {
        V v = M::load(sums + c, count) + M::load(bias + c, count);
        if (more_bias != nullptr) v += M::load(more_bias + c, count);
        M::store(v, out + c, count);
      });
    }
  }

  DSMOOTH_INLINE static V sigmoid(V v) {
    const V e = kRough ? M::rough_exp_pair(-M::abs(v)).e : M::exp(-M::abs(v));
    return M::select(v > 0, V{} + 1, e) * M::reciprocal(e + 1);
  }

  // y = x + A sigmoid(G) with (A, G) = sums + bias (+ image_bias), kept in `gates` unless that is
  // null.
  static void write_gated(const Scalar* sums, int64_t stride, const Scalar* bias,
                          const Scalar* image_bias, const T* x, int64_t pixels, int f, T* y,
                          T* gates) {
    for (int64_t p = 0; p < pixels; ++p, sums += stride, x += f, y += f) {
      for_vectors(f, [&](int c, int count) DSMOOTH_INLINE_LAMBDA {
        V a = M::load(sums + c, count) + M::load(bias + c, count);
        V g = M::load(sums + f + c, count) + M::load(bias + f + c, count);
        if (image_bias != nullptr) {
          a += M::load(image_bias + c, count);
          g += M::load(image_bias + f + c, count);
        }
        M::store(M::load(x + c, count) + a * sigmoid(g), y + c, count);
        if (gates != nullptr) {
          M::store(a, gates + c, count);
          M::store(g, gates + f + c, count);
        }
      });
      if (gates != nullptr) gates += 2 * f;
    }
  }

  DSMOOTH_INLINE static void add_to(Scalar* total, V v, int count) {
    M::store(M::load(total, count) + v, total, count);
  }

  // dA = dy sigmoid(G), dG = dy A sigmoid(G) (1 - sigmoid(G)), and their sums over pixels unless
  // `bias_sums` is null.
  static void write_gate_gradient(const T* grad_y, const T* gates, int64_t pixels, int f,
                                  Element* out, int64_t stride, Scalar* bias_sums) {
    for (int64_t p = 0; p < pixels; ++p, grad_y += f, gates += 2 * f, out += stride) {
      for_vectors(f, [&](int c, int count) DSMOOTH_INLINE_LAMBDA {
        const V dy = M::load(grad_y + c, count);
        const V s = sigmoid(M::load(gates + f + c, count));
        const V da = dy * s;
        const V dg = da * M::load(gates + c, count) * (1 - s);
        M::store(da, out + c, count);
        M::store(dg, out + f + c, count);
        if (bias_sums == nullptr) return;
        add_to(bias_sums + c, da, count);
        add_to(bias_sums + f + c, dg, count);
      });
    }
  }

  // The gradient of v from that of dropout(concat_elu(v)) in `sums`, whose gradient by elu(-v)
  // begins at `negative`. Adds `more` to it and sums it over pixels into `bias_sums`, each unless
  // null.
  template <class Out>
  static void write_elu_gradient(const Scalar* sums, int64_t sums_stride, int64_t negative,
                                 const T* v, const Element* slope, const Scalar* keep,
                                 const T* more, int64_t pixels, int channels, Out* out,
                                 int64_t stride, Scalar* bias_sums) {
    for (int64_t p = 0; p < pixels; ++p, sums += sums_stride, out += stride) {
      const int64_t at = p * channels;
      for_vectors(channels, [&](int c, int count) DSMOOTH_INLINE_LAMBDA {
        V dv = through_concat_elu(
            M::load(v + at + c, count), M::load(slope + at + c, count),
            kept(M::load(sums + c, count), keep, 2 * at + c, count),
            kept(M::load(sums + negative + c, count), keep, 2 * at + channels + c, count));
        if (more != nullptr) dv += M::load(more + at + c, count);
        M::store(dv, out + c, count);
        if (bias_sums != nullptr) add_to(bias_sums + c, dv, count);
      });
    }
  }

  // keep[i] = the factor of element first + i.
  static void write_keep(const GatedDropout& dropout, int64_t first, int64_t count, Scalar* keep) {
    constexpr int kBlocks = 16;
    const auto key0 = static_cast<uint32_t>(dropout.seed);
    const auto key1 = static_cast<uint32_t>(dropout.seed >> 32);
    const auto scale = static_cast<Scalar>(dropout.scale);
    Scalar factor[kBlocks][4];
    for (int64_t counter = first / 4; 4 * counter < first + count; counter += kBlocks) {
      for (int i = 0; i < kBlocks; ++i) {
        const auto number = static_cast<uint64_t>(counter + i);
        const PhiloxWords drawn =
            philox4x32_10({{static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32),
                            dropout.layer, static_cast<uint32_t>(Stream::kDropout)}},
                          key0, key1);
        for (int j = 0; j < 4; ++j)
          factor[i][j] = (drawn.word[j] >> 9) >= dropout.keep_from ? scale : Scalar{0};
      }
      const int64_t base = 4 * counter - first;
      const int64_t from = base < 0 ? -base : 0;
      const int64_t to = count - base < 4 * kBlocks ? count - base : 4 * kBlocks;
      for (int64_t i = from; i < to; ++i) keep[base + i] = factor[i / 4][i % 4];
    }
  }
};

}  // namespace dsmooth::DSMOOTH_ISA
