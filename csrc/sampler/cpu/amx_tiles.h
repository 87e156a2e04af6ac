// Tiles of bfloat16 in the matrix registers of AMX. Must be compiled for AMX.
#pragma once

#include "../../common/amx.h"
#include "kernels.h"

namespace dsmooth::sampler::DSMOOTH_ISA {
namespace {

namespace amx = dsmooth::DSMOOTH_ISA::amx;
using amx::kColumns, amx::kRows, amx::kSums;

constexpr int kUnits = kColumns / kUnit;
// One register holds the operands of rows; three alternate for those of columns.
constexpr int kRowOperands = kSums, kColumnOperands = kSums + 1;

// Configures the registers unless this thread already did. No other code of the thread may do so.
inline void shape_registers(int rows, int piece) {
  static thread_local int rows_now = 0, piece_now = 0;
  if (rows == rows_now && piece == piece_now) return;
  amx::shape_registers(rows, piece, kColumnOperands);
  rows_now = rows;
  piece_now = piece;
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
  // Initial sums are loaded in place, unless they repeat within the tile.
  const int begin = m0 % job.init_rows;
  const bool again = job.init_rows > 1 && begin + rows > job.init_rows;
  for (int m = 0; again && m < rows; ++m)
    __builtin_memcpy(out + m * stride,
                     job.init + (m0 + m) % job.init_rows * job.init_stride + first.column,
                     C * kColumns * sizeof(float));
  const float* init = again ? out : job.init + begin * job.init_stride + first.column;
  const ptrdiff_t init_row = again ? stride : job.init_rows > 1 ? job.init_stride : 0;
  amx::unroll<C>([&]<int c> { amx::load<c>(init + c * kColumns, init_row); });
  const float* b = first.b;
  for (int s = 0; s < job.n_segments; ++s) {
    const ptrdiff_t row = job.segments[s].stride;
    const float* a = job.segments[s].a + m0 * row;
    for (ptrdiff_t k = job.segments[s].k; k > 0; k -= piece, a += piece, b += piece * step) {
      amx::load<kRowOperands>(a, row);
      amx::unroll<C>([&]<int c> {
        constexpr int kColumn = kColumnOperands + c % 3;
        amx::load<kColumn>(b + c * kColumns, step);
        amx::multiply_add<c, kRowOperands, kColumn>();
      });
    }
  }
  amx::unroll<C>([&]<int c> { amx::store<c>(out + c * kColumns, stride); });
}

}  // namespace
}  // namespace dsmooth::sampler::DSMOOTH_ISA
