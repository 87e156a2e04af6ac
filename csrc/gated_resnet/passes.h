// Elementwise passes of the gated block over rows of pixels, between its convolutions. Compiled
// once per instruction set: vector_math.h says what that forbids.
//
// D is the arithmetic of the convolutions (gemm.h), T the activations in memory.
#pragma once

#include "../common/philox.h"
#include "gated_resnet.h"
#include "gemm.h"

#define DSMOOTH_INLINE_LAMBDA __attribute__((always_inline))

namespace dsmooth::DSMOOTH_ISA {

// Vectors in memory: float and double as they are, bfloat16 widened to float. `count` lanes are
// read or written, the others are 0 or left alone.
template <class M>
struct Memory {
  using T = typename M::Scalar;
  using V = typename M::V;
  static constexpr int kLanes = M::kLanes;

#if defined(__AVX512F__)
  DSMOOTH_INLINE static __mmask16 mask(int count) {
    return static_cast<__mmask16>((1u << count) - 1);
  }
#endif

  DSMOOTH_INLINE static V load(const T* p, int count) {
    if (count == kLanes) return M::load(p);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      return __builtin_bit_cast(V, _mm512_maskz_loadu_ps(mask(count), p));
    } else {
      return __builtin_bit_cast(V, _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask(count)), p));
    }
#else
    return M::load(p, 1, count);
#endif
  }

  DSMOOTH_INLINE static void store(V v, T* p, int count) {
    if (count == kLanes) return M::store(v, p);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(p, mask(count), __builtin_bit_cast(__m512, v));
    } else {
      const auto some = static_cast<__mmask8>(mask(count));
      _mm512_mask_storeu_pd(p, some, __builtin_bit_cast(__m512d, v));
    }
#else
    M::store(v, p, 1, count);
#endif
  }

  DSMOOTH_INLINE static V load(const bfloat16* p, int count) {
#if defined(__AVX512F__)
    const __m256i half = count == kLanes ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                                         : _mm256_maskz_loadu_epi16(mask(count), p);
    return __builtin_bit_cast(V, _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#else
    typename M::Bits bits{};
    for (int i = 0; i < count; ++i) bits[i] = static_cast<typename M::Word>(p[i]) << 16;
    return M::from_bits(bits);
#endif
  }

  DSMOOTH_INLINE static void store(V v, bfloat16* p, int count) {
#if defined(__AVX512F__)
#if defined(__AVX512BF16__)
    const auto half =
        __builtin_bit_cast(__m256i, _mm512_cvtneps_pbh(__builtin_bit_cast(__m512, v)));
#else
    const auto half =
        _mm512_cvtepi32_epi16(__builtin_bit_cast(__m512i, nearest_bfloat16<typename M::Bits>(v)));
#endif
    if (count == kLanes) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
    } else {
      _mm256_mask_storeu_epi16(p, mask(count), half);
    }
#else
    const auto bits = nearest_bfloat16<typename M::Bits>(v);
    for (int i = 0; i < count; ++i) p[i] = static_cast<bfloat16>(bits[i]);
#endif
  }
};

template <class D, class T>
struct Passes {
  using M = typename D::M;
  using Mem = Memory<M>;
  using V = typename D::V;
  using Scalar = typename D::Scalar;
  using Element = typename D::Element;
  using Cell = typename D::Cell;
  static constexpr int kLanes = D::kLanes;
  static constexpr bool kRough = sizeof(T) == 2;  // activations have 8 bits of precision

