// Log-likelihood of one pixel under a mixture of logistics or Gaussians, and its gradient in closed
// form. Compiled once per instruction set: see vector_math.h for the restrictions.
//
// A vector V holds several pixels. Channels of a pixel: K logits of components, J logits of atoms;
// per colour K means, K log-scales and, for RGB, K coefficient logits. An atom is a component that
// puts all its probability on one byte; grey images have J = 0 or 256, RGB images none.
#pragma once

#include <cstdint>
#include <limits>

#include "../common/vector_math.h"
#include "logistic_mixture.h"

namespace dsmooth::DSMOOTH_ISA {

inline constexpr double kMinLogScale = -7.0;
inline constexpr double kHalfStep = 1.0 / 255.0;        // delta
inline constexpr double kLogStep = -4.848116364598481;  // log(2 delta)
inline constexpr double kOuterByte = 0.999;             // beyond it, the outer bytes take the tails
inline constexpr double kLargeLogit = 256;
inline constexpr double kHalfLogTwoPi = 0.9189385332046727;
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Index of a component's parameter among a pixel's channels.
template <int C>
struct Channels {
  int64_t n_mix, n_atoms;
  static constexpr int kPerColour = C == 1 ? 2 : 3;

  DSMOOTH_INLINE int64_t mean(int c, int64_t k) const {
    return n_mix * (1 + kPerColour * c) + n_atoms + k;
  }
  DSMOOTH_INLINE int64_t log_scale(int c, int64_t k) const { return mean(c, k) + n_mix; }
  DSMOOTH_INLINE int64_t coefficient(int c, int64_t k) const { return mean(c, k) + 2 * n_mix; }
};

// Density of one component at one pixel, over all colours and without the weight, and the
// derivatives of log p with respect to the raw parameters and x.
//
// p = factor * exp(exponent), where 1e-5 < factor <= 1. The range is so small that it suffices to
// scale sums over k by their largest exponent: no component needs a logarithm.
template <class V, int C>
struct Component {
  V exponent, factor;
  V d_mean[C], d_log_scale[C], d_x[C];
  V d_coefficient[3];  // g|r, b|r, b|g; unused for grey
};

// Terms of one colour: p = factor * exp(exponent), 0.02 < factor <= 1. For a Gaussian p =
// exp(exponent) / sqrt(factor), 1 <= factor <= 2: one logarithm then serves all colours.
template <class V>
struct Colour {
  V exponent, factor;
  V slope;        // d log p / d x
  V d_log_scale;  // d log p / d log s
};

// log p = z - log s - 2 softplus(z), so p = exp(-|z| - log s) / (1 + e)^2 with e = exp(-|z|).
template <class M>
DSMOOTH_INLINE Colour<typename M::V> colour_density(typename M::V distance,
                                                    typename M::V log_scale) {
  using V = typename M::V;
  const V inverse_scale = M::exp(-log_scale);
  const V z = distance * inverse_scale;
  const V magnitude = M::abs(z);
  const V e = M::exp(-magnitude);
  const V inverse = M::reciprocal(1 + e);
  const V tanh_half = inverse - e * inverse;  // tanh(|z| / 2)
  Colour<V> out;
  out.exponent = -magnitude - log_scale;
  out.factor = inverse * inverse;
  out.slope = -M::copysign(tanh_half, z) * inverse_scale;
  out.d_log_scale = magnitude * tanh_half - 1;
  return out;
}

// With a, b = (x - mean +- delta) / s and D = a - b = 2 delta / s, the probability of a byte is
//   sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - e^-D);  sigma(a) at byte 0, sigma(-b) at 255.
// Relative to the mean, one edge of the byte is far, |z| + D/2, and one is near, |z| - D/2:
//   sigma(a) - sigma(b) = sigma(far) sigma(-near) (1 - e^-D), whatever the sign of z,
// so two exponentials, of |z| and D/2, serve all. And 1 - e^-D = D phi(D), log D = log(2 delta) -
// log s: nothing cancels, and nothing underflows at any scale.
template <class M>
DSMOOTH_INLINE Colour<typename M::V> colour_mass(typename M::V x, typename M::V distance,
                                                 typename M::V log_scale) {
  using V = typename M::V;
  using T = typename M::Scalar;
  const V zero = M::splat(0), one = M::splat(1);
  const V inverse_scale = M::exp(-log_scale);
  const V z = distance * inverse_scale;
  const V half = static_cast<T>(kHalfStep) * inverse_scale;  // D / 2 <= 4.3
  const V far = M::abs(z) + half, near = M::abs(z) - half;
  const auto inside = near < 0;
  const V exp_z = M::exp(-M::abs(z));
  const auto exp_half =
      M::exp_pair(-M::select(half > static_cast<T>(1e-30), half, M::splat(1e-30)));
  const V exp_far = exp_z * exp_half.e;  // exp(-far)
  // exp(-|near|) is exp_z / exp_half, or the inverse.
  const V exp_near =
      M::select(inside, exp_half.e, exp_z) * M::reciprocal(M::select(inside, exp_z, exp_half.e));
  const V one_less = -exp_half.em1 * (1 + exp_half.e);  // 1 - exp(-D)
  const V width = M::select(half > static_cast<T>(1e-30), half + half, M::splat(2e-30));
  const V phi = one_less * M::reciprocal(width);
  const V d_width = exp_half.e * exp_half.e * width * M::reciprocal(one_less);  // D / (e^D - 1)

  // The outermost bytes have one edge: byte 0 the upper one, a, which is far if z >= 0.
  const auto is_first = x < static_cast<T>(-kOuterByte);
  const auto is_last = x > static_cast<T>(kOuterByte);
  const auto negative = z < 0, positive = z >= 0;
  const auto no_near = (is_first & positive) | (is_last & negative);
  const auto no_far = (is_first & negative) | (is_last & positive);
  const auto outer = is_first | is_last;
  const V inverse_far = M::reciprocal(1 + exp_far), inverse_near = M::reciprocal(1 + exp_near);
  const V tail_far = M::select(no_far, zero, exp_far * inverse_far);  // sigma(-far)
  const V tail_near =
      M::select(no_near, zero, M::select(inside, exp_near, one) * inverse_near);  // sigma(near)
  const V slope = tail_far - tail_near;

  Colour<V> out;
  out.exponent = M::select(no_near, zero, M::select(inside, zero, -near)) +
                 M::select(outer, zero, static_cast<T>(kLogStep) - log_scale);
  out.factor = M::select(no_far, one, inverse_far) * M::select(no_near, one, inverse_near) *
               M::select(outer, one, phi);
  out.slope = M::select(negative, -slope, slope) * inverse_scale;
  out.d_log_scale = near * tail_near - far * tail_far - M::select(outer, zero, d_width);
  return out;
}

// The variance is v = s^2 + sigma^2 = m^2 (1 + q), with m the larger of s and sigma, and q = exp(-2
// |log s - log sigma|) the squared ratio of the smaller to m: one exponential, and no overflow.
template <class M>
DSMOOTH_INLINE Colour<typename M::V> colour_gaussian(typename M::V distance,
                                                     typename M::V log_scale,
                                                     const Smoothing& smoothing) {
  using V = typename M::V;
  using T = typename M::Scalar;
  const V one = M::splat(1), log_sigma = M::splat(smoothing.log_scale);
  const V ratio = log_scale - log_sigma;
  const V q = M::exp(-2 * M::abs(ratio));
  const auto wide = ratio > 0;
  const V inverse = M::reciprocal(1 + q);
  const V precision =
      M::select(wide, q, one) * inverse * static_cast<T>(smoothing.precision);  // 1 / v
  const V pull = distance * precision;
  const V square = distance * pull;  // (x - mean)^2 / v
  Colour<V> out;
  out.exponent = static_cast<T>(-0.5) * square - M::select(wide, log_scale, log_sigma) -
                 static_cast<T>(kHalfLogTwoPi);
  out.factor = 1 + q;
  out.slope = -pull;
  out.d_log_scale = M::select(wide, one, q) * inverse * (square - 1);  // s^2 / v (square - 1)
  return out;
}

// Component k at pixels x; load(channel) gives a parameter.
template <class M, int C, Likelihood kLikelihood, class Load>
DSMOOTH_INLINE Component<typename M::V, C> evaluate_component(const typename M::V (&x)[C],
                                                              Channels<C> channel, int64_t k,
                                                              const Smoothing& smoothing,
                                                              const Load& load) {
  Component<typename M::V, C> out{};
  using V = typename M::V;
  using T = typename M::Scalar;
  V mean[C], coefficient[3], d_tanh[3];
  DSMOOTH_UNROLL
  for (int c = 0; c < C; ++c) mean[c] = load(channel.mean(c, k));
  if constexpr (C == 3) {
    DSMOOTH_UNROLL
    for (int i = 0; i < 3; ++i) {
      // |tanh w| = (1 - e) / (1 + e), e = exp(-2 |w|).
      const V logit = load(channel.coefficient(i, k));
      const V e = M::exp(-2 * M::abs(logit));
      const V inverse = M::reciprocal(1 + e);
      const V magnitude = inverse - e * inverse;
      coefficient[i] = M::copysign(magnitude, logit);
      d_tanh[i] = 1 - magnitude * magnitude;
    }
    mean[1] = mean[1] + coefficient[0] * x[0];
    mean[2] = mean[2] + coefficient[1] * x[0] + coefficient[2] * x[1];
  }

  out.exponent = M::splat(0);
  out.factor = M::splat(1);
  DSMOOTH_UNROLL
  for (int c = 0; c < C; ++c) {
    const V raw = load(channel.log_scale(c, k));
    const auto clamped = raw < static_cast<T>(kMinLogScale);
    const V log_scale = M::select(clamped, M::splat(kMinLogScale), raw);
    const V distance = x[c] - mean[c];
    Colour<V> colour;
    if constexpr (kLikelihood == Likelihood::kDiscretized)
      colour = colour_mass<M>(x[c], distance, log_scale);
    else if constexpr (kLikelihood == Likelihood::kGaussian)
      colour = colour_gaussian<M>(distance, log_scale, smoothing);
    else
      colour = colour_density<M>(distance, log_scale);
    out.exponent = out.exponent + colour.exponent;
    out.factor = out.factor * colour.factor;
    out.d_x[c] = colour.slope;
    out.d_mean[c] = -out.d_x[c];
    out.d_log_scale[c] = M::select(clamped, M::splat(0), colour.d_log_scale);
  }
  if constexpr (kLikelihood == Likelihood::kGaussian) {
    out.exponent = out.exponent - static_cast<T>(0.5) * M::log(out.factor);
    out.factor = M::splat(1);
  }
  if constexpr (C == 3) {
    out.d_x[0] = out.d_x[0] + coefficient[0] * out.d_mean[1] + coefficient[1] * out.d_mean[2];
    out.d_x[1] = out.d_x[1] + coefficient[2] * out.d_mean[2];
    out.d_coefficient[0] = out.d_mean[1] * x[0] * d_tanh[0];
    out.d_coefficient[1] = out.d_mean[2] * x[0] * d_tanh[1];
    out.d_coefficient[2] = out.d_mean[2] * x[1] * d_tanh[2];
  }
  return out;
}

// Subtracted from every logit before an exponent is added: a large logit would round the exponent
// away. 0 for small logits, whose sums do not change.
template <class M>
DSMOOTH_INLINE typename M::V shift_of(typename M::V max_logit) {
  using T = typename M::Scalar;
  return M::select(M::abs(max_logit) > static_cast<T>(kLargeLogit), max_logit, M::splat(0));
}

// The atom at each pixel, its byte; -1 for none. No other atom has a joint above -inf.
template <class M>
struct AtomHere {
  int atom[M::kLanes];

