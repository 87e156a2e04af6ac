// Log-likelihood of one pixel under a mixture of logistics, and its gradient in closed form.
//
// The equations are written once, as templates over a Math: ScalarMath (a CUDA thread; the host,
// for tests) or the vectors of one CPU instruction set (vector_math.h), where V holds several
// pixels. Channels of a pixel: K logits; per colour K means, K log-scales and, for RGB, K
// coefficient logits.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace dsmooth {

inline constexpr double kMinLogScale = -7.0;
inline constexpr double kHalfLevel = 1.0 / 255.0;        // delta
inline constexpr double kLogLevel = -4.848116364598481;  // log(2 delta)
inline constexpr double kOuterLevel = 0.999;  // beyond it, the outer levels take the tails

// A (B, channels, H, W) tensor, rows and columns perhaps collapsed; strides in elements.
template <class T>
struct Planes {
  T* data = nullptr;
  int64_t stride_b = 0, stride_c = 0, stride_row = 0, stride_col = 1;

  DSMOOTH_HOST_DEVICE T* at(int64_t b, int64_t row, int64_t col) const {
    return data + b * stride_b + row * stride_row + col * stride_col;
  }
};

template <class T>
struct LogisticMixtureArgs {
  Planes<const T> x;       // (B, C, H, W)
  Planes<const T> params;  // (B, P, H, W)
  Planes<T> log_prob;      // (B, 1, H, W); forward only
  // (B, 4, H, W), see State: written by the forward, read by the backward.
  Planes<T> state;
  Planes<const T> grad;   // (B, 1, H, W): d loss / d log_prob; backward only, like what follows
  Planes<T> grad_x;       // (B, C, H, W), or data == nullptr: not wanted
  Planes<T> grad_params;  // (B, P, H, W), or data == nullptr: not wanted
  int64_t batch = 0, rows = 0, cols = 0, n_mix = 0;
  int channels = 0;
  bool discretized = false;
};

// What the forward leaves for the backward, so that this evaluates the components once: over k,
// log sum exp(logit) = max_logit + log(sum_logit), and the same of joint = logit + log p_k.
enum State { kMaxJoint, kSumJoint, kMaxLogit, kSumLogit, kStateChannels };

// Index of a component's parameter among a pixel's channels.
template <int C>
struct Channels {
  int64_t n_mix;
  static constexpr int kPerColour = C == 1 ? 2 : 3;

  DSMOOTH_HOST_DEVICE int64_t mean(int c, int64_t k) const {
    return n_mix * (1 + kPerColour * c) + k;
  }
  DSMOOTH_HOST_DEVICE int64_t log_scale(int c, int64_t k) const { return mean(c, k) + n_mix; }
  DSMOOTH_HOST_DEVICE int64_t coefficient(int c, int64_t k) const { return mean(c, k) + 2 * n_mix; }
};

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
  DSMOOTH_HOST_DEVICE static T exp(T v) { return ::exp(v); }
  DSMOOTH_HOST_DEVICE static T log(T v) { return ::log(v); }
  DSMOOTH_HOST_DEVICE static ExpPair<T> exp_pair(T v) { return {::exp(v), ::expm1(v)}; }
};
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

// What one component says of one pixel: its log-density over all colours, without the weight, and
// the derivatives of that by the raw parameters and by x.
template <class V, int C>
struct Component {
  V log_p;
  V d_mean[C], d_log_scale[C], d_x[C];
  V d_coefficient[3];  // g|r, b|r, b|g; unused for grey
};

template <class M, int C>
struct ComponentInput {
  typename M::V mean[C], log_scale[C];
  typename M::V coefficient[3];
};

// Terms of one colour. log p = linear + log(numerator) - log(denominator), where the last two stay
// within [0.1, 4], so one logarithm can serve the product over all colours.
template <class V>
struct Colour {
  V linear, numerator, denominator;
  V slope;        // s * d log p / d x
  V d_log_scale;  // d log p / d log s
};

