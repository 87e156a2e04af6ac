// Vectors of 8 floats in the compiler's own extension: any CPU. Included inside a namespace.
#include "simd_common.h"

using Vec __attribute__((vector_size(32))) = float;
using IntVec __attribute__((vector_size(32))) = int32_t;

constexpr int kLanes = 8;
constexpr int kMaxPanelUnits = 2;
constexpr int max_tile_rows(int units) { return units == 1 ? 4 : 2; }

inline Vec splat(float x) { return Vec{x, x, x, x, x, x, x, x}; }
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
inline Vec minus_abs(Vec x) {
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(x) | INT32_MIN);
}
inline Vec at_least(Vec x, float low) { return x < low ? splat(low) : x; }  // keeps a NaN
inline Vec select_positive(Vec x, Vec yes, Vec no) { return x > 0 ? yes : no; }
inline Vec round_whole(Vec x) {
  const Vec magic = splat(0x1.8p23f);
  return (x + magic) - magic;
}
inline Vec power_of_two(Vec whole) {
  return reinterpret_cast<Vec>((__builtin_convertvector(whole, IntVec) + 127) << 23);
}
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
