// The functions that the likelihood needs, on one number: the counterpart of vector_math.h, for a
// CUDA thread and for the host.
#pragma once

#include <cmath>

#include "host_device.h"

namespace dsmooth {

template <class V>
struct ExpPair {
  V e;    // exp(y)
  V em1;  // exp(y) - 1, accurate near 0
};

template <class T>
struct ScalarMath {
  using V = T;
  using Scalar = T;
  DSMOOTH_HOST_DEVICE static T splat(double value) { return static_cast<T>(value); }
  DSMOOTH_HOST_DEVICE static T select(bool condition, T a, T b) { return condition ? a : b; }
  DSMOOTH_HOST_DEVICE static T abs(T v) { return v < 0 ? -v : v; }
  DSMOOTH_HOST_DEVICE static T copysign(T magnitude, T sign) {
    return sign < 0 ? -magnitude : magnitude;
  }
  DSMOOTH_HOST_DEVICE static T reciprocal(T v) { return 1 / v; }
  DSMOOTH_HOST_DEVICE static T round(T v) { return ::rint(v); }
  DSMOOTH_HOST_DEVICE static T exp(T v) { return ::exp(v); }
  DSMOOTH_HOST_DEVICE static T log(T v) { return ::log(v); }
  DSMOOTH_HOST_DEVICE static ExpPair<T> exp_pair(T v) { return {::exp(v), ::expm1(v)}; }
};
template <>
DSMOOTH_HOST_DEVICE inline float ScalarMath<float>::round(float v) {
  return ::rintf(v);
}
template <>
DSMOOTH_HOST_DEVICE inline float ScalarMath<float>::exp(float v) {
  return ::expf(v);
}
template <>
DSMOOTH_HOST_DEVICE inline float ScalarMath<float>::log(float v) {
  return ::logf(v);
}
template <>
DSMOOTH_HOST_DEVICE inline ExpPair<float> ScalarMath<float>::exp_pair(float v) {
  return {::expf(v), ::expm1f(v)};
}

}  // namespace dsmooth
