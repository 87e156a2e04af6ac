// elu and sigmoid of one value, with the roundings of tile.h's vectors, for host and device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../host_device.h"

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
DSMOOTH_HOST_DEVICE inline float sigmoid(float x) {
  const Exponential e = exponential(-fabsf(x));
  const float small = fmaf(e.power, e.rest, e.power);  // e^-|x|
  return (x > 0 ? 1.0f : small) / (1.0f + small);
}

}  // namespace dsmooth::sampler::scalar
