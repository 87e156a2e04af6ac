// Vectors of 8 floats: by AVX2 and FMA where they are compiled for, else by the compiler's own
// extension on any CPU. Included inside a namespace.

using Vec __attribute__((vector_size(32))) = float;
using IntVec __attribute__((vector_size(32))) = int32_t;

constexpr int kLanes = 8;

inline Vec splat(float x) { return Vec{x, x, x, x, x, x, x, x}; }
inline Vec minus_abs(Vec x) {
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(x) | INT32_MIN);
}
inline Vec at_least(Vec x, float low) { return x < low ? splat(low) : x; }  // keeps a NaN
inline Vec select_positive(Vec x, Vec yes, Vec no) { return x > 0 ? yes : no; }
inline Vec power_of_two(Vec whole) {
  return reinterpret_cast<Vec>((__builtin_convertvector(whole, IntVec) + 127) << 23);
}

#if defined(__AVX2__)
constexpr int kMaxPanelUnits = 3;
constexpr int max_tile_rows(int units) { return units == 1 ? 8 : units == 2 ? 6 : 4; }

inline __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load(const float* p, int n = kLanes) {
  return Vec(n == kLanes ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first(n)));
}
inline void store(float* p, Vec v, int n = kLanes) {
  if (n == kLanes)
    _mm256_storeu_ps(p, __m256(v));
  else
    _mm256_maskstore_ps(p, first(n), __m256(v));
}
inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return Vec(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
}
inline Vec round_whole(Vec x) {
  return Vec(_mm256_round_ps(__m256(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
constexpr int kMaxPanelUnits = 2;
constexpr int max_tile_rows(int units) { return units == 1 ? 4 : 2; }

#if defined(__SANITIZE_THREAD__)
// ThreadSanitizer watches scalars, not vectors of 32 bytes.
inline Vec load(const float* p, int n = kLanes) {
  Vec v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline void store(float* p, Vec v, int n = kLanes) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
#else
inline Vec load(const float* p, int n = kLanes) {
  Vec v = {};
  __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
}
inline void store(float* p, Vec v, int n = kLanes) {
  __builtin_memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
}
#endif
inline Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec round_whole(Vec x) {
  const Vec magic = splat(0x1.8p23f);
  return (x + magic) - magic;
}
#endif

inline void store_bf16(uint16_t* p, Vec v, int n) {
  for (int i = 0; i < n; ++i) p[i] = to_bfloat16(v[i]);
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
    const Vec x = splat(*a);
    for (int i = 0; i < U; ++i) sum.v[i] = multiply_add(x, b.v[i], sum.v[i]);
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
    for (int i = 0; i < U; ++i) {
      sum.v[i] = multiply_add(x0, low(b.v[i]), sum.v[i]);
      sum.v[i] = multiply_add(x1, high(b.v[i]), sum.v[i]);
    }
  }
};
