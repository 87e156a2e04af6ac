// The matrix product of a tile and its epilogue, and the weights of a pixel's components, written
// once over the vectors of an instruction set. Compiled once per instruction set and type of
// operands: see vector_math.h for what that forbids.
#pragma once

#include "../common/gemm.h"
#include "components.h"
#include "tile_kernels.h"

namespace dsmooth::sampler::DSMOOTH_ISA {
namespace {

namespace isa = dsmooth::DSMOOTH_ISA;
using M = isa::VectorMath<float>;
using Vec = M::V;
constexpr int kLanes = M::kLanes;

// Registers hold the sums of a tile, a row of columns and a broadcast.
constexpr int kRegisterBytes = DSMOOTH_VECTOR_BYTES * DSMOOTH_VECTOR_REGISTERS;
constexpr int kMaxPanelUnits = kRegisterBytes == 2048 ? 6 : kRegisterBytes == 512 ? 3 : 2;
constexpr int max_tile_rows(int units) {
  if (kRegisterBytes == 2048) return units <= 4 ? 12 : 8;
  if (kRegisterBytes == 512) return units == 1 ? 8 : units == 2 ? 6 : 4;
  return units == 1 ? 4 : 2;
}

// Sums of R rows by U units in registers; one accumulator per output, k ascending.
template <class D, int R, int U>
[[gnu::flatten]] void tile(const Job& job, const Panel& panel, int m0, float* out,
                           ptrdiff_t stride) {
  using Row = isa::TileRow<D, U * kUnit / kLanes, U * kUnit % kLanes != 0>;
  Row sum[R];
  const float* init = job.init + panel.column;
  int row = m0 % job.init_rows;
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    sum[i].load(init + row * job.init_stride);
    row = row + 1 == job.init_rows ? 0 : row + 1;
  }
  const auto* b = reinterpret_cast<const typename D::Cell*>(panel.b);
  for (int s = 0; s < job.n_segments; ++s) {
    const Segment& segment = job.segments[s];
    const ptrdiff_t step = segment.stride;
    const auto* a = reinterpret_cast<const typename D::Cell*>(segment.a + m0 * step);
    for (int k = segment.k; k > 0; --k, ++a, b += U * kUnit) {
      const typename Row::Columns columns(b);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) sum[i].add(D::broadcast(a + i * step), columns);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) sum[i].store(out + i * stride);
}

template <class D, int U, int R = max_tile_rows(U)>
void tile_of(const Job& job, const Panel& panel, int m0, int rows, float* out, ptrdiff_t stride) {
  if (rows == R) return tile<D, R, U>(job, panel, m0, out, stride);
  if constexpr (R > 1) tile_of<D, U, R - 1>(job, panel, m0, rows, out, stride);
}

template <class D, int U = kMaxPanelUnits>
void any_tile(const Job& job, const Panel& panel, int m0, int rows, float* out, ptrdiff_t stride) {
  if (panel.units == U) return tile_of<D, U>(job, panel, m0, rows, out, stride);
  if constexpr (U > 1) any_tile<D, U - 1>(job, panel, m0, rows, out, stride);
}

// One row of two panels at once: alone, the few sums of a panel would wait for one another.
template <class D, int U, int V>
[[gnu::flatten]] void row_of_two(const Job& job, const Panel& first, const Panel& second, int m,
                                 float* out, float* out2) {
  using Row = isa::TileRow<D, U * kUnit / kLanes, U * kUnit % kLanes != 0>;
  using Row2 = isa::TileRow<D, V * kUnit / kLanes, V * kUnit % kLanes != 0>;
  const float* init = job.init + m % job.init_rows * job.init_stride;
  Row sum;
  Row2 sum2;
  sum.load(init + first.column);
  sum2.load(init + second.column);
  const auto* b = reinterpret_cast<const typename D::Cell*>(first.b);
  const auto* b2 = reinterpret_cast<const typename D::Cell*>(second.b);
  for (int s = 0; s < job.n_segments; ++s) {
    const Segment& segment = job.segments[s];
    const auto* a = reinterpret_cast<const typename D::Cell*>(segment.a + m * segment.stride);
    for (int k = segment.k; k > 0; --k, ++a, b += U * kUnit, b2 += V * kUnit) {
      const auto cell = D::broadcast(a);
      sum.add(cell, typename Row::Columns(b));
      sum2.add(cell, typename Row2::Columns(b2));
    }
  }
  sum.store(out);
  sum2.store(out2);
}

// Panels are cut so that the second is as wide as the first, or a unit less.
template <class D, int U = kMaxPanelUnits>
void any_row_of_two(const Job& job, const Panel& first, const Panel& second, int m, float* out,
                    float* out2) {
  if (first.units == U) {
    if (second.units == U) return row_of_two<D, U, U>(job, first, second, m, out, out2);
    if constexpr (U > 1) return row_of_two<D, U, U - 1>(job, first, second, m, out, out2);
  }
  if constexpr (U > 1) any_row_of_two<D, U - 1>(job, first, second, m, out, out2);
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
      Vec v = M::load(sums + j, n);
      if (e.gate) {
        const Vec gate = Elementary<M>::sigmoid(M::load(sums + half + j, n));
        v = M::multiply_add(v, gate, M::load(e.residual_in.row(m) + channel, n));
      }
      if (e.add.begin) v = v + M::load(e.add.row(m) + channel, n);
      if (e.residual_out.begin) M::store(v, e.residual_out.row(m) + channel, n);
      if (e.raw_out.begin) M::store(v, reinterpret_cast<T*>(e.raw_out.row(m)) + channel, n);
      if (e.act_out.begin) {
        // One of elu(v) and elu(-v) is |v|, the other e^-|v| - 1.
        const Vec small = Elementary<M>::expm1_negative(M::minus_abs(v));
        T* act = reinterpret_cast<T*>(e.act_out.row(m)) + channel;
        Vec elu = M::select(v > 0, v, small);
        M::store(elu, act, n);
        if (!e.split) M::store(M::select(v > 0, small, 0.0f - v), act + e.channels, n);
        // Each part is the rounded remainder of elu(v) after the parts before.
        for (int part = 1; e.split && part < kSplitParts; ++part, act += e.channels) {
          elu = elu - M::load(act, n);
          M::store(elu, act + e.channels, n);
        }
      }
    }
  }
}

