// Vectors of one instruction set, in registers and memory, and the functions on them that the
// likelihood, the gated resnet and the sampler need.
//
// Included only by files compiled once per instruction set, with DSMOOTH_ISA the name of its
// namespace and DSMOOTH_VECTOR_BYTES the width. Two instruction sets must not share the name of an
// out-of-line function, or the linker could keep the AVX-512 copy for every CPU. So everything is
// inside the namespace, and no inline function of the standard library is called.
//
// exp, exp - 1 and log are within 2 ulp over the domain stated at each (asserted by
// csrc/tests/logistic_mixture_test.cpp).
#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "host_device.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dsmooth::DSMOOTH_ISA {

constexpr bool kIsGeneric = DSMOOTH_ISA_NAME[0] == 'g';  // the only set of isa.cmake that begins so

template <class V>
struct ExpPair {
  V e;    // exp(y)
  V em1;  // exp(y) - 1, accurate near 0
};

template <class T>
struct FloatFormat;

// The vector types are spelled out here because GCC drops a vector_size that depends on a template.
template <>
struct FloatFormat<float> {
  typedef float Vector __attribute__((vector_size(DSMOOTH_VECTOR_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(DSMOOTH_VECTOR_BYTES)));
  typedef int32_t Mask __attribute__((vector_size(DSMOOTH_VECTOR_BYTES)));
  using Word = uint32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr Word kBias = 127;
  static constexpr float kRound = 0x1.8p23f;  // v + kRound holds round(v) in its low bits
  static constexpr Word kSqrtHalf = 0x3f3504f3u;
  static constexpr float kMinExp = -87.33654f;  // log of the smallest normal number
  static constexpr float kHuge = 1000;          // exp(-kHuge) is 0
  // 2^(j / 16)
  static constexpr float kPowers[16] = {
      0x1p+0f,        0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f,
      0x1.306fep+0f,  0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f,
      0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,
      0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f};
  static constexpr float kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
  // (exp(r) - 1 - r) / r^2 interpolated at the Chebyshev nodes of |r| <= ln 2 / 2: exp(r) - 1
  // within 2.6e-8 of itself.
  static constexpr int kExpTerms = 5;
  static constexpr float kExp[kExpTerms] = {0x1p-1f, 0x1.5554dcp-3f, 0x1.55551ap-5f, 0x1.120b6ep-7f,
                                            0x1.6d110ap-10f};
  static constexpr int kLogTerms = 5;  // remainder 0.1716^10 / 11 = 2e-9
};

template <>
struct FloatFormat<double> {
  typedef double Vector __attribute__((vector_size(DSMOOTH_VECTOR_BYTES)));
  typedef uint64_t Bits __attribute__((vector_size(DSMOOTH_VECTOR_BYTES)));
  typedef int64_t Mask __attribute__((vector_size(DSMOOTH_VECTOR_BYTES)));
  using Word = uint64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr Word kBias = 1023;
  static constexpr double kRound = 0x1.8p52;
  static constexpr Word kSqrtHalf = 0x3fe6a09e667f3bcdull;
  static constexpr double kMinExp = -708.3964185322641;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  // (exp(r) - 1 - r) / r^2 by Taylor, remainder 0.3466^12 / 14! = 4e-17.
  static constexpr int kExpTerms = 12;
  static constexpr double kExp[kExpTerms] = {
      1.0 / 2,     1.0 / 6,      1.0 / 24,      1.0 / 120,      1.0 / 720,       1.0 / 5040,
      1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  static constexpr int kLogTerms = 11;  // remainder 0.1716^22 / 23 = 6e-19
};

template <class T>
struct VectorMath {
  using Format = FloatFormat<T>;
  using Scalar = T;
  using Word = typename Format::Word;
  using V = typename Format::Vector;
  using Bits = typename Format::Bits;
  using Mask = typename Format::Mask;  // of a comparison: lanes of 0 or -1
  static constexpr int kLanes = DSMOOTH_VECTOR_BYTES / sizeof(T);

  DSMOOTH_INLINE static V splat(double value) { return V{} + static_cast<T>(value); }
  DSMOOTH_INLINE static V select(Mask condition, V a, V b) { return condition ? a : b; }
  DSMOOTH_INLINE static Bits bits(V v) { return __builtin_bit_cast(Bits, v); }
  DSMOOTH_INLINE static V from_bits(Bits v) { return __builtin_bit_cast(V, v); }
  DSMOOTH_INLINE static V abs(V v) { return from_bits(bits(v) & (~Word{0} >> 1)); }

  // magnitude >= 0 with the sign of `sign`.
  DSMOOTH_INLINE static V copysign(V magnitude, V sign) {
    return from_bits(bits(magnitude) | (bits(sign) & ~(~Word{0} >> 1)));
  }

  // The nearest whole number, halves to even, for |v| < 2^22 (float) or 2^51 (double); beyond, some
  // number outside that range.
  DSMOOTH_INLINE static V round(V v) { return (v + Format::kRound) - Format::kRound; }