  DSMOOTH_INLINE explicit AtomHere(typename M::V x) {
    const typename M::V byte = M::round((x + 1) * static_cast<typename M::Scalar>(127.5));
    for (int lane = 0; lane < M::kLanes; ++lane) {
      const bool is_byte = byte[lane] >= 0 && byte[lane] <= 255;  // false for NaN
      atom[lane] = is_byte ? static_cast<int>(byte[lane]) : -1;
    }
  }

  // The atom's logit, -inf for none. first: the channel of atom 0; columns are adjacent.
  DSMOOTH_INLINE typename M::V logit(const Planes<const typename M::Scalar>& params,
                                     const Position& at, int64_t first) const {
    typename M::V logit = M::splat(-kInfinity);
    for (int lane = 0; lane < M::kLanes; ++lane)
      if (atom[lane] >= 0) logit[lane] = params.at(at, first + atom[lane])[lane];
    return logit;
  }

  // Writes a value only at that atom.
  DSMOOTH_INLINE void store(typename M::V value, const Planes<typename M::Scalar>& params,
                            const Position& at, int64_t first) const {
    for (int lane = 0; lane < M::kLanes; ++lane)
      if (atom[lane] >= 0) params.at(at, first + atom[lane])[lane] = value[lane];
  }
};

}  // namespace dsmooth::DSMOOTH_ISA