[[gnu::flatten]] inline void weigh(float* logits, int n, float* sums, float temperature) {
  float lanes[kLanes];
  // More components than lanes: the last vector may overlap the one before.
  Vec top = M::load(logits + n - kLanes);
  for (int i = 0; i + kLanes <= n; i += kLanes) {
    const Vec v = M::load(logits + i);
    top = M::select(v > top, v, top);
  }
  M::store(top, lanes);
  for (int i = 1; i < kLanes; ++i) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  const float largest = lanes[0];
  for (int first = 0; first < n; first += kGroupSize) {
    Vec group[kGroupSize / kLanes];
#pragma GCC unroll 4
    for (int i = 0; i < kGroupSize / kLanes; ++i) {
      const int at = first + i * kLanes, left = n - at;
      const int count = left >= kLanes ? kLanes : left > 0 ? left : 0;
      const Vec v = (M::load(logits + at, count) - largest) / temperature;
      M::store(Elementary<M>::exp_negative(v), logits + at, count);
      group[i] = M::load(logits + at, count);
    }
#pragma GCC unroll 2
    for (int half = kGroupSize / kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 2
      for (int i = 0; i < half; ++i) group[i] = group[i] + group[i + half];
    M::store(group[0], lanes);
#pragma GCC unroll 4
    for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    sums[first / kGroupSize] = lanes[0];
  }
}

template <class D, class T>
constexpr TileKernels kKernels = {DSMOOTH_ISA_NAME, sizeof(T) == sizeof(bfloat16),
                                  kMaxPanelUnits,   max_tile_rows,
                                  any_tile<D>,      any_row_of_two<D>,
                                  finish<T>,        weigh};

}  // namespace
}  // namespace dsmooth::sampler::DSMOOTH_ISA
