// Vectors of 16 floats with AVX-512 F, BW, DQ and VL. Included inside a namespace.

using Vec = __m512;

constexpr int kLanes = 16;
constexpr int kMaxPanelUnits = 6;
// 24 accumulators, 3 registers for b and some for the broadcasts of a, of 32.
constexpr int max_tile_rows(int units) { return units <= 4 ? 12 : 8; }

inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline Vec splat(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline void store(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec minus_abs(Vec x) { return _mm512_or_ps(x, splat(-0.0f)); }
inline Vec at_least(Vec x, float low) { return _mm512_max_ps(splat(low), x); }  // keeps a NaN
inline Vec select_positive(Vec x, Vec yes, Vec no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), no, yes);
}
inline Vec round_whole(Vec x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec power_of_two(Vec whole) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(whole), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}

// A tile's row of U units: whole vectors of 16, and one of 8 if U is odd.
template <int U>
struct Row {
  static constexpr int kWhole = U / 2;
  Vec z[kWhole > 0 ? kWhole : 1];
  __m256 y;
  void load(const float* p) {
    for (int i = 0; i < kWhole; ++i) z[i] = _mm512_loadu_ps(p + 16 * i);
    if constexpr (U % 2) y = _mm256_loadu_ps(p + 16 * kWhole);
  }
  void store(float* p) const {
    for (int i = 0; i < kWhole; ++i) _mm512_storeu_ps(p + 16 * i, z[i]);
    if constexpr (U % 2) _mm256_storeu_ps(p + 16 * kWhole, y);
  }
};
struct F32 {
  template <int U>
  static void accumulate(Row<U>& sum, const float* a, const Row<U>& b) {
    const Vec x = _mm512_set1_ps(*a);
    for (int i = 0; i < Row<U>::kWhole; ++i) sum.z[i] = _mm512_fmadd_ps(x, b.z[i], sum.z[i]);
    if constexpr (U % 2) sum.y = _mm256_fmadd_ps(_mm512_castps512_ps256(x), b.y, sum.y);
  }
};
#if defined(__AVX512BF16__)
inline void store_bf16(uint16_t* p, Vec v, int n) {
  _mm256_mask_storeu_epi16(p, first(n), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
struct Bf16 {
  template <int U>
  static void accumulate(Row<U>& sum, const float* a, const Row<U>& b) {
    const Vec x = _mm512_set1_ps(*a);
    for (int i = 0; i < Row<U>::kWhole; ++i)
      sum.z[i] = _mm512_dpbf16_ps(sum.z[i], reinterpret_cast<__m512bh>(x),
                                  reinterpret_cast<__m512bh>(b.z[i]));
    if constexpr (U % 2)
      sum.y = _mm256_dpbf16_ps(sum.y, reinterpret_cast<__m256bh>(_mm512_castps512_ps256(x)),
                               reinterpret_cast<__m256bh>(b.y));
  }
};
#endif
