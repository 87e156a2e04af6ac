// The matrix product of a tile and its epilogue, written once over the vectors of an instruction
// set. Included by tiles_*.cpp inside that set's own namespace, after simd.h.

inline Vec quotient(Vec a, Vec b) { return a / b; }

#include "activations.h"

// Sums of R rows by U units in registers; one accumulator per output, k ascending.
template <class Operand, int R, int U>
[[gnu::flatten]] void tile(const Job& job, const Panel& panel, int m0, float* out,
                           ptrdiff_t stride) {
  Row<U> sum[R];
  const float* init = job.init + panel.column;
  int row = m0 % job.init_rows;
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    sum[i].load(init + row * job.init_stride);
    row = row + 1 == job.init_rows ? 0 : row + 1;
  }
  const float* b = panel.b;
  for (int s = 0; s < job.n_segments; ++s) {
    const Segment& segment = job.segments[s];
    const ptrdiff_t step = segment.stride;
    const float* a = segment.a + m0 * step;
    for (int k = segment.k; k > 0; --k, ++a, b += U * kUnit) {
      Row<U> row;
      row.load(b);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) Operand::accumulate(sum[i], a + i * step, row);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) sum[i].store(out + i * stride);
}

template <class Operand, int U, int R = max_tile_rows(U)>
void tile_of(const Job& job, const Panel& panel, int m0, int rows, float* out, ptrdiff_t stride) {
  if (rows == R) return tile<Operand, R, U>(job, panel, m0, out, stride);
  if constexpr (R > 1) tile_of<Operand, U, R - 1>(job, panel, m0, rows, out, stride);
}

template <class Operand, int U = kMaxPanelUnits>
void any_tile(const Job& job, const Panel& panel, int m0, int rows, float* out, ptrdiff_t stride) {
  if (panel.units == U) return tile_of<Operand, U>(job, panel, m0, rows, out, stride);
  if constexpr (U > 1) any_tile<Operand, U - 1>(job, panel, m0, rows, out, stride);
}

// store_bf16 is looked up when used: not every set has it.
template <class T>
inline void put(T* p, Vec v, int n) {
  if constexpr (sizeof(T) == sizeof(float))
    store(p, v, n);
  else
    store_bf16(p, v, n);
}

// The n values at p.
inline Vec get(const float* p, int n) { return load(p, n); }
inline Vec get(const uint16_t* p, int n) {
  float values[kLanes] = {};
  for (int i = 0; i < n; ++i) values[i] = from_bfloat16(p[i]);
  return load(values, kLanes);
}

// Each part takes what the ones before left of v.
template <class T>
inline void put_split(T* p, int channels, Vec v, int n) {
  for (int part = 0; part < kSplitParts; ++part, p += channels) {
    put(p, v, n);
    v = v - get(p, n);
  }
}

template <class T>
[[gnu::flatten]] void finish(const Job& job, const Panel& panel, int m0, int rows,
                             const float* sums, ptrdiff_t stride) {
  const Epilogue& e = job.epilogue;
  const int half = panel.units * kUnit / 2;
  for (int m = m0; m < m0 + rows; ++m, sums += stride) {
    for (int j = 0; j < panel.channels; j += kLanes) {
      const int n = panel.channels - j < kLanes ? panel.channels - j : kLanes;
      const int channel = panel.channel + j;
      Vec v = load(sums + j, n);
      if (e.gate) {
        const Vec gate = sigmoid(load(sums + half + j, n));
        v = multiply_add(v, gate, load(e.residual_in + m * e.residual_in_stride + channel, n));
      }
      if (e.add) v = v + load(e.add + m * e.add_stride + channel, n);
      if (e.residual_out) store(e.residual_out + m * e.residual_out_stride + channel, v, n);
      if (e.raw_out) put(static_cast<T*>(e.raw_out) + m * e.raw_stride + channel, v, n);
      if (e.act_out) {
        // One of elu(v) and elu(-v) is |v|, the other e^-|v| - 1.
        const Vec small = expm1_negative(minus_abs(v));
        T* act = static_cast<T*>(e.act_out) + m * e.act_stride + channel;
        const Vec elu = select_positive(v, v, small);
        if (e.split) {
          put_split(act, e.channels, elu, n);
        } else {
          put(act, elu, n);
          put(act + e.channels, select_positive(v, small, splat(0.0f) - v), n);
        }
      }
    }
  }
}

inline int max_rows(int units) { return max_tile_rows(units); }
