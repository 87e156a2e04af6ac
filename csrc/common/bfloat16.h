// bfloat16 is the upper half of a float. Everything that rounds to it, on host and device, is here.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace dsmooth {

using bfloat16 = uint16_t;  // its bits

// The bits of the nearest bfloat16, ties to even; a NaN stays a NaN. V is float and Bits uint32_t,
// or both are vectors of these.
template <class Bits, class V>
DSMOOTH_INLINE Bits nearest_bfloat16(V value) {
  const Bits bits = __builtin_bit_cast(Bits, value);
  const Bits nearest = (bits + (0x7fffu + (bits >> 16 & 1u))) >> 16;
  return value == value ? nearest : (bits >> 16 | 0x40u);
}

DSMOOTH_INLINE bfloat16 to_bfloat16(float value) {
#if defined(__CUDA_ARCH__)
  bfloat16 bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  return static_cast<bfloat16>(nearest_bfloat16<uint32_t>(value));
#endif
}

DSMOOTH_INLINE float from_bfloat16(bfloat16 value) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(value) << 16);
}

}  // namespace dsmooth
