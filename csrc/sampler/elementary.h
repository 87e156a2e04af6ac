// Functions of one float, for host and device: elu and sigmoid with the roundings of tile.h's
// vectors, and the quantile of the normal distribution.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"

namespace dsmooth::sampler::scalar {

using Vec = float;

DSMOOTH_HOST_DEVICE inline Vec splat(float x) { return x; }
DSMOOTH_HOST_DEVICE inline Vec multiply_add(Vec a, Vec b, Vec c) { return fmaf(a, b, c); }
DSMOOTH_HOST_DEVICE inline Vec minus_abs(Vec x) { return -fabsf(x); }
// Keeps a NaN.
DSMOOTH_HOST_DEVICE inline Vec at_least(Vec x, float low) { return low > x ? low : x; }
DSMOOTH_HOST_DEVICE inline Vec select_positive(Vec x, Vec yes, Vec no) { return x > 0 ? yes : no; }
DSMOOTH_HOST_DEVICE inline Vec round_whole(Vec x) { return rintf(x); }
DSMOOTH_HOST_DEVICE inline Vec power_of_two(Vec whole) {
  // A NaN has no exponent; it stays in e^r - 1.
  const int n = whole >= -126.0f ? static_cast<int>(whole) : 0;
  return __builtin_bit_cast(float, static_cast<uint32_t>(n + 127) << 23);
}
// a / b for 0 < a <= 1 <= b <= 2: a division, without its branch for other arguments.
DSMOOTH_HOST_DEVICE inline Vec quotient(Vec a, Vec b) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
  r = fmaf(fmaf(-b, r, 1.0f), r, r);
  const float q = a * r;
  const float nearer = fmaf(fmaf(-b, q, a), r, q);
  return fmaf(fmaf(-b, nearer, a), r, nearer);
#else
  return a / b;
#endif
}

#include "activations.h"

// The x below which a standard normal variable falls with probability u, for 2^-24 <= u <= 1 -
// 2^-24. Wichura, "Algorithm AS 241" (1988), PPND7 without its far tail, sqrt(-log u) > 5.
DSMOOTH_HOST_DEVICE inline float ndtri(float u) {
  const float q = u - 0.5f;
  if (fabsf(q) <= 0.425f) {
    const float r = fmaf(-q, q, 0.180625f);
    const float top =
        fmaf(fmaf(fmaf(59.109374720f, r, 159.29113202f), r, 50.434271938f), r, 3.3871327179f);
    const float bottom =
        fmaf(fmaf(fmaf(67.187563600f, r, 78.757757664f), r, 17.895169469f), r, 1.0f);
    return q * top / bottom;
  }
  const float r = sqrtf(-logf(q < 0 ? u : 1.0f - u)) - 1.6f;
  const float top =
      fmaf(fmaf(fmaf(0.17023821103f, r, 1.3067284816f), r, 2.7568153900f), r, 1.4234372777f);
  const float x = top / fmaf(fmaf(0.12021132975f, r, 0.73700164250f), r, 1.0f);
  return q < 0 ? -x : x;
}

}  // namespace dsmooth::sampler::scalar
