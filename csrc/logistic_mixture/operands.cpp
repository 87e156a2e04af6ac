// The check of the loss's tensors against the extents of x.
#include <stdexcept>
#include <string>

#include "logistic_mixture.h"

namespace dsmooth {
namespace {

template <class T>
Planes<T> planes(const View<T, 4>& view) {
  return {view.data, view.stride[0], view.stride[1], view.stride[2], view.stride[3]};
}

template <class T>
void set_mixture(LogisticMixtureArgs<T>& args, const MixtureSettings& mixture) {
  args.likelihood = likelihood_named(mixture.likelihood);
  check_mixture(args.likelihood, mixture.atoms, mixture.smoothing_scale);
  if (args.likelihood == Likelihood::kGaussian) {
    args.smoothing = make_smoothing(mixture.smoothing_scale);
  }
  for (const int64_t level : mixture.atoms) {
    args.atoms[args.n_atoms++] = static_cast<uint8_t>(level);
  }
}

// K of params with P channels.
int64_t count_components(int64_t n_params, int64_t channels, int64_t n_atoms) {
  const int64_t per_component = channels == 1 ? 3 : 10;
  const int64_t rest = n_params - n_atoms;
  if (rest <= 0 || rest % per_component != 0) {
    const std::string atoms =
        n_atoms == 0 ? "" : ", and " + std::to_string(n_atoms) + " for the atoms";
    throw std::invalid_argument("params must have a multiple of " + std::to_string(per_component) +
                                " channels" + atoms + ", got " + std::to_string(n_params));
  }
  if (rest / per_component > kMaxComponents) {
    refuse("params", "be of at most " + std::to_string(kMaxComponents) + " components",
           std::to_string(rest / per_component));
  }
  return rest / per_component;
}

// Throws unless what the forward, or the backward, writes lies apart from all else.
void check_memory(const MixtureTensors& t, bool backward) {
  const Lent lent[] = {{"x", &t.x, false},
                       {"params", &t.params, false},
                       {"grad", &t.grad, false},
                       {"log_prob", &t.log_prob, true},
                       {"state", &t.state, !backward},
                       {"grad_x", &t.grad_x, true},
                       {"grad_params", &t.grad_params, true}};
  check_apart(lent);
}

template <class T>
Planes<T> per_pixel(const View<T, 3>& view) {
  return {view.data, view.stride[0], 0, view.stride[1], view.stride[2]};
}

// If rows follow each other in every tensor, an image is one long row: no remainder per row. An
// empty tensor may have extents whose products fit no int64.
template <class T>
void collapse_rows(LogisticMixtureArgs<T>& args) {
  if (args.batch == 0 || args.rows == 0 || args.cols == 0) return;
  const auto follows = [&](const auto& p) {
    return p.data == nullptr || p.stride_row == args.cols * p.stride_col;
  };
  if (follows(args.x) && follows(args.params) && follows(args.state) && follows(args.log_prob) &&
      follows(args.grad) && follows(args.grad_x) && follows(args.grad_params)) {
    args.cols *= args.rows;
    args.rows = 1;
  }
}

}  // namespace

template <class T>
LogisticMixtureArgs<T> check_mixture_operands(const MixtureTensors& t,
                                              const MixtureSettings& mixture, bool backward) {
  const View<const T, 4> x("x", t.x, {kAny, kAny, kAny, kAny});
  const auto [batch, channels, rows, cols] = x.shape;
  if (channels != 1 && channels != 3) {
    throw std::invalid_argument("x must have 1 or 3 channels, got " + std::to_string(channels));
  }
  const View<const T, 4> params("params", t.params, {batch, kAny, rows, cols});
  LogisticMixtureArgs<T> args;
  set_mixture(args, mixture);
  args.x = planes(x);
  args.params = planes(params);
  args.state = planes(View<T, 4>("state", t.state, {batch, kStateChannels, rows, cols}));
  args.batch = batch;
  args.rows = rows;
  args.cols = cols;
  args.n_mix = count_components(params.shape[1], channels, args.n_atoms);
  args.channels = static_cast<int>(channels);
  if (backward) {
    args.grad = per_pixel(View<const T, 3>("grad", t.grad, {batch, rows, cols}));
  } else {
    args.log_prob = per_pixel(View<T, 3>("log_prob", t.log_prob, {batch, rows, cols}));
  }
  if (t.grad_x.given) args.grad_x = planes(View<T, 4>("grad_x", t.grad_x, x.shape));
  if (t.grad_params.given) {
    args.grad_params = planes(View<T, 4>("grad_params", t.grad_params, params.shape));
  }
  check_memory(t, backward);
  collapse_rows(args);
  return args;
}

template LogisticMixtureArgs<float> check_mixture_operands<float>(const MixtureTensors&,
                                                                  const MixtureSettings&, bool);
template LogisticMixtureArgs<double> check_mixture_operands<double>(const MixtureTensors&,
                                                                    const MixtureSettings&, bool);

}  // namespace dsmooth