// log p = z - log s - 2 softplus(z) = -|z| - log s - 2 log(1 + e), e = exp(-|z|).
template <class M>
DSMOOTH_INLINE Colour<typename M::V> colour_density(typename M::V distance, typename M::V log_scale,
                                                    typename M::V inverse_scale) {
  using V = typename M::V;
  const V z = distance * inverse_scale;
  const V magnitude = M::abs(z);
  const ExpPair<V> exp = M::exp_pair(-magnitude);
  const V denominator = 1 + exp.e;
  const V tanh_half = -exp.em1 / denominator;  // tanh(|z| / 2)
  Colour<V> out;
  out.linear = -magnitude - log_scale;
  out.numerator = M::splat(1);
  out.denominator = denominator * denominator;
  out.slope = M::select(z < 0, tanh_half, -tanh_half);
  out.d_log_scale = magnitude * tanh_half - 1;
  return out;
}

// With a, b = (x - mean +- delta) / s and D = a - b = 2 delta / s, the probability of a level is
//   sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - e^-D);  sigma(a) at level 0, sigma(-b) at 255,
// and 1 - e^-D = D phi(D), log D = log(2 delta) - log s, which leaves no small difference and no
// underflow at any scale.
template <class M>
DSMOOTH_INLINE Colour<typename M::V> colour_mass(typename M::V x, typename M::V distance,
                                                 typename M::V log_scale,
                                                 typename M::V inverse_scale) {
  using V = typename M::V;
  using T = typename M::Scalar;
  const V zero = M::splat(0), one = M::splat(1);
  const V half = static_cast<T>(kHalfLevel) * inverse_scale;
  const V centre = distance * inverse_scale;
  const V a = centre + half, b = centre - half;
  const ExpPair<V> exp_a = M::exp_pair(-M::abs(a));
  const ExpPair<V> exp_b = M::exp_pair(-M::abs(b));
  const V width = M::select(half > static_cast<T>(1e-30), half + half, M::splat(2e-30));
  const ExpPair<V> exp_width = M::exp_pair(-width);
  const V phi = -exp_width.em1 / width;

  const auto is_first = x < static_cast<T>(-kOuterLevel);
  const auto is_last = x > static_cast<T>(kOuterLevel);
  const V below = M::select(is_last, zero, M::select(a < 0, a, zero));    // min(a, 0)
  const V above = M::select(is_first, zero, M::select(b > 0, -b, zero));  // min(-b, 0)
  const V inner = static_cast<T>(kLogLevel) - log_scale;
  const V denominator_a = 1 + exp_a.e, denominator_b = 1 + exp_b.e;
  const V tail_a = M::select(is_last, zero, M::select(a > 0, exp_a.e, one) / denominator_a);
  const V tail_b = M::select(is_first, zero, M::select(b > 0, one, exp_b.e) / denominator_b);
  const V d_width = (1 + exp_width.em1) / phi;  // D / (e^D - 1)

  Colour<V> out;
  out.linear = below + above + M::select(is_first, zero, M::select(is_last, zero, inner));
  out.numerator = M::select(is_first, one, M::select(is_last, one, phi));
  out.denominator =
      M::select(is_last, one, denominator_a) * M::select(is_first, one, denominator_b);
  out.slope = tail_a - tail_b;  // sigma(-a) - sigma(b)
  out.d_log_scale =
      b * tail_b - a * tail_a - M::select(is_first, zero, M::select(is_last, zero, d_width));
  return out;
}

