#include "operands.h"

#include <array>
#include <cmath>
#include <stdexcept>
#include <string>

#include "../common/tensor_view.h"

namespace dsmooth {
namespace {

template <class T>
Planes<T> planes(const View<T, 4>& view) {
  return {view.data, view.stride[0], view.stride[1], view.stride[2], view.stride[3]};
}

Likelihood parse_likelihood(const std::string& name) {
  if (name == "continuous") return Likelihood::kContinuous;
  if (name == "discretized") return Likelihood::kDiscretized;
  if (name == "gaussian") return Likelihood::kGaussian;
  throw std::invalid_argument("likelihood must be one of continuous, discretized, gaussian, got " +
                              name);
}

template <class T>
void set_mixture(LogisticMixtureArgs<T>& args, const MixtureSettings& mixture) {
  args.likelihood = parse_likelihood(mixture.likelihood);
  if (args.likelihood == Likelihood::kGaussian) {
    if (!(mixture.smoothing_scale > 0 && std::isfinite(mixture.smoothing_scale))) {
      throw std::invalid_argument("smoothing_scale must be positive and finite, got " +
                                  std::to_string(mixture.smoothing_scale));
    }
    args.smoothing = make_smoothing(mixture.smoothing_scale);
  }
  if (!mixture.atoms.empty() && args.likelihood != Likelihood::kDiscretized) {
    throw std::invalid_argument("atoms need likelihood discretized, got " + mixture.likelihood);
  }
  std::array<bool, kMaxAtoms> seen{};
  for (const int64_t level : mixture.atoms) {
    if (level < 0 || level >= kMaxAtoms || seen[static_cast<size_t>(level)]) {
      throw std::invalid_argument(
          "atoms must be distinct byte levels 0 .. 255, got " +
          to_string(mixture.atoms.data(), static_cast<int>(mixture.atoms.size())));
    }
    seen[static_cast<size_t>(level)] = true;
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

// Where rows follow each other in every tensor, an image is one long row: no remainder per row.
template <class T>
void collapse_rows(LogisticMixtureArgs<T>& args) {
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
  const Place place = t.x.place;
  const View<const T, 4> x("x", t.x, {kAny, kAny, kAny, kAny}, place);
  const auto [batch, channels, rows, cols] = x.shape;
  if (channels != 1 && channels != 3) {
    throw std::invalid_argument("x must have 1 or 3 channels, got " + std::to_string(channels));
  }
  const View<const T, 4> params("params", t.params, {batch, kAny, rows, cols}, place);
  LogisticMixtureArgs<T> args;
  set_mixture(args, mixture);
  args.x = planes(x);
  args.params = planes(params);
  args.state = planes(View<T, 4>("state", t.state, {batch, kStateChannels, rows, cols}, place));
  args.batch = batch;
  args.rows = rows;
  args.cols = cols;
  args.n_mix = count_components(params.shape[1], channels, args.n_atoms);
  args.channels = static_cast<int>(channels);
  if (backward) {
    args.grad = per_pixel(View<const T, 3>("grad", t.grad, {batch, rows, cols}, place));
  } else {
    args.log_prob = per_pixel(View<T, 3>("log_prob", t.log_prob, {batch, rows, cols}, place));
  }
  if (t.grad_x.given) args.grad_x = planes(View<T, 4>("grad_x", t.grad_x, x.shape, place));
  if (t.grad_params.given) {
    args.grad_params = planes(View<T, 4>("grad_params", t.grad_params, params.shape, place));
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