  // 1 / v for 2^-100 < v < 2^100, within 2 ulp.
  DSMOOTH_INLINE static V reciprocal(V v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      // One step of Newton from 14 bits: a division takes as long as 10 other operations.
      const V guess = V(_mm512_rcp14_ps(__m512(v)));
      return guess + guess * (static_cast<T>(1) - v * guess);
    }
#endif
    return static_cast<T>(1) / v;
  }

  // The larger one; keeps a NaN in v.
  DSMOOTH_INLINE static V at_least(V v, T low) {
#if defined(__AVX512F__)
    // The instruction returns its second operand if one is NaN.
    if constexpr (sizeof(T) == 4) return V(_mm512_max_ps(__m512(splat(low)), __m512(v)));
#endif
    return v < low ? splat(low) : v;
  }

  DSMOOTH_INLINE static V minus_abs(V v) { return from_bits(bits(v) | ~(~Word{0} >> 1)); }

  // One rounding if the instruction set has FMA. On x86 a compiler may leave some sums unfused,
  // which makes long chains shorter: intrinsics prevent that.
  DSMOOTH_INLINE static V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return V(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return V(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#endif
    return a * b + c;
  }

  // 2^n for a whole number n of the exponents of normal numbers.
  DSMOOTH_INLINE static V power_of_two(V n) {
    return from_bits((Bits(__builtin_convertvector(n, Mask)) + Format::kBias)
                     << Format::kMantissaBits);
  }

  // exp(y) for y <= 88 (float) or 709 (double); 0 or denormal under the smallest normal number.
  DSMOOTH_INLINE static V exp(V y) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      // y = n ln 2 + r with n in sixteenths, |r| <= ln 2 / 32: 2^n is a table's entry times a power
      // of two, and three terms of exp(r) remain (remainder r^4 / 24 = 9e-9).
      y = at_least(y, -Format::kHuge);  // keeps n ln 2 finite
      const V shifted = y * static_cast<T>(1.4426950408889634) + Format::kRound / 16;
      const V n = shifted - Format::kRound / 16;
      const V r = (y - n * Format::kLn2High) - n * Format::kLn2Low;
      const V p = r * r * (r * static_cast<T>(1.0 / 6) + static_cast<T>(0.5)) + r;
      const V power =
          V(_mm512_permutexvar_ps(__m512i(bits(shifted)), __m512(load(Format::kPowers))));
      return V(_mm512_scalef_ps(__m512(power * p + power), __m512(n)));
    }
#endif
    return exp_pair(y).e;
  }

  // y = n ln 2 + r, |r| <= ln 2 / 2; exp(y) = 2^n (1 + p), exp(y) - 1 = 2^n p + (2^n - 1), where p
  // = exp(r) - 1 is computed without its 1: for n = 0 nothing cancels.
  DSMOOTH_INLINE static ExpPair<V> exp_pair(V y) {
    constexpr T kLog2E = static_cast<T>(1.4426950408889634), kOne = 1;
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      y = at_least(y, -Format::kHuge);
      const V n = V(_mm512_roundscale_ps(__m512(y * kLog2E), 0));
      const V p = expm1_reduced((y - n * Format::kLn2High) - n * Format::kLn2Low);
      const V power = V(_mm512_scalef_ps(__m512(splat(1)), __m512(n)));
      return {power * p + power, power * p + (power - kOne)};
    }
#endif
    const V shifted = y * kLog2E + Format::kRound;
    const V n = shifted - Format::kRound;
    const V p = expm1_reduced((y - n * Format::kLn2High) - n * Format::kLn2Low);
    const V power = from_bits((bits(shifted) + Format::kBias) << Format::kMantissaBits);
    const Mask vanishes = y < Format::kMinExp;
    return {select(vanishes, V{}, power * p + power),
            select(vanishes, splat(-1), power * p + (power - kOne))};
  }

  // exp_pair for results that are rounded to bfloat16: e within 2^-12 and em1 within 2^-11 of
  // itself, for y <= 0. exp(y) = 2^n 2^f, |f| <= 1/2.
  DSMOOTH_INLINE static ExpPair<V> rough_exp_pair(V y) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      // (2^f - 1) / f interpolated at the Chebyshev nodes.
      constexpr T kRough[3] = {0x1.62e43p-1f, 0x1.efb038p-3f, 0x1.c8bdfap-5f};
      y = at_least(y, -Format::kHuge) * static_cast<T>(1.4426950408889634);
      const V n = V(_mm512_roundscale_ps(__m512(y), 0));
      const V f = y - n;
      const V p = f * ((f * kRough[2] + kRough[1]) * f + kRough[0]);
      const V power = V(_mm512_scalef_ps(__m512(splat(1)), __m512(n)));
      const V em1 = power * p + (power - static_cast<T>(1));
      return {em1 + static_cast<T>(1), em1};
    }
