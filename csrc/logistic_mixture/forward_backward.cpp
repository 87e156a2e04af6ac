// The loss over many pixels with the vectors of one instruction set. Compiled once per set, each
// time with its own DSMOOTH_ISA; see vector_math.h for the restrictions.
#include <type_traits>

#include "equations.h"

namespace dsmooth::DSMOOTH_ISA {
namespace {

// kLanes neighbouring pixels of a row; every tensor has adjacent columns.
template <class T, int C, Likelihood kLikelihood>
struct PixelVector {
  using M = VectorMath<T>;
  using V = typename M::V;
  static constexpr bool kMayHaveAtoms = C == 1 && kLikelihood == Likelihood::kDiscretized;

  // Prefetches the next cache line of a channel: hardware prefetchers do not follow as many planes
  // as a pixel with hundreds of atoms has.
  template <class U>
  DSMOOTH_INLINE static void prefetch(const Planes<U>& planes, Position at, int64_t channel) {
    constexpr int kCacheLine = 64;
    __builtin_prefetch(planes.at(at, channel) + kCacheLine / sizeof(T), std::is_const_v<U> ? 0 : 1);
  }

  DSMOOTH_INLINE static V evaluate(const LogisticMixtureArgs<T>& args, Position at, const V (&x)[C],
                                   int64_t k, Component<V, C>& out) {
    const auto get = [&](int64_t channel) { return M::load(args.params.at(at, channel)); };
    out = evaluate_component<M, C, kLikelihood>(x, Channels<C>{args.n_mix, args.n_atoms}, k,
                                                args.smoothing, get);
    return get(k);
  }

  static void forward(const LogisticMixtureArgs<T>& args, Position at, V* scratch) {
    V x[C];
    DSMOOTH_UNROLL
    for (int c = 0; c < C; ++c) x[c] = M::load(args.x.at(at, c));
    const auto get = [&](int64_t channel) { return M::load(args.params.at(at, channel)); };
    V max_logit = get(0);
    for (int64_t i = 1; i < args.n_mix + args.n_atoms; ++i) {
      const V logit = get(i);
      max_logit = M::select(logit > max_logit, logit, max_logit);
    }
    const V shift = shift_of<M>(max_logit);
    V max_joint{};
    for (int64_t k = 0; k < args.n_mix; ++k) {
      Component<V, C> component;
      const V logit = evaluate(args, at, x, k, component);
      const V joint = (logit - shift) + component.exponent;
      max_joint = k == 0 ? joint : M::select(joint > max_joint, joint, max_joint);
      scratch[3 * k] = logit;
      scratch[3 * k + 1] = joint;
      scratch[3 * k + 2] = component.factor;
    }
    const V impossible = M::splat(-kInfinity);
    const bool has_atoms = kMayHaveAtoms && args.n_atoms > 0;
    V atom = impossible;
    if (has_atoms) {
      atom = AtomHere<M>(x[0]).logit(args.params, at, args.n_mix) - shift;
      max_joint = M::select(atom > max_joint, atom, max_joint);
    }
    // If no component is possible, as for x = inf, every exp(joint - base) is 0, and log_prob -inf.
    const V base = M::select(max_joint == impossible, V{}, max_joint);
    V sum_logit{}, sum_joint{};
    for (int64_t k = 0; k < args.n_mix; ++k) {
      sum_logit += M::exp(scratch[3 * k] - max_logit);
      sum_joint += M::exp(scratch[3 * k + 1] - base) * scratch[3 * k + 2];
    }
    if (has_atoms) {
      sum_joint += M::exp(atom - base);
      for (int64_t j = args.n_mix; j < args.n_mix + args.n_atoms; ++j) {
        prefetch(args.params, at, j);
        sum_logit += M::exp(get(j) - max_logit);
      }
    }
    const V log_sums = M::log(sum_joint) - M::log(sum_logit);
    M::store((max_joint - (max_logit - shift)) + log_sums, args.log_prob.at(at, 0));
    M::store(max_joint, args.state.at(at, kMaxJoint));
    M::store(sum_joint, args.state.at(at, kSumJoint));
    M::store(max_logit, args.state.at(at, kMaxLogit));
    M::store(sum_logit, args.state.at(at, kSumLogit));
  }

