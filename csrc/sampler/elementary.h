// elu and sigmoid, with the same roundings for a float and for vectors, and the quantile of the
// normal distribution. For host and device.
//
// The loss and the gated resnet use another exp (vector_math.h). Sharing one would change the bits
// of images or of trained weights.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"

namespace dsmooth::sampler {

// Arithmetic of one float, with the interface of VectorMath.
struct ScalarMath {
  using V = float;

  DSMOOTH_INLINE static V splat(float x) { return x; }
  DSMOOTH_INLINE static V select(bool condition, V a, V b) { return condition ? a : b; }
  DSMOOTH_INLINE static V multiply_add(V a, V b, V c) { return fmaf(a, b, c); }
  DSMOOTH_INLINE static V minus_abs(V x) { return -fabsf(x); }
  DSMOOTH_INLINE static V at_least(V x, float low) { return low > x ? low : x; }
  DSMOOTH_INLINE static V round(V x) { return rintf(x); }
  DSMOOTH_INLINE static V power_of_two(V whole) {
    // A NaN has no exponent; e^r - 1 keeps it.
    const int n = whole >= -126.0f ? static_cast<int>(whole) : 0;
    return __builtin_bit_cast(float, static_cast<uint32_t>(n + 127) << 23);
  }
};

// a / b for 0 < a <= 1 <= b <= 2.
template <class V>
DSMOOTH_INLINE V quotient(V a, V b) {
#if defined(__CUDA_ARCH__)  // a division without its branch for other arguments
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

template <class M>
struct Elementary {
  using V = typename M::V;

  // e^x - 1 for x <= 0, as 2^n (e^r - 1) + (2^n - 1) with x = n ln 2 + r, |r| <= ln(2)/2: accurate
  // near 0 too. `power` is 2^n and `rest` is e^r - 1.
  struct Exponential {
    V power, rest;
  };
  DSMOOTH_INLINE static Exponential exponential(V x) {
    const auto multiply_add = [](V a, V b, float c) { return M::multiply_add(a, b, M::splat(c)); };
    // e^-87 is the last normal float; below it e^x - 1 rounds to -1.
    x = M::at_least(x, -87.0f);
    const V n = M::round(multiply_add(x, M::splat(0x1.715476p+0f), 0.0f));
    V r = M::multiply_add(n, M::splat(-0x1.62e4p-1f), x);
    r = M::multiply_add(n, M::splat(-0x1.7f7d1cp-20f), r);
    // (e^r - 1 - r) / r^2: minimax on |r| <= ln(2)/2, error 1.4e-8 relative to r.
    V q = multiply_add(r, M::splat(0x1.6d99bep-10f), 0x1.12288p-7f);
    q = multiply_add(q, r, 0x1.555486p-5f);
    q = multiply_add(q, r, 0x1.5554aep-3f);
    q = multiply_add(q, r, 0.5f);
    return {M::power_of_two(n), M::multiply_add(multiply_add(q, r, 0.0f), r, r)};
  }
  DSMOOTH_INLINE static V expm1_negative(V x) {
    const Exponential e = exponential(x);
    return M::multiply_add(e.power, e.rest, e.power - 1.0f);
  }
  // e^x for x <= 0, at least e^-87.
  DSMOOTH_INLINE static V exp_negative(V x) {
    const Exponential e = exponential(x);
    return M::multiply_add(e.power, e.rest, e.power);
  }
  DSMOOTH_INLINE static V sigmoid(V x) {
    const V small = exp_negative(M::minus_abs(x));
    return quotient(M::select(x > 0, M::splat(1.0f), small), 1.0f + small);
  }
};

using Scalar = Elementary<ScalarMath>;

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

}  // namespace dsmooth::sampler
