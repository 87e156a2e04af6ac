// The loss's entry points for Python: every tensor is checked against the others' extents.
#include "logistic_mixture.h"

#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "../common/tensor_view.h"
#include "../logistic_mixture/cpu.h"
#if defined(DSMOOTH_HAS_CUDA)
#include "../logistic_mixture/cuda.h"
#endif

namespace dsmooth {
namespace {

namespace py = pybind11;

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

// What the pixels' distribution is, apart from its parameters.
struct Mixture {
  std::string likelihood;
  std::vector<int64_t> atoms;
  double smoothing_scale;
};

template <class T>
void set_mixture(LogisticMixtureArgs<T>& args, const Mixture& mixture) {
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
      throw std::invalid_argument("atoms must be distinct byte levels 0 .. 255, got " +
                                  to_string(mixture.atoms));
    }
    seen[static_cast<size_t>(level)] = true;
    args.atoms[args.n_atoms++] = static_cast<uint8_t>(level);
  }
}

// K of params with P channels.
int64_t count_components(const std::string& name, int64_t n_params, int64_t channels,
                         int64_t n_atoms) {
  const int64_t per_component = channels == 1 ? 3 : 10;
  const int64_t rest = n_params - n_atoms;
  if (rest <= 0 || rest % per_component != 0) {
    const std::string atoms =
        n_atoms == 0 ? "" : ", and " + std::to_string(n_atoms) + " for the atoms";
    throw std::invalid_argument(name + " must have a multiple of " + std::to_string(per_component) +
                                " channels" + atoms + ", got " + std::to_string(n_params));
  }
  return rest / per_component;
}

// The arguments that forward and backward share.
template <class T>
LogisticMixtureArgs<T> make_args(const Tensor& x, const Tensor& params, const Tensor& state,
                                 const Mixture& mixture) {
  const View<const T, 4> x_view(x, {kAny, kAny, kAny, kAny}, x.device);
  const auto [batch, channels, rows, cols] = x_view.shape;
  if (channels != 1 && channels != 3) {
    throw std::invalid_argument(x.name + " must have 1 or 3 channels, got " +
                                std::to_string(channels));
  }
  const View<const T, 4> params_view(params, {batch, kAny, rows, cols}, x.device);
  LogisticMixtureArgs<T> args;
  set_mixture(args, mixture);
  args.x = planes(x_view);
  args.params = planes(params_view);
  args.state = planes(View<T, 4>(state, {batch, kStateChannels, rows, cols}, x.device));
  args.batch = batch;
  args.rows = rows;
  args.cols = cols;
  args.n_mix = count_components(params.name, params_view.shape[1], channels, args.n_atoms);
  args.channels = static_cast<int>(channels);
  return args;
}

template <class T>
Planes<T> per_pixel(const Tensor& tensor, const LogisticMixtureArgs<std::remove_const_t<T>>& args,
                    Device device) {
  const View<T, 3> view(tensor, {args.batch, args.rows, args.cols}, device);
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

template <class T>
void run_logistic_mixture(LogisticMixtureArgs<T> args, bool backward, Device device,
                          uintptr_t stream, int threads, const std::string& instruction_set) {
  if (args.batch == 0 || args.rows == 0 || args.cols == 0) return;
  collapse_rows(args);
  const py::gil_scoped_release release;
  if (device.type == DeviceType::kCpu) {
    logistic_mixture_cpu(args, backward, threads, instruction_set);
    return;
  }
#if defined(DSMOOTH_HAS_CUDA)
  logistic_mixture_cuda(args, backward, device.index, reinterpret_cast<void*>(stream));
#else
  (void)stream;
  throw std::runtime_error("this build of the extension has no CUDA half");
#endif
}

void logistic_mixture(const Tensor& x, const Tensor& params, const Tensor& log_prob,
                      const Tensor& state, const std::string& likelihood,
                      const std::vector<int64_t>& atoms, double smoothing_scale, uintptr_t stream,
                      int threads, const std::string& instruction_set) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    auto args = make_args<T>(x, params, state, {likelihood, atoms, smoothing_scale});
    args.log_prob = per_pixel<T>(log_prob, args, x.device);
    run_logistic_mixture(args, false, x.device, stream, threads, instruction_set);
  };
  x.dtype == Dtype::kFloat32 ? run(0.0f) : run(0.0);
}

void logistic_mixture_backward(const Tensor& grad, const Tensor& x, const Tensor& params,
                               const Tensor& state, const std::optional<Tensor>& grad_x,
                               const std::optional<Tensor>& grad_params,
                               const std::string& likelihood, const std::vector<int64_t>& atoms,
                               double smoothing_scale, uintptr_t stream, int threads,
                               const std::string& instruction_set) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    auto args = make_args<T>(x, params, state, {likelihood, atoms, smoothing_scale});
    args.grad = per_pixel<const T>(grad, args, x.device);
    const int64_t n_params = params.shape[1];
    if (grad_x) {
      args.grad_x =
          planes(View<T, 4>(*grad_x, {args.batch, args.channels, args.rows, args.cols}, x.device));
    }
    if (grad_params) {
      args.grad_params =
          planes(View<T, 4>(*grad_params, {args.batch, n_params, args.rows, args.cols}, x.device));
    }
    run_logistic_mixture(args, true, x.device, stream, threads, instruction_set);
  };
  x.dtype == Dtype::kFloat32 ? run(0.0f) : run(0.0);
}

void elementary(const Tensor& input, const Tensor& exp, const Tensor& expm1, const Tensor& log,
                const std::string& instruction_set) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const View<const T, 1> in(input, {kAny}, Device{});
    const auto output = [&](const Tensor& tensor) {
      const View<T, 1> view(tensor, in.shape, Device{});
      if (view.stride[0] != 1) throw std::invalid_argument(tensor.name + " must be contiguous");
      return view.data;
    };
    if (in.stride[0] != 1) throw std::invalid_argument(input.name + " must be contiguous");
    elementary_functions(in.data, output(exp), output(expm1), output(log), in.shape[0],
                         instruction_set);
  };
  input.dtype == Dtype::kFloat32 ? run(0.0f) : run(0.0);
}

}  // namespace

void register_logistic_mixture(py::module_& module) {
  module.def("logistic_mixture", &logistic_mixture, py::arg("x"), py::arg("params"),
             py::arg("log_prob"), py::arg("state"), py::arg("likelihood"), py::arg("atoms"),
             py::arg("smoothing_scale"), py::arg("stream") = 0, py::arg("threads") = 1,
             py::arg("instruction_set") = "auto",
             "Writes log_prob (B, H, W), and state (B, 4, H, W) for the backward.");
  module.def("logistic_mixture_backward", &logistic_mixture_backward, py::arg("grad"), py::arg("x"),
             py::arg("params"), py::arg("state"), py::arg("grad_x"), py::arg("grad_params"),
             py::arg("likelihood"), py::arg("atoms"), py::arg("smoothing_scale"),
             py::arg("stream") = 0, py::arg("threads") = 1, py::arg("instruction_set") = "auto",
             "Writes the gradients by x and params, each unless None, of the sum of grad (B, H, W) "
             "times log_prob.");
  module.def("elementary_functions", &elementary, py::arg("input"), py::arg("exp"),
             py::arg("expm1"), py::arg("log"), py::arg("instruction_set"),
             "Writes the three functions of the input, all (N,), as the loss computes them.");
}

}  // namespace dsmooth
