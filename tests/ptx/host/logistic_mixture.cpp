// The loss on CUDA, called as the bindings do, on contiguous tensors.
#include <cstdint>
#include <cstring>

#include "../../../csrc/logistic_mixture/cuda.h"

namespace {

using namespace dsmooth;

struct Call {
  const void *x, *params, *grad;
  void *log_prob, *state, *grad_x, *grad_params;
  int64_t batch, rows, cols, n_mix, channels, n_params, likelihood, n_atoms;
  uint8_t atoms[8];
  double smoothing_scale;
};

template <class T>
void run(const Call& c, bool backward) {
  const auto planes = [&](auto* data, int64_t channels) {
    return Planes<std::remove_pointer_t<decltype(data)>>{data, channels * c.rows * c.cols,
                                                         c.rows * c.cols, c.cols, 1};
  };
  LogisticMixtureArgs<T> args;
  args.x = planes(static_cast<const T*>(c.x), c.channels);
  args.params = planes(static_cast<const T*>(c.params), c.n_params);
  args.state = planes(static_cast<T*>(c.state), kStateChannels);
  if (backward) {
    args.grad = planes(static_cast<const T*>(c.grad), 1);
    args.grad_x = planes(static_cast<T*>(c.grad_x), c.channels);
    args.grad_params = planes(static_cast<T*>(c.grad_params), c.n_params);
  } else {
    args.log_prob = planes(static_cast<T*>(c.log_prob), 1);
  }
  args.batch = c.batch;
  args.rows = c.rows;
  args.cols = c.cols;
  args.n_mix = c.n_mix;
  args.channels = static_cast<int>(c.channels);
  args.likelihood = static_cast<Likelihood>(c.likelihood);
  args.smoothing = make_smoothing(c.smoothing_scale);
  args.n_atoms = c.n_atoms;
  std::memcpy(args.atoms, c.atoms, static_cast<size_t>(c.n_atoms));
  logistic_mixture_cuda(args, backward, 0, nullptr);
}

}  // namespace

extern "C" void logistic_mixture(const Call* call, int float64, int backward) {
  float64 ? run<double>(*call, backward != 0) : run<float>(*call, backward != 0);
}