template <class M, int C, bool kDiscretized>
DSMOOTH_INLINE void evaluate_component(const typename M::V (&x)[C], const ComponentInput<M, C>& in,
                                       Component<typename M::V, C>& out) {
  using V = typename M::V;
  using T = typename M::Scalar;
  V mean[C], coefficient[3], d_tanh[3];
  for (int c = 0; c < C; ++c) mean[c] = in.mean[c];
  if constexpr (C == 3) {
    for (int i = 0; i < 3; ++i) {
      // tanh(w) = (1 - e) / (1 + e) and 1 - tanh^2 = 4 e / (1 + e)^2, e = exp(-2 |w|).
      const ExpPair<V> exp = M::exp_pair(-2 * M::abs(in.coefficient[i]));
      const V inverse = 1 / (1 + exp.e);
      const V magnitude = -exp.em1 * inverse;
      coefficient[i] = M::select(in.coefficient[i] < 0, -magnitude, magnitude);
      d_tanh[i] = 4 * exp.e * inverse * inverse;
    }
    mean[1] = mean[1] + coefficient[0] * x[0];
    mean[2] = mean[2] + coefficient[1] * x[0] + coefficient[2] * x[1];
  }

  V linear = M::splat(0), numerator = M::splat(1), denominator = M::splat(1);
  for (int c = 0; c < C; ++c) {
    const auto clamped = in.log_scale[c] < static_cast<T>(kMinLogScale);
    const V log_scale = M::select(clamped, M::splat(kMinLogScale), in.log_scale[c]);
    const V inverse_scale = M::exp(-log_scale);
    const V distance = x[c] - mean[c];
    Colour<V> colour;
    if constexpr (kDiscretized) {
      colour = colour_mass<M>(x[c], distance, log_scale, inverse_scale);
    } else {
      colour = colour_density<M>(distance, log_scale, inverse_scale);
    }
    linear = linear + colour.linear;
    numerator = numerator * colour.numerator;
    denominator = denominator * colour.denominator;
    out.d_x[c] = colour.slope * inverse_scale;
    out.d_mean[c] = -out.d_x[c];
    out.d_log_scale[c] = M::select(clamped, M::splat(0), colour.d_log_scale);
  }
  out.log_p = linear + M::log(numerator / denominator);
  if constexpr (C == 3) {
    out.d_x[0] = out.d_x[0] + coefficient[0] * out.d_mean[1] + coefficient[1] * out.d_mean[2];
    out.d_x[1] = out.d_x[1] + coefficient[2] * out.d_mean[2];
    out.d_coefficient[0] = out.d_mean[1] * x[0] * d_tanh[0];
    out.d_coefficient[1] = out.d_mean[2] * x[0] * d_tanh[1];
    out.d_coefficient[2] = out.d_mean[2] * x[1] * d_tanh[2];
  }
}

template <class M, int C, class Load>
DSMOOTH_INLINE ComponentInput<M, C> load_component(Channels<C> channel, int64_t k,
                                                   const Load& load) {
  ComponentInput<M, C> in;
  for (int c = 0; c < C; ++c) {
    in.mean[c] = load(channel.mean(c, k));
    in.log_scale[c] = load(channel.log_scale(c, k));
    if constexpr (C == 3) in.coefficient[c] = load(channel.coefficient(c, k));
  }
  return in;
}

// The gradient by every parameter of component k, given its weight pi and its responsibility r,
// each times d loss / d log_prob; store(channel, value).
template <int C, class V, class Store>
DSMOOTH_INLINE void store_component(const Component<V, C>& component, V weight, V responsibility,
                                    Channels<C> channel, int64_t k, const Store& store) {
  store(k, responsibility - weight);
  for (int c = 0; c < C; ++c) {
    store(channel.mean(c, k), responsibility * component.d_mean[c]);
    store(channel.log_scale(c, k), responsibility * component.d_log_scale[c]);
    if constexpr (C == 3) {
      store(channel.coefficient(c, k), responsibility * component.d_coefficient[c]);
    }
  }
}

// One pixel without scratch memory, for a thread that has none: a CUDA thread, or the host in
// tests.
template <class T, int C, bool kDiscretized>
struct Pixel {
  using M = ScalarMath<T>;
  T x[C];
  const T* params;
  int64_t stride;
  Channels<C> channel;

