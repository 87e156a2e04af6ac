// The log-likelihood of one pixel and its gradient without scratch memory, for a thread that has
// none: a CUDA thread, or the host in tests.
#pragma once

#include "atoms.h"

namespace dsmooth {

// max and sum over the values so far of factor * exp(value - max); a value of -inf adds nothing.
template <class T>
struct RunningSum {
  T max = static_cast<T>(-kInfinity), sum = 0;

  DSMOOTH_HOST_DEVICE void add(T value, T factor) {
    using M = ScalarMath<T>;
    if (value == static_cast<T>(-kInfinity)) return;
    if (value > max) {
      sum *= M::exp(max - value);
      max = value;
    }
    sum += factor * M::exp(value - max);
  }
};

template <class T, int C, Likelihood kLikelihood>
struct Pixel {
  using M = ScalarMath<T>;
  T x[C];
  const T* params;
  int64_t stride;
  Channels<C> channel;
  Smoothing smoothing;

  DSMOOTH_HOST_DEVICE Pixel(const LogisticMixtureArgs<T>& args, int64_t b, int64_t row, int64_t col)
      : params(args.params.at(b, row, col)),
        stride(args.params.stride_c),
        channel{args.n_mix, args.n_atoms},
        smoothing(args.smoothing) {
    DSMOOTH_UNROLL
    for (int c = 0; c < C; ++c) x[c] = args.x.at(b, row, col)[c * args.x.stride_c];
  }

  DSMOOTH_HOST_DEVICE T load(int64_t index) const { return params[index * stride]; }

  DSMOOTH_HOST_DEVICE Component<T, C> evaluate(int64_t k) const {
    const auto get = [&](int64_t index) { return load(index); };
    return evaluate_component<M, C, kLikelihood>(x, load_component<M, C>(channel, k, get),
                                                 smoothing);
  }
};

template <class T, int C, Likelihood kLikelihood>
DSMOOTH_HOST_DEVICE void pixel_forward(const LogisticMixtureArgs<T>& args, int64_t b, int64_t row,
                                       int64_t col) {
  using M = ScalarMath<T>;
  const Pixel<T, C, kLikelihood> pixel(args, b, row, col);
  RunningSum<T> logits, joints;
  for (int64_t k = 0; k < args.n_mix; ++k) {
    const Component<T, C> component = pixel.evaluate(k);
    logits.add(pixel.load(k), 1);
    joints.add(pixel.load(k) + component.exponent, component.factor);
  }
  if constexpr (kLikelihood == Likelihood::kDiscretized) {
    const auto load = [&](int64_t index) { return pixel.load(index); };
    const auto see = [&](T logit) { logits.add(logit, 1); };
    joints.add(atom_joint<M>(args, common_level<M, C>(pixel.x), load, see), 1);
  }
  *args.log_prob.at(b, row, col) =
      (joints.max - logits.max) + (M::log(joints.sum) - M::log(logits.sum));
  T* state = args.state.at(b, row, col);
  state[kMaxJoint * args.state.stride_c] = joints.max;
  state[kSumJoint * args.state.stride_c] = joints.sum;
  state[kMaxLogit * args.state.stride_c] = logits.max;
  state[kSumLogit * args.state.stride_c] = logits.sum;
}

template <class T, int C, Likelihood kLikelihood>
DSMOOTH_HOST_DEVICE void pixel_backward(const LogisticMixtureArgs<T>& args, int64_t b, int64_t row,
                                        int64_t col) {
  using M = ScalarMath<T>;
  const Pixel<T, C, kLikelihood> pixel(args, b, row, col);
  const T* state = args.state.at(b, row, col);
  const T max_joint = state[kMaxJoint * args.state.stride_c];
  const T max_logit = state[kMaxLogit * args.state.stride_c];
  const T grad = *args.grad.at(b, row, col);
  const T scale_joint = grad / state[kSumJoint * args.state.stride_c];
  const T scale_logit = grad / state[kSumLogit * args.state.stride_c];
  T* target = args.grad_params.data == nullptr ? nullptr : args.grad_params.at(b, row, col);
  const auto store = [&](int64_t index, T value) {
    target[index * args.grad_params.stride_c] = value;
  };
  T grad_x[C] = {};
  for (int64_t k = 0; k < args.n_mix; ++k) {
    const Component<T, C> component = pixel.evaluate(k);
    const T logit = pixel.load(k);
    const T responsibility =
        component.factor * M::exp(logit + component.exponent - max_joint) * scale_joint;
    DSMOOTH_UNROLL
    for (int c = 0; c < C; ++c) grad_x[c] += responsibility * component.d_x[c];
    if (target == nullptr) continue;
    const T weight = M::exp(logit - max_logit) * scale_logit;
    store_component<C>(component, weight, responsibility, pixel.channel, k, store);
  }
  if constexpr (kLikelihood == Likelihood::kDiscretized) {
    const auto load = [&](int64_t index) { return pixel.load(index); };
    if (target != nullptr) {
      store_atoms<M>(args, common_level<M, C>(pixel.x), max_joint, scale_joint, max_logit,
                     scale_logit, load, store);
    }
  }
  if (args.grad_x.data == nullptr) return;
  DSMOOTH_UNROLL
  for (int c = 0; c < C; ++c) args.grad_x.at(b, row, col)[c * args.grad_x.stride_c] = grad_x[c];
}

}  // namespace dsmooth