#endif
    return exp_pair(y);
  }

  // log(v) for normal v > 0; NaN for NaN. v = 2^n (1 + f), 1/sqrt 2 <= 1 + f < sqrt 2, s = f / (2 +
  // f), log(1 + f) = 2 (s + s^3/3 + s^5/5 + ...) = f - (f^2/2 - s (f^2/2 + 2 s^2/3 + 2 s^4/5 ...)).
  DSMOOTH_INLINE static V log(V v) {
    // The bias keeps the shifted value positive: no CPU here shifts 64-bit lanes arithmetically.
    const Bits biased = bits(v) + ((Format::kBias << Format::kMantissaBits) - Format::kSqrtHalf);
    const Bits exponent = biased >> Format::kMantissaBits;
    const V m = from_bits(bits(v) - ((exponent - Format::kBias) << Format::kMantissaBits));
    const Word round_bits = __builtin_bit_cast(Word, Format::kRound);
    const V n = from_bits(exponent + (round_bits - Format::kBias)) - Format::kRound;
    const V f = m - static_cast<T>(1);
    const V s = f * reciprocal(f + static_cast<T>(2));
    const V square = s * s;
    V tail = splat(2.0 / (2 * Format::kLogTerms - 1));
    DSMOOTH_UNROLL
    for (int i = Format::kLogTerms - 2; i >= 1; --i)
      tail = tail * square + static_cast<T>(2.0 / (2 * i + 1));
    const V half_square = f * f * static_cast<T>(0.5);
    const V rest = s * (square * tail + half_square) + n * Format::kLn2Low;
    const V result = n * Format::kLn2High + (f - (half_square - rest));
    return select(v == v, result, v);
  }

  // exp(r) - 1 for |r| <= ln 2 / 2.
  DSMOOTH_INLINE static V expm1_reduced(V r) {
    V tail = splat(Format::kExp[Format::kExpTerms - 1]);
    DSMOOTH_UNROLL
    for (int i = Format::kExpTerms - 2; i >= 0; --i) tail = tail * r + Format::kExp[i];
    return r * r * tail + r;
  }

  DSMOOTH_INLINE static V load(const T* source) {
    V v;
    __builtin_memcpy(&v, source, sizeof(v));
    return v;
  }

  DSMOOTH_INLINE static void store(V v, T* target) { __builtin_memcpy(target, &v, sizeof(v)); }

  // The first `count` lanes; the other lanes are 0, or not stored.
  DSMOOTH_INLINE static V load(const T* p, int count) {
    if (count == kLanes) return load(p);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return V(_mm512_maskz_loadu_ps(mask(count), p));
    else
      return V(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask(count)), p));
#else
#if defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return V(_mm256_maskload_ps(p, mask(count)));
#endif
    T lanes[kLanes] = {};
    for (int i = 0; i < count; ++i) lanes[i] = p[i];
    return load(lanes);
#endif
  }

  DSMOOTH_INLINE static void store(V v, T* p, int count) {
    if (count == kLanes) return store(v, p);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      _mm512_mask_storeu_ps(p, mask(count), __m512(v));
    else
      _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask(count)), __m512d(v));
#else
#if defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return _mm256_maskstore_ps(p, mask(count), __m256(v));
#endif
    T lanes[kLanes];
    store(v, lanes);
    for (int i = 0; i < count; ++i) p[i] = lanes[i];
#endif
  }

  // The same of bfloat16, widened to float.
  DSMOOTH_INLINE static V load(const bfloat16* p, int count) {
#if defined(__AVX512F__)
    const __m256i half = count == kLanes ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                                         : _mm256_maskz_loadu_epi16(mask(count), p);
    return __builtin_bit_cast(V, _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#else
    Bits bits{};
    for (int i = 0; i < count; ++i) bits[i] = static_cast<Word>(p[i]) << 16;
    return from_bits(bits);
#endif
  }

  DSMOOTH_INLINE static void store(V v, bfloat16* p, int count) {
#if defined(__AVX512F__)
#if defined(__AVX512BF16__)
    const auto half =
        __builtin_bit_cast(__m256i, _mm512_cvtneps_pbh(__builtin_bit_cast(__m512, v)));
#else
    const auto half = _mm512_cvtepi32_epi16(__builtin_bit_cast(__m512i, nearest_bfloat16<Bits>(v)));
#endif
    if (count == kLanes)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
    else
      _mm256_mask_storeu_epi16(p, mask(count), half);
#else
    const auto bits = nearest_bfloat16<Bits>(v);
    for (int i = 0; i < count; ++i) p[i] = static_cast<bfloat16>(bits[i]);
#endif
  }

 private:
#if defined(__AVX512F__)
  DSMOOTH_INLINE static __mmask16 mask(int count) {
    return static_cast<__mmask16>((1u << count) - 1);
  }
#elif defined(__AVX2__)
  DSMOOTH_INLINE static __m256i mask(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
#endif
};

}  // namespace dsmooth::DSMOOTH_ISA
