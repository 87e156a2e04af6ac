// Micro-kernels of matrix products. The gated resnet's convolutions use all of them, the sampler's
// tiles some. Compiled once per instruction set: see vector_math.h for the restrictions.
//
// Operands are counted in cells. A cell is the part of the summed index that one multiplication
// covers: one float or double, or a pair of bfloat16 if the CPU multiplies pairs. A tile of M rows
// and NV vectors of columns stays in registers; a row's cell is broadcast against the columns'
// vectors.
#pragma once

#include <type_traits>

#include "vector_math.h"

namespace dsmooth::DSMOOTH_ISA {

#if defined(__AVX512F__)
// Half a vector: on a CPU that computes 512 bits in two halves it takes half the time.
struct HalfFloat {
  static constexpr bool kExists = true;
  using Sum = __m256;
  struct Cells {
    __m256i v;
  };
  DSMOOTH_INLINE static Cells load(const void* p) {
    return {_mm256_loadu_si256(static_cast<const __m256i*>(p))};
  }
  DSMOOTH_INLINE static Sum zero() { return _mm256_setzero_ps(); }
  DSMOOTH_INLINE static Sum load_sum(const float* p) { return _mm256_loadu_ps(p); }
  DSMOOTH_INLINE static void store_sum(Sum sum, float* p) { _mm256_storeu_ps(p, sum); }
};
#endif

struct NoHalf {
  static constexpr bool kExists = false;
  struct Sum {};
  struct Cells {};
};

template <class T>
struct PlainDot {
  using Element = T;
  using Cell = T;
  using Scalar = T;
  using M = VectorMath<T>;
  using V = typename M::V;
#if defined(__AVX512F__)
  using Half = std::conditional_t<sizeof(T) == 4, HalfFloat, NoHalf>;
#else
  using Half = NoHalf;
#endif
  static constexpr int kPair = 1;
  static constexpr int kLanes = M::kLanes;
  static constexpr bool kMatrix = false;  // multiplied by matrix registers
  static constexpr int kColumns = Half::kExists ? kLanes / 2 : kLanes;

  struct Cells {
    V v;
  };
  DSMOOTH_INLINE static Cells load(const Cell* p) {
    Cells c;
    __builtin_memcpy(&c.v, p, sizeof(V));
    return c;
  }
  DSMOOTH_INLINE static Cells broadcast(const Cell* p) { return {*p - V{}}; }
  DSMOOTH_INLINE static Cell cell(T value, T) { return value; }
  DSMOOTH_INLINE static T square_root(T v) {
    return sizeof(T) == 4 ? __builtin_sqrtf(v) : __builtin_sqrt(v);
  }
  DSMOOTH_INLINE static V multiply_add(V sum, Cells a, Cells b) { return sum + a.v * b.v; }
#if defined(__AVX512F__)
  DSMOOTH_INLINE static __m256 multiply_add_half(__m256 sum, Cells a, HalfFloat::Cells b) {
    const __m256 low = _mm512_castps512_ps256(__builtin_bit_cast(__m512, a.v));
    return _mm256_fmadd_ps(low, __builtin_bit_cast(__m256, b.v), sum);
  }
#endif
};

#if defined(__AVX512BF16__)
struct PairDot {
  using Element = bfloat16;
  using Cell = uint32_t;
  using Scalar = float;
  using M = VectorMath<float>;
  using V = M::V;
  using Half = HalfFloat;
  static constexpr int kPair = 2;
  static constexpr int kLanes = M::kLanes;
  static constexpr bool kMatrix = false;
  static constexpr int kColumns = kLanes / 2;

  struct Cells {
    __m512i v;
  };
  DSMOOTH_INLINE static Cells load(const Cell* p) { return {_mm512_loadu_si512(p)}; }
  DSMOOTH_INLINE static Cell cell(float first, float second) {
    return nearest_bfloat16<uint32_t>(first) | nearest_bfloat16<uint32_t>(second) << 16;
  }
  DSMOOTH_INLINE static float square_root(float v) { return __builtin_sqrtf(v); }
  DSMOOTH_INLINE static Cells broadcast(const Cell* p) {
    int cell;  // the buffer was written as bfloat16
    __builtin_memcpy(&cell, p, sizeof(cell));
    return {_mm512_set1_epi32(cell)};
  }
  DSMOOTH_INLINE static V multiply_add(V sum, Cells a, Cells b) {
    return __builtin_bit_cast(
        V, _mm512_dpbf16_ps(__builtin_bit_cast(__m512, sum), __builtin_bit_cast(__m512bh, a.v),
                            __builtin_bit_cast(__m512bh, b.v)));
  }
  DSMOOTH_INLINE static __m256 multiply_add_half(__m256 sum, Cells a, HalfFloat::Cells b) {
    return _mm256_dpbf16_ps(sum, __builtin_bit_cast(__m256bh, _mm512_castsi512_si256(a.v)),
                            __builtin_bit_cast(__m256bh, b.v));
  }
};

#if defined(__AMX_BF16__)
// Products in matrix registers (amx.h), of the same cells.
struct MatrixDot : PairDot {
  static constexpr bool kMatrix = true;
  static constexpr int kColumns = 16;
};
#endif
#endif

// A row of a tile: whole vectors, and half a vector if kHalf.
template <class D, int kWhole, bool kHalf>
struct TileRow {
  static constexpr int kVectors = kWhole > 0 ? kWhole : 1;

  // The cells of the columns at one step of the sum.
  struct Columns {
    typename D::Cells whole[kVectors];
    typename D::Half::Cells half;

