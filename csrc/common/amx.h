// The matrix registers of AMX: an instruction multiplies 16 rows by 16 columns over 16 words of k,
// pairs of bfloat16. Must be compiled for AMX.
#pragma once

#include <cstddef>
#include <cstdint>

#include "host_device.h"

namespace dsmooth::DSMOOTH_ISA::amx {

constexpr int kRows = 16, kColumns = 16, kWords = 16;  // of a register
constexpr int kSums = 4;  // registers 0 to 3; the next hold operands of rows, the last of columns

template <int kRegister>
DSMOOTH_INLINE void load(const void* p, ptrdiff_t stride) {  // in words
  asm volatile("tileloadd (%0,%1,4), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kRegister) : "memory");
}
template <int kRegister>
DSMOOTH_INLINE void store(void* p, ptrdiff_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,4)" ::"r"(p), "r"(stride), "i"(kRegister) : "memory");
}
template <int kRegister>
DSMOOTH_INLINE void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kRegister));
}
template <int kSum, int kRow, int kColumn>
DSMOOTH_INLINE void multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kRow), "i"(kColumn));
}

// Configures the registers: `rows` rows, and `words` words of k for operands. Registers from
// `first_column` hold columns. Takes as long as 15 multiplications.
inline void shape_registers(int rows, int words, int first_column) {
  struct alignas(64) {
    uint8_t palette = 1, reserved[15] = {};
    uint16_t bytes_of_row[16] = {};
    uint8_t rows[16] = {};
  } shapes;
  for (int i = 0; i < 8; ++i) {
    const bool is_row_operand = i >= kSums && i < first_column;
    shapes.bytes_of_row[i] = static_cast<uint16_t>(4 * (is_row_operand ? words : kColumns));
    shapes.rows[i] = static_cast<uint8_t>(i < first_column ? rows : words);
  }
  asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
}
inline void release_registers() { asm volatile("tilerelease" ::: "memory"); }

// f.operator()<i>() for each i < n.
template <int n, class F>
DSMOOTH_INLINE void unroll(F f) {
  if constexpr (n > 0) {
    unroll<n - 1>(f);
    f.template operator()<n - 1>();
  }
}

}  // namespace dsmooth::DSMOOTH_ISA::amx