  static void backward(const LogisticMixtureArgs<T>& args, Position at, V*) {
    V x[C], grad_x[C] = {};
    DSMOOTH_UNROLL
    for (int c = 0; c < C; ++c) x[c] = M::load(args.x.at(at, c));
    const V grad = M::load(args.grad.at(at, 0));
    const V max_joint = M::load(args.state.at(at, kMaxJoint));
    const V max_logit = M::load(args.state.at(at, kMaxLogit));
    const V shift = shift_of<M>(max_logit);
    const V scale_joint = grad / M::load(args.state.at(at, kSumJoint));
    const V scale_logit = grad / M::load(args.state.at(at, kSumLogit));
    const auto set = [&](int64_t channel, V value) {
      M::store(value, args.grad_params.at(at, channel));
    };
    const Channels<C> channel{args.n_mix, args.n_atoms};
    for (int64_t k = 0; k < args.n_mix; ++k) {
      Component<V, C> component;
      const V logit = evaluate(args, at, x, k, component);
      const V responsibility =
          component.factor * M::exp((logit - shift) + component.exponent - max_joint) * scale_joint;
      DSMOOTH_UNROLL
      for (int c = 0; c < C; ++c) grad_x[c] += responsibility * component.d_x[c];
      if (args.grad_params.data == nullptr) continue;
      set(k, responsibility - M::exp(logit - max_logit) * scale_logit);
      DSMOOTH_UNROLL
      for (int c = 0; c < C; ++c) {
        set(channel.mean(c, k), responsibility * component.d_mean[c]);
        set(channel.log_scale(c, k), responsibility * component.d_log_scale[c]);
        if constexpr (C == 3)
          set(channel.coefficient(c, k), responsibility * component.d_coefficient[c]);
      }
    }
    const bool has_atoms = kMayHaveAtoms && args.n_atoms > 0;
    if (has_atoms && args.grad_params.data != nullptr) {
      for (int64_t j = args.n_mix; j < args.n_mix + args.n_atoms; ++j) {
        prefetch(args.params, at, j);
        prefetch(args.grad_params, at, j);
        set(j, V{} - M::exp(M::load(args.params.at(at, j)) - max_logit) * scale_logit);
      }
      const AtomHere<M> here(x[0]);
      const V logit = here.logit(args.params, at, args.n_mix);
      // A select, so that the weight's product fuses with the difference, as in the loop.
      const V responsibility =
          M::select(logit > -kInfinity, M::exp((logit - shift) - max_joint) * scale_joint, V{});
      const V gradient = responsibility - M::exp(logit - max_logit) * scale_logit;
      here.store(gradient, args.grad_params, at, args.n_mix);
    }
    if (args.grad_x.data == nullptr) return;
    DSMOOTH_UNROLL
    for (int c = 0; c < C; ++c) M::store(grad_x[c], args.grad_x.at(at, c));
  }
};

// Forward or backward of one vector of pixels.
template <class T>
using RunVector = void (*)(const LogisticMixtureArgs<T>& args, Position at,
                           typename VectorMath<T>::V* scratch);

// Copies a vector at the end of a row, or of columns that are not adjacent, to a small buffer as a
// full vector of adjacent columns. So every pixel is computed by the same instructions.
template <class T>
void run_gathered(RunVector<T> run, bool backward, const LogisticMixtureArgs<T>& args, Position at,
                  int count, T* scratch) {
  constexpr int kLanes = VectorMath<T>::kLanes;
  const int64_t colours = args.channels;
  const int64_t n_params = args.n_mix * (colours == 1 ? 3 : 10) + args.n_atoms;
  LogisticMixtureArgs<T> local = args;
  const auto each = [&](const auto& f) {
    const auto visit = [&](const auto& planes, auto& copy, int64_t channels, bool is_read) {
      if (planes.data != nullptr) f(planes, copy, channels, is_read);
    };
    visit(args.x, local.x, colours, true);
    visit(args.params, local.params, n_params, true);
    visit(args.grad, local.grad, 1, true);
    visit(args.state, local.state, kStateChannels, backward);
    visit(args.log_prob, local.log_prob, 1, false);
    visit(args.grad_x, local.grad_x, colours, false);
    visit(args.grad_params, local.grad_params, n_params, false);
  };
  T* free = scratch + 3 * args.n_mix * kLanes;  // of the vector itself
  each([&](const auto& planes, auto& copy, int64_t channels, bool is_read) {
    T* const memory = free;
    free += channels * kLanes;
    copy = {memory, 0, kLanes, 0, 1};
    if (!is_read) return;
    // Lanes without a pixel repeat the last pixel, so that they compute ordinary values.
    for (int lane = 0; lane < kLanes; ++lane) {
      const T* pixel = planes.at(at) + (lane < count ? lane : count - 1) * planes.stride_col;
      for (int64_t c = 0; c < channels; ++c) memory[c * kLanes + lane] = pixel[c * planes.stride_c];
    }
  });
  run(local, {0, 0, 0}, reinterpret_cast<typename VectorMath<T>::V*>(scratch));
  each([&]<class U>(const Planes<U>& planes, auto& copy, int64_t channels, bool is_read) {
    if constexpr (std::is_same_v<U, T>) {
      if (is_read) return;
      T* target = planes.at(at);
      for (int64_t c = 0; c < channels; ++c)
        for (int lane = 0; lane < count; ++lane)
          target[c * planes.stride_c + lane * planes.stride_col] = copy.data[c * kLanes + lane];
    }
  });
}

template <class T, bool kBackward>
RunVector<T> find_run(const LogisticMixtureArgs<T>& args) {
  const auto of = [&]<Likelihood kLikelihood>() -> RunVector<T> {
    using Grey = PixelVector<T, 1, kLikelihood>;
    using Colours = PixelVector<T, 3, kLikelihood>;
    if constexpr (kBackward) return args.channels == 1 ? &Grey::backward : &Colours::backward;
    return args.channels == 1 ? &Grey::forward : &Colours::forward;
  };
  switch (args.likelihood) {
    case Likelihood::kContinuous:
      return of.template operator()<Likelihood::kContinuous>();
    case Likelihood::kDiscretized:
      return of.template operator()<Likelihood::kDiscretized>();
    case Likelihood::kGaussian:
      return of.template operator()<Likelihood::kGaussian>();
  }
  return nullptr;
}

template <class T, bool kBackward>
void run_range(const LogisticMixtureArgs<T>& args, int64_t first, int64_t last, T* scratch) {
  constexpr int kLanes = VectorMath<T>::kLanes;
  const RunVector<T> run = find_run<T, kBackward>(args);
  auto* free = reinterpret_cast<typename VectorMath<T>::V*>(scratch);
  const int64_t vectors_per_row = (args.cols + kLanes - 1) / kLanes;
  const bool adjacent = args.all([](const auto& planes) { return planes.stride_col == 1; });
  for (int64_t vector = first; vector < last; ++vector) {
    const int64_t line = vector / vectors_per_row;
    const int64_t b = line / args.rows, row = line % args.rows;
    const int64_t col = vector % vectors_per_row * kLanes;
    const int64_t left = args.cols - col;
    if (left >= kLanes && adjacent) {
      run(args, {b, row, col}, free);
    } else {
      const int count = left < kLanes ? static_cast<int>(left) : kLanes;
      run_gathered<T>(run, kBackward, args, {b, row, col}, count, scratch);
    }
  }
}

// float64 is for tests, and the generic set is enough: more would take half of the compile time.
template <class T, bool kWanted>
MixtureKernel<T> kernel() {
  if constexpr (kWanted) return {VectorMath<T>::kLanes, &run_range<T, false>, &run_range<T, true>};
  return {};
}

}  // namespace

MixtureKernels mixture_kernels() { return {kernel<float, true>(), kernel<double, kIsGeneric>()}; }

}  // namespace dsmooth::DSMOOTH_ISA