    DSMOOTH_INLINE explicit Columns(const typename D::Cell* p) {
#pragma GCC unroll 6
      for (int v = 0; v < kWhole; ++v) whole[v] = D::load(p + v * D::kLanes);
      if constexpr (kHalf) half = D::Half::load(p + kWhole * D::kLanes);
    }
  };

  typename D::V whole[kVectors];
  typename D::Half::Sum half;

  DSMOOTH_INLINE void load(const typename D::Scalar* p) {
#pragma GCC unroll 6
    for (int v = 0; v < kWhole; ++v) whole[v] = D::M::load(p + v * D::kLanes);
    if constexpr (kHalf) half = D::Half::load_sum(p + kWhole * D::kLanes);
  }
  DSMOOTH_INLINE void store(typename D::Scalar* p) const {
#pragma GCC unroll 6
    for (int v = 0; v < kWhole; ++v) D::M::store(whole[v], p + v * D::kLanes);
    if constexpr (kHalf) D::Half::store_sum(half, p + kWhole * D::kLanes);
  }
  DSMOOTH_INLINE void add(typename D::Cells cell, const Columns& columns) {
#pragma GCC unroll 6
    for (int v = 0; v < kWhole; ++v) whole[v] = D::multiply_add(whole[v], cell, columns.whole[v]);
    if constexpr (kHalf) half = D::multiply_add_half(half, cell, columns.half);
  }
};

// out[m][n] (+)= sum over outer o and inner i of a[o outer + m row + i step] b[o outer + i step].
template <class D>
struct TileArgs {
  const typename D::Cell* a = nullptr;
  int64_t a_row = 0, a_step = 0, a_outer = 0;
  const typename D::Cell* b = nullptr;
  int64_t b_step = 0, b_outer = 0;
  int64_t outer = 0, inner = 0;
  typename D::Scalar* out = nullptr;
  int64_t out_row = 0;
  bool add = false;  // to the content of `out`
};

// Registers: M NV sums, NV columns and one broadcast.
#if DSMOOTH_VECTOR_REGISTERS == 32
inline constexpr int kMaxRows[3] = {14, 14, 9};
#else
inline constexpr int kMaxRows[3] = {8, 6, 4};
#endif
inline constexpr int kMaxVectors = 3;

// kAdjacent: the rows' cells are neighbours (a_row = 1); else the inner steps' are (a_step = 1).
// kHalf: the last of the NV vectors is half a vector.
template <class D, int M, int NV, bool kHalf, bool kAdjacent>
void run_tile(const TileArgs<D>& t) {
  using Row = TileRow<D, kHalf ? NV - 1 : NV, kHalf>;
  constexpr int kBases = kAdjacent ? 1 : (M + 2) / 3;  // row 3q + j is base q plus j strides
  Row sum[M] = {};
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
    if (t.add) sum[m].load(t.out + m * t.out_row);
  const int64_t row = kAdjacent ? 1 : t.a_row;
  for (int64_t o = 0; o < t.outer; ++o) {
    const typename D::Cell* a = t.a + o * t.a_outer;
    const typename D::Cell* b = t.b + o * t.b_outer;
    const typename D::Cell* base[kBases];
#pragma GCC unroll 8
    for (int q = 0; q < kBases; ++q) base[q] = a + 3 * q * row;
    for (int64_t i = 0; i < t.inner; ++i) {
      const typename Row::Columns columns(b);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        sum[m].add(kAdjacent ? D::broadcast(base[0] + m) : D::broadcast(base[m / 3] + m % 3 * row),
                   columns);
      }
      b += t.b_step;
#pragma GCC unroll 8
      for (int q = 0; q < kBases; ++q) base[q] += kAdjacent ? t.a_step : 1;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) sum[m].store(t.out + m * t.out_row);
}

template <class D, int NV, bool kAdjacent, int M = kMaxRows[NV - 1]>
void run_tile_of(const TileArgs<D>& t, int64_t rows, bool half) {
  if (rows == M) {
    if constexpr (D::Half::kExists) {
      if (half) return run_tile<D, M, NV, true, kAdjacent>(t);
    }
    return run_tile<D, M, NV, false, kAdjacent>(t);
  }
  if constexpr (M > 1) run_tile_of<D, NV, kAdjacent, M - 1>(t, rows, half);
}

template <class D, bool kAdjacent, int NV = kMaxVectors>
void run_any_tile(const TileArgs<D>& t, int64_t rows, int vectors, bool half) {
  if (vectors == NV) return run_tile_of<D, NV, kAdjacent>(t, rows, half);
  if constexpr (NV > 1) run_any_tile<D, kAdjacent, NV - 1>(t, rows, vectors, half);
}

// Vectors of columns of the next tile: two, or three if one would remain.
DSMOOTH_INLINE int next_vectors(int vectors) { return vectors == 1 || vectors == 3 ? vectors : 2; }

// The product over all rows and `columns`, a multiple of kColumns; `t` describes its upper left
// corner.
template <class D, bool kAdjacent>
void run_tiles(TileArgs<D> t, int64_t rows, int64_t columns) {
  const TileArgs<D> corner = t;
  const int vectors = static_cast<int>((columns + D::kLanes - 1) / D::kLanes);
  for (int done = 0; done < vectors;) {
    const int nv = next_vectors(vectors - done);
    const bool half = (done + nv) * D::kLanes > columns;
    const int64_t tiles = (rows + kMaxRows[nv - 1] - 1) / kMaxRows[nv - 1];
    t.b = corner.b + done * D::kLanes;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
      t.a = corner.a + first * (kAdjacent ? 1 : t.a_row);
      t.out = corner.out + first * t.out_row + done * D::kLanes;
      run_any_tile<D, kAdjacent>(t, last - first, nv, half);
    }
    done += nv;
  }
}

}  // namespace dsmooth::DSMOOTH_ISA
