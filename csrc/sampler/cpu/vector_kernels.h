// The matrix product of a tile and its epilogue, and the weights of a pixel's components, written
// once over the vectors of an instruction set. Compiled once per instruction set and type of
// operands: see vector_math.h for the restrictions.
#pragma once

#include "../../common/gemm.h"
#include "../components.h"
#include "kernels.h"

namespace dsmooth::sampler::DSMOOTH_ISA {
namespace {

namespace isa = dsmooth::DSMOOTH_ISA;
using M = isa::VectorMath<float>;
using Vec = M::V;
constexpr int kLanes = M::kLanes;

// Registers hold the sums of a tile, a row of columns and a broadcast. If two panels together
// are too wide for them, a tile is one row.
constexpr int kRegisterBytes = DSMOOTH_VECTOR_BYTES * DSMOOTH_VECTOR_REGISTERS;
constexpr int kMaxPanelUnits = kRegisterBytes == 2048 ? 6 : kRegisterBytes == 512 ? 3 : 2;
constexpr int max_tile_rows(int units) {
  if (units > kMaxPanelUnits) return 1;
  if (kRegisterBytes == 2048) return units <= 4 ? 12 : 8;
  if (kRegisterBytes == 512) return units == 1 ? 8 : units == 2 ? 6 : 4;
  return units == 1 ? 4 : 2;
}

// Sums of R rows by U units in registers; one accumulator per output, k ascending.
template <class D, int R, int U>
[[gnu::flatten]] void tile(const Job& job, const Panel& first, int m0, float* out,
                           ptrdiff_t stride) {
  using Row = isa::TileRow<D, U * kUnit / kLanes, U * kUnit % kLanes != 0>;
  Row sum[R];
  const float* init = job.init + first.column;
  int row = m0 % job.init_rows;
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    sum[i].load(init + row * job.init_stride);
    row = row + 1 == job.init_rows ? 0 : row + 1;
  }
  const auto* b = reinterpret_cast<const typename D::Cell*>(first.b);
  for (int s = 0; s < job.n_segments; ++s) {
    const Segment& segment = job.segments[s];
    const ptrdiff_t step = segment.stride;
    const auto* a = reinterpret_cast<const typename D::Cell*>(segment.a + m0 * step);
    for (int k = segment.k; k > 0; --k, ++a, b += first.step) {
      const typename Row::Columns columns(b);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) sum[i].add(D::broadcast(a + i * step), columns);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) sum[i].store(out + i * stride);
}

template <class D, int U, int R = max_tile_rows(U)>
void tile_of(const Job& job, const Panel& first, int m0, int rows, float* out, ptrdiff_t stride) {
  if (rows == R) return tile<D, R, U>(job, first, m0, out, stride);
  if constexpr (R > 1) tile_of<D, U, R - 1>(job, first, m0, rows, out, stride);
}

template <class D, int U = 2 * kMaxPanelUnits>
void any_tile(const Job& job, const Panel& first, int units, int m0, int rows, float* out,
              ptrdiff_t stride) {
  if (units == U) return tile_of<D, U>(job, first, m0, rows, out, stride);
  if constexpr (U > 1) any_tile<D, U - 1>(job, first, units, m0, rows, out, stride);
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
        // One of elu(v) and elu(-v) is |v|, the other is e^-|v| - 1.
        const Vec small = Elementary<M>::expm1_negative(M::minus_abs(v));
        T* act = reinterpret_cast<T*>(e.act_out.row(m)) + channel;
        Vec elu = M::select(v > 0, v, small);
        M::store(elu, act, n);
        if (!e.split) M::store(M::select(v > 0, small, 0.0f - v), act + e.channels, n);
        // Each addend is the rounded remainder of elu(v) after the previous addends.
        for (int addend = 1; e.split && addend < kAddends; ++addend, act += e.channels) {
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
      Vec v = M::load(logits + at, count) - largest;
      if (temperature != 1.0f) v = v / temperature;
      M::store(Elementary<M>::exp_negative(v), logits + at, count);
      group[i] = M::load(logits + at, count);
    }
    // The tree of weigh_group, in quarters of the group.
    typedef float Quarter __attribute__((vector_size(kGroupSize)));
    Quarter q[4];
    static_assert(sizeof q == sizeof group);
    __builtin_memcpy(q, group, sizeof q);
    q[0] = (q[0] + q[2]) + (q[1] + q[3]);
    sums[first / kGroupSize] = (q[0][0] + q[0][2]) + (q[0][1] + q[0][3]);
  }
}

template <class D, class T>
constexpr CpuKernels kKernels = {.instruction_set = DSMOOTH_ISA_NAME,
                                 .bf16 = sizeof(T) == sizeof(bfloat16),
                                 .lanes = kLanes,
                                 .max_units = kMaxPanelUnits,
                                 .unit_step = 1,
                                 .slice = 8,
                                 .max_rows = max_tile_rows,
                                 .tile = any_tile<D>,
                                 .finish = finish<T>,
                                 .weigh = weigh};

}  // namespace
}  // namespace dsmooth::sampler::DSMOOTH_ISA
