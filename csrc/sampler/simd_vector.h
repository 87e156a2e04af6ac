// Vectors by the compiler's own extension: 8 floats with AVX2 and FMA, 4 on any CPU. Included
// inside a namespace.

using Vec __attribute__((vector_size(DSMOOTH_VECTOR_BYTES))) = float;
using IntVec __attribute__((vector_size(DSMOOTH_VECTOR_BYTES))) = int32_t;

constexpr int kLanes = DSMOOTH_VECTOR_BYTES / sizeof(float);

inline Vec splat(float x) { return x - Vec{}; }
inline Vec minus_abs(Vec x) {
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(x) | INT32_MIN);
}
inline Vec at_least(Vec x, float low) { return x < low ? splat(low) : x; }  // keeps a NaN
inline Vec select_positive(Vec x, Vec yes, Vec no) { return x > 0 ? yes : no; }
inline Vec power_of_two(Vec whole) {
  return reinterpret_cast<Vec>((__builtin_convertvector(whole, IntVec) + 127) << 23);
}

#if DSMOOTH_VECTOR_BYTES * DSMOOTH_VECTOR_REGISTERS == 512
constexpr int kMaxPanelUnits = 3;
constexpr int max_tile_rows(int units) { return units == 1 ? 8 : units == 2 ? 6 : 4; }
#else
constexpr int kMaxPanelUnits = 2;
constexpr int max_tile_rows(int units) { return units == 1 ? 4 : 2; }
#endif

#if defined(__AVX2__)
inline __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load_first(const float* p, int n) { return Vec(_mm256_maskload_ps(p, first(n))); }
inline void store_first(float* p, Vec v, int n) { _mm256_maskstore_ps(p, first(n), __m256(v)); }
inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return Vec(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
}
inline Vec round_whole(Vec x) {
  return Vec(_mm256_round_ps(__m256(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
inline Vec load_first(const float* p, int n) {
  Vec v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline void store_first(float* p, Vec v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
inline Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec round_whole(Vec x) {
  const Vec magic = splat(0x1.8p23f);
  return (x + magic) - magic;
}
#endif

inline Vec load(const float* p, int n = kLanes) {
  if (n != kLanes) return load_first(p, n);
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v, int n = kLanes) {
  if (n != kLanes) return store_first(p, v, n);
  __builtin_memcpy(p, &v, sizeof v);
}

inline void store_bf16(uint16_t* p, Vec v, int n) {
  for (int i = 0; i < n; ++i) p[i] = to_bfloat16(v[i]);
}

// A tile's row of U units in registers.
template <int U>
struct Row {
  static constexpr int kVectors = U * kUnit / kLanes;
  Vec v[kVectors];
  void load(const float* p) {
    for (int i = 0; i < kVectors; ++i) v[i] = DSMOOTH_ISA::load(p + kLanes * i);
  }
  void store(float* p) const {
    for (int i = 0; i < kVectors; ++i) DSMOOTH_ISA::store(p + kLanes * i, v[i]);
  }
};
struct F32 {
  template <int U>
  static void accumulate(Row<U>& sum, const float* a, const Row<U>& b) {
    const Vec x = splat(*a);
    for (int i = 0; i < Row<U>::kVectors; ++i) sum.v[i] = multiply_add(x, b.v[i], sum.v[i]);
  }
};
struct Bf16 {
  static Vec low(Vec pairs) { return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(pairs) << 16); }
  static Vec high(Vec pairs) {
    return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(pairs) &
                                 static_cast<int32_t>(0xFFFF0000));
  }
  template <int U>
  static void accumulate(Row<U>& sum, const float* a, const Row<U>& b) {
    const Vec pair = splat(*a), x0 = low(pair), x1 = high(pair);
    for (int i = 0; i < Row<U>::kVectors; ++i) {
      sum.v[i] = multiply_add(x0, low(b.v[i]), sum.v[i]);
      sum.v[i] = multiply_add(x1, high(b.v[i]), sum.v[i]);
    }
  }
};
