// The loss over many pixels with the vectors of one instruction set. Compiled once per set, each
// time with its own DSMOOTH_ISA; see vector_math.h for what this forbids.
#include "logistic_mixture_cpu.h"

#include "vector_math.h"

namespace dsmooth::DSMOOTH_ISA {
namespace {

// A block's vectors per component, between the pass that evaluates and the one that weighs.
constexpr int kScratchPerComponent = 15;

template <class T, int C, bool kDiscretized>
struct Block {
  using M = VectorMath<T>;
  using V = typename M::V;

  struct Evaluated {
    V logit, joint;
    Component<V, C> component;
  };
  static_assert(sizeof(Evaluated) <= kScratchPerComponent * sizeof(V));

  DSMOOTH_INLINE static ComponentInput<M, C> load_component(const Planes<const T>& planes,
                                                            const T* source, Channels<C> channel,
                                                            int64_t k, int count) {
    ComponentInput<M, C> in;
    const auto load = [&](int64_t index) {
      return M::load(source + index * planes.stride_c, planes.stride_col, count);
    };
    for (int c = 0; c < C; ++c) {
      in.mean[c] = load(channel.mean(c, k));
      in.log_scale[c] = load(channel.log_scale(c, k));
      if constexpr (C == 3) in.coefficient[c] = load(channel.coefficient(c, k));
    }
    return in;
  }

  // kFull: all lanes hold pixels, columns are adjacent.
  template <bool kFull>
  static void run(const LogisticMixtureArgs<T>& args, int64_t b, int64_t row, int64_t col,
                  int count, Evaluated* scratch) {
    if constexpr (kFull) count = M::kLanes;
    const Channels<C> channel{args.n_mix};
    const auto& planes = args.params;
    const T* params_ptr = planes.at(b, row, col);
    const T* x_ptr = args.x.at(b, row, col);
    V x[C];
    for (int c = 0; c < C; ++c) {
      x[c] = M::load(x_ptr + c * args.x.stride_c, args.x.stride_col, count);
    }

    V max_logit{}, max_joint{};
    for (int64_t k = 0; k < args.n_mix; ++k) {
      Evaluated& term = scratch[k];
      const auto in = load_component(planes, params_ptr, channel, k, count);
      term.logit = M::load(params_ptr + k * planes.stride_c, planes.stride_col, count);
      evaluate_component<M, C, kDiscretized>(x, in, term.component);
      term.joint = term.logit + term.component.log_p;
      max_logit = k == 0 ? term.logit : M::select(term.logit > max_logit, term.logit, max_logit);
      max_joint = k == 0 ? term.joint : M::select(term.joint > max_joint, term.joint, max_joint);
    }
    V sum_logit{}, sum_joint{};
    for (int64_t k = 0; k < args.n_mix; ++k) {
      Evaluated& term = scratch[k];
      term.logit = M::exp(term.logit - max_logit);
      term.joint = M::exp(term.joint - max_joint);
      sum_logit += term.logit;
      sum_joint += term.joint;
    }
    const V log_prob = (max_joint - max_logit) + M::log(sum_joint) - M::log(sum_logit);
    M::store(log_prob, args.log_prob.at(b, row, col), args.log_prob.stride_col, count);
    if (!args.wants_gradient()) return;

    const V inverse_logit = 1 / sum_logit, inverse_joint = 1 / sum_joint;
    T* grad_ptr = args.grad_params.at(b, row, col);
    const auto store = [&](int64_t index, V value) {
      M::store(value, grad_ptr + index * args.grad_params.stride_c, args.grad_params.stride_col,
               count);
    };
    V grad_x[C] = {};
    for (int64_t k = 0; k < args.n_mix; ++k) {
      const Evaluated& term = scratch[k];
      const V responsibility = term.joint * inverse_joint;
      store(k, responsibility - term.logit * inverse_logit);
      for (int c = 0; c < C; ++c) {
        store(channel.mean(c, k), responsibility * term.component.d_mean[c]);
        store(channel.log_scale(c, k), responsibility * term.component.d_log_scale[c]);
        if constexpr (C == 3) {
          store(channel.coefficient(c, k), responsibility * term.component.d_coefficient[c]);
        }
        grad_x[c] += responsibility * term.component.d_x[c];
      }
    }
    T* grad_x_ptr = args.grad_x.at(b, row, col);
    for (int c = 0; c < C; ++c) {
      M::store(grad_x[c], grad_x_ptr + c * args.grad_x.stride_c, args.grad_x.stride_col, count);
    }
  }
};

template <class T, int C, bool kDiscretized>
void run_blocks(const LogisticMixtureArgs<T>& args, int64_t first, int64_t last, T* scratch) {
  using B = Block<T, C, kDiscretized>;
  constexpr int kLanes = VectorMath<T>::kLanes;
  const int64_t blocks_per_row = (args.cols + kLanes - 1) / kLanes;
  auto* evaluated = reinterpret_cast<typename B::Evaluated*>(scratch);
  const bool adjacent = args.x.stride_col == 1 && args.params.stride_col == 1;
  for (int64_t block = first; block < last; ++block) {
    const int64_t line = block / blocks_per_row;
    const int64_t col = block % blocks_per_row * kLanes;
    const int64_t b = line / args.rows, row = line % args.rows;
    const int64_t left = args.cols - col;
    if (left >= kLanes && adjacent) {
      B::template run<true>(args, b, row, col, kLanes, evaluated);
    } else {
      const int count = left < kLanes ? static_cast<int>(left) : kLanes;
      B::template run<false>(args, b, row, col, count, evaluated);
    }
  }
}

template <class T>
void run_range(const LogisticMixtureArgs<T>& args, int64_t first, int64_t last, T* scratch) {
  if (args.channels == 1) {
    (args.discretized ? run_blocks<T, 1, true> : run_blocks<T, 1, false>)(args, first, last,
                                                                          scratch);
  } else {
    (args.discretized ? run_blocks<T, 3, true> : run_blocks<T, 3, false>)(args, first, last,
                                                                          scratch);
  }
}

template <class T>
void elementary(const T* input, T* exp, T* expm1, T* log, int64_t count) {
  using M = VectorMath<T>;
  for (int64_t i = 0; i < count; i += M::kLanes) {
    const int lanes = count - i < M::kLanes ? static_cast<int>(count - i) : M::kLanes;
    const auto v = M::load(input + i, 1, lanes);
    const auto pair = M::exp_pair(v);
    M::store(pair.e, exp + i, 1, lanes);
    M::store(pair.em1, expm1 + i, 1, lanes);
    M::store(M::log(v), log + i, 1, lanes);
  }
}

}  // namespace

LogisticMixtureKernels kernels() {
  LogisticMixtureKernels result;
  result.float32 = {VectorMath<float>::kLanes, kScratchPerComponent, &run_range<float>};
  result.float64 = {VectorMath<double>::kLanes, kScratchPerComponent, &run_range<double>};
  result.elementary_float32 = &elementary<float>;
  result.elementary_float64 = &elementary<double>;
  return result;
}

}  // namespace dsmooth::DSMOOTH_ISA
