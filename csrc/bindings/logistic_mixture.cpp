// The loss's entry points for Python, on CPU tensors.
#include "../logistic_mixture/logistic_mixture.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings.h"

namespace dsmooth {
namespace {

namespace py = pybind11;

// Calls f with a zero of the tensor's type.
template <class F>
void with_type(const char* name, const Borrowed& tensor, const F& f) {
  if (!tensor.given) refuse(name, "be a tensor", "None");
  if (tensor.type == kFloat32Type) return f(0.0f);
  if (tensor.type == kFloat64Type) return f(0.0);
  refuse(name, "be float32 or float64", to_string(tensor.type));
}

void run(const MixtureTensors& tensors, const MixtureSettings& settings, bool backward, int threads,
         const std::string& instruction_set) {
  check_threads(threads);
  with_type("x", tensors.x, [&](auto zero) {
    const auto args = check_mixture_operands<decltype(zero)>(tensors, settings, backward);
    if (args.batch == 0 || args.rows == 0 || args.cols == 0) return;
    const py::gil_scoped_release release;
    logistic_mixture_cpu(args, backward, threads, instruction_set);
  });
}

void logistic_mixture(const py::object& x, const py::object& params, const py::object& log_prob,
                      const py::object& state, const std::string& likelihood,
                      const std::vector<int64_t>& atoms, double smoothing_scale, int threads,
                      const std::string& instruction_set) {
  MixtureTensors tensors;
  tensors.x = borrow("x", x);
  tensors.params = borrow("params", params);
  tensors.log_prob = borrow("log_prob", log_prob);
  tensors.state = borrow("state", state);
  run(tensors, {likelihood, atoms, smoothing_scale}, false, threads, instruction_set);
}

void logistic_mixture_backward(const py::object& grad, const py::object& x,
                               const py::object& params, const py::object& state,
                               const py::object& grad_x, const py::object& grad_params,
                               const std::string& likelihood, const std::vector<int64_t>& atoms,
                               double smoothing_scale, int threads,
                               const std::string& instruction_set) {
  MixtureTensors tensors;
  tensors.grad = borrow("grad", grad);
  tensors.x = borrow("x", x);
  tensors.params = borrow("params", params);
  tensors.state = borrow("state", state);
  tensors.grad_x = borrow("grad_x", grad_x);
  tensors.grad_params = borrow("grad_params", grad_params);
  run(tensors, {likelihood, atoms, smoothing_scale}, true, threads, instruction_set);
}

void elementary(const py::object& input, const py::object& exp, const py::object& expm1,
                const py::object& log, const std::string& instruction_set) {
  const Borrowed in = borrow("input", input);
  const Borrowed outs[] = {borrow("exp", exp), borrow("expm1", expm1), borrow("log", log)};
  with_type("input", in, [&](auto zero) {
    using T = decltype(zero);
    const auto from = contiguous_view<const T, 1>("input", in, {kAny});
    const auto to = [&](const char* name, const Borrowed& out) {
      return contiguous_view<T, 1>(name, out, from.shape).data;
    };
    T* const results[] = {to("exp", outs[0]), to("expm1", outs[1]), to("log", outs[2])};
    const Lent lent[] = {{"input", &in, false},
                         {"exp", &outs[0], true},
                         {"expm1", &outs[1], true},
                         {"log", &outs[2], true}};
    check_apart(lent);
    find_mixture_kernels(instruction_set)
        .of<T>()
        .elementary(from.data, results[0], results[1], results[2], from.shape[0]);
  });
}

}  // namespace

void register_logistic_mixture(py::module_& module) {
  module.def("logistic_mixture", &logistic_mixture, py::arg("x"), py::arg("params"),
             py::arg("log_prob"), py::arg("state"), py::arg("likelihood"), py::arg("atoms"),
             py::arg("smoothing_scale"), py::arg("threads") = 1,
             py::arg("instruction_set") = "auto",
             "Writes log_prob (B, H, W), and state (B, 4, H, W) for the backward.");
  module.def("logistic_mixture_backward", &logistic_mixture_backward, py::arg("grad"), py::arg("x"),
             py::arg("params"), py::arg("state"), py::arg("grad_x"), py::arg("grad_params"),
             py::arg("likelihood"), py::arg("atoms"), py::arg("smoothing_scale"),
             py::arg("threads") = 1, py::arg("instruction_set") = "auto",
             "Writes the gradients by x and params, each unless None, of the sum of grad (B, H, W) "
             "times log_prob.");
  module.def("elementary_functions", &elementary, py::arg("input"), py::arg("exp"),
             py::arg("expm1"), py::arg("log"), py::arg("instruction_set"),
             "Writes the three functions of the input, all (N,), as the loss computes them.");
}

}  // namespace dsmooth