  DSMOOTH_HOST_DEVICE Pixel(const LogisticMixtureArgs<T>& args, int64_t b, int64_t row, int64_t col)
      : params(args.params.at(b, row, col)), stride(args.params.stride_c), channel{args.n_mix} {
    for (int c = 0; c < C; ++c) x[c] = args.x.at(b, row, col)[c * args.x.stride_c];
  }

  // Returns the logit.
  DSMOOTH_HOST_DEVICE T evaluate(int64_t k, Component<T, C>& out) const {
    const auto load = [&](int64_t index) { return params[index * stride]; };
    evaluate_component<M, C, kDiscretized>(x, load_component<M, C>(channel, k, load), out);
    return load(k);
  }
};

template <class T>
struct RunningLogSumExp {
  T max = 0, sum = 0;

  DSMOOTH_HOST_DEVICE void add(T value, bool first) {
    using M = ScalarMath<T>;
    if (first || value > max) {
      sum = first ? T(0) : sum * M::exp(max - value);
      max = value;
    }
    sum += M::exp(value - max);
  }
};

template <class T, int C, bool kDiscretized>
DSMOOTH_HOST_DEVICE void pixel_forward(const LogisticMixtureArgs<T>& args, int64_t b, int64_t row,
                                       int64_t col) {
  using M = ScalarMath<T>;
  const Pixel<T, C, kDiscretized> pixel(args, b, row, col);
  RunningLogSumExp<T> logits, joints;
  for (int64_t k = 0; k < args.n_mix; ++k) {
    Component<T, C> component;
    const T logit = pixel.evaluate(k, component);
    logits.add(logit, k == 0);
    joints.add(logit + component.log_p, k == 0);
  }
  *args.log_prob.at(b, row, col) =
      (joints.max - logits.max) + (M::log(joints.sum) - M::log(logits.sum));
  T* state = args.state.at(b, row, col);
  state[kMaxJoint * args.state.stride_c] = joints.max;
  state[kSumJoint * args.state.stride_c] = joints.sum;
  state[kMaxLogit * args.state.stride_c] = logits.max;
  state[kSumLogit * args.state.stride_c] = logits.sum;
}

template <class T, int C, bool kDiscretized>
DSMOOTH_HOST_DEVICE void pixel_backward(const LogisticMixtureArgs<T>& args, int64_t b, int64_t row,
                                        int64_t col) {
  using M = ScalarMath<T>;
  const Pixel<T, C, kDiscretized> pixel(args, b, row, col);
  const T* state = args.state.at(b, row, col);
  const T max_joint = state[kMaxJoint * args.state.stride_c];
  const T max_logit = state[kMaxLogit * args.state.stride_c];
  const T grad = *args.grad.at(b, row, col);
  const T scale_joint = grad / state[kSumJoint * args.state.stride_c];
  const T scale_logit = grad / state[kSumLogit * args.state.stride_c];
  T grad_x[C] = {};
  for (int64_t k = 0; k < args.n_mix; ++k) {
    Component<T, C> component;
    const T logit = pixel.evaluate(k, component);
    const T responsibility = M::exp(logit + component.log_p - max_joint) * scale_joint;
    for (int c = 0; c < C; ++c) grad_x[c] += responsibility * component.d_x[c];
    if (args.grad_params.data == nullptr) continue;
    const T weight = M::exp(logit - max_logit) * scale_logit;
    T* target = args.grad_params.at(b, row, col);
    store_component<C>(
        component, weight, responsibility, pixel.channel, k,
        [&](int64_t channel, T value) { target[channel * args.grad_params.stride_c] = value; });
  }
  if (args.grad_x.data == nullptr) return;
  for (int c = 0; c < C; ++c) args.grad_x.at(b, row, col)[c * args.grad_x.stride_c] = grad_x[c];
}

}  // namespace dsmooth
