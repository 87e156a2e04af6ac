// Tiles of bfloat16 in the matrix registers of AMX: an instruction multiplies 16 rows by 16 columns
// over 16 words of k. To be compiled for that instruction set.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace dsmooth::sampler::DSMOOTH_ISA {
namespace {

constexpr int kRows = 16, kColumns = 16;  // of a register
constexpr int kUnits = kColumns / kUnit;
// Registers 0 to 3 hold sums, 4 the operands of the rows, the others those of columns in turn.
constexpr int kSums = 4, kRowOperands = 4, kColumnOperands = 5;

template <int kRegister>
DSMOOTH_INLINE void load(const float* p, ptrdiff_t stride) {
  asm volatile("tileloadd (%0,%1,4), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kRegister) : "memory");
}
template <int kRegister>
DSMOOTH_INLINE void store(float* p, ptrdiff_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,4)" ::"r"(p), "r"(stride), "i"(kRegister) : "memory");
}
template <int kSum, int kRow, int kColumn>
DSMOOTH_INLINE void multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kRow), "i"(kColumn));
}

// Gives the registers `rows` rows, and operands `piece` words of k, unless this thread did so last:
// it takes as long as multiplying 15 times. Nothing else in the thread may shape them.
inline void shape_registers(int rows, int piece) {
  static thread_local int rows_now = 0, piece_now = 0;
  if (rows == rows_now && piece == piece_now) return;
  struct alignas(64) {
    uint8_t palette = 1, reserved[15] = {};
    uint16_t bytes_of_row[16] = {};
    uint8_t rows[16] = {};
  } shapes;
  for (int i = 0; i < 8; ++i) {
    shapes.bytes_of_row[i] = static_cast<uint16_t>(4 * (i == kRowOperands ? piece : kColumns));
    shapes.rows[i] = static_cast<uint8_t>(i < kColumnOperands ? rows : piece);
  }
  asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
  rows_now = rows;
  piece_now = piece;
}

// f.operator()<i>() for each i < n.
template <int n, class F>
DSMOOTH_INLINE void unroll(F f) {
  if constexpr (n > 0) {
    unroll<n - 1>(f);
    f.template operator()<n - 1>();
  }
}

// Sums in C registers.
template <int C = kSums>
void tile(const Job& job, const Panel& first, int units, int m0, int rows, float* out,
          ptrdiff_t stride) {
  if constexpr (C > 1) {
    if (units < C * kUnits) return tile<C - 1>(job, first, units, m0, rows, out, stride);
  }
  const ptrdiff_t piece = first.piece, step = first.step;
  shape_registers(rows, first.piece);
  // Initial sums are loaded from where they lie, unless they begin again within the tile.
  const int begin = m0 % job.init_rows;
  const bool again = job.init_rows > 1 && begin + rows > job.init_rows;
  for (int m = 0; again && m < rows; ++m)
    __builtin_memcpy(out + m * stride,
                     job.init + (m0 + m) % job.init_rows * job.init_stride + first.column,
                     C * kColumns * sizeof(float));
  const float* init = again ? out : job.init + begin * job.init_stride + first.column;
  const ptrdiff_t init_row = again ? stride : job.init_rows > 1 ? job.init_stride : 0;
  unroll<C>([&]<int c> { load<c>(init + c * kColumns, init_row); });
  const float* b = first.b;
  for (int s = 0; s < job.n_segments; ++s) {
    const ptrdiff_t row = job.segments[s].stride;
    const float* a = job.segments[s].a + m0 * row;
    for (ptrdiff_t k = job.segments[s].k; k > 0; k -= piece, a += piece, b += piece * step) {
      load<kRowOperands>(a, row);
      unroll<C>([&]<int c> {
        constexpr int kColumn = kColumnOperands + c % 3;
        load<kColumn>(b + c * kColumns, step);
        multiply_add<c, kRowOperands, kColumn>();
      });
    }
  }
  unroll<C>([&]<int c> { store<c>(out + c * kColumns, stride); });
}

}  // namespace
}  // namespace dsmooth::sampler::DSMOOTH_ISA
