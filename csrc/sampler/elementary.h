// elu and sigmoid of one value, with the roundings of tile.h's vectors, and the quantile of the
// normal distribution, for host and device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../common/host_device.h"

namespace dsmooth::sampler::scalar {

#include "simd_common.h"

DSMOOTH_HOST_DEVICE inline float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// e^x - 1 = power * rest + (power - 1) for x <= 0; see tile.h.
struct Exponential {
  float power, rest;
};
DSMOOTH_HOST_DEVICE inline Exponential exponential(float x) {
  x = -87.0f > x ? -87.0f : x;  // keeps a NaN
  const float n = rintf(fmaf(x, 0x1.715476p+0f, 0.0f));
  float r = fmaf(n, -0x1.62e4p-1f, x);
  r = fmaf(n, -0x1.7f7d1cp-20f, r);
  float q = fmaf(r, kExp6, kExp5);
  q = fmaf(q, r, kExp4);
  q = fmaf(q, r, kExp3);
  q = fmaf(q, r, kExp2);
  // A NaN has no exponent; it stays in r.
  const int whole = n >= -126.0f ? static_cast<int>(n) : 0;
  return {from_bits(static_cast<uint32_t>(whole + 127) << 23), fmaf(fmaf(q, r, 0.0f), r, r)};
}
DSMOOTH_HOST_DEVICE inline float expm1_negative(float x) {
  const Exponential e = exponential(x);
  return fmaf(e.power, e.rest, e.power - 1.0f);
}
// a / b for 0 < a <= 1 <= b <= 2: what a division does, without its branch for other arguments.
DSMOOTH_HOST_DEVICE inline float quotient(float a, float b) {
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
DSMOOTH_HOST_DEVICE inline float sigmoid(float x) {
  const Exponential e = exponential(-fabsf(x));
  const float small = fmaf(e.power, e.rest, e.power);  // e^-|x|
  return quotient(x > 0 ? 1.0f : small, 1.0f + small);
}

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
