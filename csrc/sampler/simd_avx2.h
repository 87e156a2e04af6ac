// Vectors of 8 floats with AVX2 and FMA. Included inside a namespace.
#include "simd_common.h"

using Vec = __m256;

constexpr int kLanes = 8;
constexpr int kMaxPanelUnits = 3;
constexpr int max_tile_rows(int units) { return units == 1 ? 8 : units == 2 ? 6 : 4; }

inline __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec splat(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const float* p, int n) {
  return n == kLanes ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first(n));
}
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline void store(float* p, Vec v, int n) {
  if (n == kLanes)
    _mm256_storeu_ps(p, v);
  else
    _mm256_maskstore_ps(p, first(n), v);
}
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec minus_abs(Vec x) { return _mm256_or_ps(x, splat(-0.0f)); }
inline Vec at_least(Vec x, float low) { return _mm256_max_ps(splat(low), x); }  // keeps a NaN
inline Vec select_positive(Vec x, Vec yes, Vec no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ));
}
inline Vec round_whole(Vec x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec power_of_two(Vec whole) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline void store_bf16(uint16_t* p, Vec v, int n) {
  float values[kLanes];
  _mm256_storeu_ps(values, v);
  for (int i = 0; i < n; ++i) p[i] = to_bfloat16(values[i]);
}

// A tile's row of U units in registers.
template <int U>
struct Row {
  Vec v[U];
  void load(const float* p) {
    for (int i = 0; i < U; ++i) v[i] = DSMOOTH_ISA::load(p + 8 * i);
  }
  void store(float* p) const {
    for (int i = 0; i < U; ++i) DSMOOTH_ISA::store(p + 8 * i, v[i]);
  }
};
struct F32 {
  template <int U>
  static void accumulate(Row<U>& sum, const float* a, const Row<U>& b) {
    const Vec x = _mm256_broadcast_ss(a);
    for (int i = 0; i < U; ++i) sum.v[i] = multiply_add(x, b.v[i], sum.v[i]);
  }
};
struct Bf16 {
  static Vec low(Vec pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs), 16));
  }
  static Vec high(Vec pairs) {
    return _mm256_and_ps(pairs, _mm256_castsi256_ps(_mm256_set1_epi32(-65536)));
  }
  template <int U>
  static void accumulate(Row<U>& sum, const float* a, const Row<U>& b) {
    const Vec pair = _mm256_broadcast_ss(a), x0 = low(pair), x1 = high(pair);
    for (int i = 0; i < U; ++i) {
      sum.v[i] = multiply_add(x0, low(b.v[i]), sum.v[i]);
      sum.v[i] = multiply_add(x1, high(b.v[i]), sum.v[i]);
    }
  }
};
