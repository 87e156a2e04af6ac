// The Python module dsmooth._C; more of its functions are defined in bindings/ and sampler/.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/gated_resnet.h"
#include "logistic_mixture_cpu.h"
#include "philox.h"
#include "sampler/bindings_sampler.h"
#include "tensor_view.h"
#if defined(DSMOOTH_HAS_CUDA)
#include "logistic_mixture_cuda.h"
#endif

namespace py = pybind11;

namespace dsmooth {
namespace {

std::array<uint32_t, 4> philox(const std::array<uint32_t, 4>& counter,
                               const std::array<uint32_t, 2>& key) {
  const PhiloxBlock block =
      philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

Tensor make_tensor(std::string name, uintptr_t data, const std::string& dtype,
                   const std::string& device, int device_index, std::vector<int64_t> shape,
                   std::vector<int64_t> strides, const py::object& /*owner*/) {
  Tensor tensor;
  if (dtype == "float32") {
    tensor.dtype = Dtype::kFloat32;
  } else if (dtype == "float64") {
    tensor.dtype = Dtype::kFloat64;
  } else {
    throw std::invalid_argument(name + " must be float32 or float64, got " + dtype);
  }
  if (device != "cpu" && device != "cuda") {
    throw std::invalid_argument(name + " must be on cpu or cuda, got " + device);
  }
  tensor.device = {device == "cpu" ? DeviceType::kCpu : DeviceType::kCuda, device_index};
  tensor.name = std::move(name);
  tensor.data = reinterpret_cast<void*>(data);
  tensor.shape = std::move(shape);
  tensor.strides = std::move(strides);
  return tensor;
}

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

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native code of dsmooth. Internal: use dsmooth's Python functions.";
#if defined(DSMOOTH_HAS_CUDA)
  module.attr("has_cuda") = true;
#else
  module.attr("has_cuda") = false;
#endif

  py::class_<Tensor>(module, "Tensor", "Borrowed memory, and a reference to its owner.")
      .def(py::init(&make_tensor), py::arg("name"), py::arg("data"), py::arg("dtype"),
           py::arg("device"), py::arg("device_index"), py::arg("shape"), py::arg("strides"),
           py::arg("owner"), py::keep_alive<1, 9>());

  module.def("instruction_sets", &instruction_sets,
             "Names of the instruction sets built that this CPU has, the best last.");
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
  register_sampler(module);
  register_gated_resnet(module);
  module.def("philox4x32_10", &philox, py::arg("counter"), py::arg("key"),
             "The 4 words of a Philox4x32-10 block.");
  module.def("philox_uniform", &philox_uniform, py::arg("word"),
             "Uniform in (0, 1) of one word, exact in float32.");
}

}  // namespace dsmooth