  // body(first, count) for the vectors of n numbers; full vectors are compiled apart.
  template <class Body>
  DSMOOTH_INLINE static void for_vectors(int n, const Body& body) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
    if (i < n) body(i, n - i);
  }

  // elu(v) = v > 0 ? v : m and elu(-v) = v > 0 ? m : -v with m = exp(-|v|) - 1; the derivatives are
  // 1 and e = exp(-|v|) in place of v and m.
  DSMOOTH_INLINE static ExpPair<V> exp_minus_abs(V v) {
    return kRough ? M::rough_exp_pair(-M::abs(v)) : M::exp_pair(-M::abs(v));
  }

  // `keep + at`: what an element is multiplied by. Zero drops it, whatever it is.
  template <bool kDropout>
  DSMOOTH_INLINE static V kept(V v, const Scalar* keep, int at, int count) {
    if constexpr (kDropout) {
      const V factor = Mem::load(keep + at, count);
      return M::select(factor != 0, v * factor, V{});
    }
    return v;
  }

  // out[p][c] = elu(in[p][c]), out[p][negative + c] = elu(-in[p][c]), with dropout; slope[p][c] =
  // exp(-|in[p][c]|), what a backward needs of it. Pixels of `out` are `stride` elements apart,
  // those of `keep` 2 `channels`.
  template <bool kDropout, bool kSlope>
  static void write_concat_elu(const T* in, int64_t pixels, int channels, Element* out,
                               int64_t stride, int64_t negative, const Scalar* keep,
                               Element* slope) {
    for (int64_t p = 0; p < pixels; ++p, in += channels, out += stride) {
      Element* slope_p = kSlope ? slope + p * channels : nullptr;
      const Scalar* keep_p = kDropout ? keep + p * 2 * channels : nullptr;
      for_vectors(channels, [&](int c, int count) DSMOOTH_INLINE_LAMBDA {
        const V v = Mem::load(in + c, count);
        const ExpPair<V> exp = exp_minus_abs(v);
        const V m = exp.em1;
        if constexpr (kSlope) Mem::store(exp.e, slope_p + c, count);
        Mem::store(kept<kDropout>(M::select(v > 0, v, m), keep_p, c, count), out + c, count);
        Mem::store(kept<kDropout>(M::select(v > 0, m, -v), keep_p, channels + c, count),
                   out + negative + c, count);
      });
    }
  }

  // The gradient of v, given `positive` and `negative`, those of elu(v) and elu(-v), and e.
  DSMOOTH_INLINE static V through_concat_elu(V v, V e, V positive, V negative) {
    return M::select(v > 0, positive - negative * e, positive * e - negative);
  }

  // out = sums + bias (+ more_bias), from rows of `stride` sums a pixel.
  static void write_biased(const Scalar* sums, int64_t stride, const Scalar* bias,
                           const Scalar* more_bias, int64_t pixels, int channels, T* out) {
    for (int64_t p = 0; p < pixels; ++p, sums += stride, out += channels) {
      for_vectors(channels, [&](int c, int count) DSMOOTH_INLINE_LAMBDA {
        V v = Mem::load(sums + c, count) + Mem::load(bias + c, count);
        if (more_bias != nullptr) v += Mem::load(more_bias + c, count);
        Mem::store(v, out + c, count);
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
        V a = Mem::load(sums + c, count) + Mem::load(bias + c, count);
        V g = Mem::load(sums + f + c, count) + Mem::load(bias + f + c, count);
        if (image_bias != nullptr) {
          a += Mem::load(image_bias + c, count);
          g += Mem::load(image_bias + f + c, count);
        }
        Mem::store(Mem::load(x + c, count) + a * sigmoid(g), y + c, count);
        if (gates != nullptr) {
          Mem::store(a, gates + c, count);
          Mem::store(g, gates + f + c, count);
        }
      });
      if (gates != nullptr) gates += 2 * f;
    }
  }

  DSMOOTH_INLINE static void add_to(Scalar* total, V v, int count) {
    Mem::store(Mem::load(total, count) + v, total, count);
  }

  // total += more, n numbers each.
  static void add_all(Scalar* total, const Scalar* more, int n) {
    for_vectors(n, [&](int i, int count) DSMOOTH_INLINE_LAMBDA {
      add_to(total + i, Mem::load(more + i, count), count);
    });
  }

  // dA = dy sigmoid(G), dG = dy A sigmoid(G) (1 - sigmoid(G)), and their sums over pixels.
  static void write_gate_gradient(const T* grad_y, const T* gates, int64_t pixels, int f,
                                  Element* out, int64_t stride, Scalar* bias_sums) {
    for (int64_t p = 0; p < pixels; ++p, grad_y += f, gates += 2 * f, out += stride) {
      for_vectors(f, [&](int c, int count) DSMOOTH_INLINE_LAMBDA {
        const V dy = Mem::load(grad_y + c, count);
        const V s = sigmoid(Mem::load(gates + f + c, count));
        const V da = dy * s;
        const V dg = da * Mem::load(gates + c, count) * (1 - s);
        Mem::store(da, out + c, count);
        Mem::store(dg, out + f + c, count);
        add_to(bias_sums + c, da, count);
        add_to(bias_sums + f + c, dg, count);
      });
    }
  }

  // The gradient of v from that of dropout(concat_elu(v)) in `sums`, and its sum over pixels.
  template <bool kDropout>
  static void write_hidden_gradient(const Scalar* sums, int64_t sums_stride, const T* v,
                                    const Element* slope, const Scalar* keep, int64_t pixels, int f,
                                    Element* out, int64_t stride, Scalar* bias_sums) {
    for (int64_t p = 0; p < pixels; ++p, sums += sums_stride, v += f, slope += f, out += stride) {
      const Scalar* keep_p = kDropout ? keep + p * 2 * f : nullptr;
      for_vectors(f, [&](int c, int count) DSMOOTH_INLINE_LAMBDA {
        const V dv = through_concat_elu(
            Mem::load(v + c, count), Mem::load(slope + c, count),
            kept<kDropout>(Mem::load(sums + c, count), keep_p, c, count),
            kept<kDropout>(Mem::load(sums + f + c, count), keep_p, f + c, count));
        Mem::store(dv, out + c, count);
        add_to(bias_sums + c, dv, count);
      });
    }
  }

  // The gradient of v from that of concat_elu(v), plus `more` unless that is null.
  static void write_input_gradient(const Scalar* sums, int64_t sums_stride, int64_t negative,
                                   const T* v, const Element* slope, const T* more, int64_t pixels,
                                   int channels, T* out) {
    for (int64_t p = 0; p < pixels; ++p, sums += sums_stride) {
      const int64_t at = p * channels;
      for_vectors(channels, [&](int c, int count) DSMOOTH_INLINE_LAMBDA {
        V dv =
            through_concat_elu(Mem::load(v + at + c, count), Mem::load(slope + at + c, count),
                               Mem::load(sums + c, count), Mem::load(sums + negative + c, count));
        if (more != nullptr) dv += Mem::load(more + at + c, count);
        Mem::store(dv, out + at + c, count);
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
        const PhiloxBlock drawn =
            philox4x32_10({{static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32),
                            dropout.layer, static_cast<uint32_t>(Stream::kDropout)}},
                          key0, key1);
        for (int j = 0; j < 4; ++j) {
          factor[i][j] = (drawn.word[j] >> 9) >= dropout.keep_from ? scale : Scalar{0};
        }
      }
      const int64_t base = 4 * counter - first;
      const int64_t from = base < 0 ? -base : 0;
      const int64_t to = count - base < 4 * kBlocks ? count - base : 4 * kBlocks;
      for (int64_t i = from; i < to; ++i) keep[base + i] = factor[i / 4][i % 4];
    }
  }
};

}  // namespace dsmooth::DSMOOTH_ISA
