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

void forward(const py::object& x, const py::object& params, const py::object& log_prob,
             const py::object& state, const std::string& likelihood,
             const std::vector<int64_t>& atoms, double smoothing_scale, int threads,
             const std::string& instruction_set) {
  MixtureTensors tensors;
  tensors.x = borrow("x", x);
  tensors.params = borrow("params", params);
  tensors.log_prob = borrow("log_prob", log_prob);
  tensors.state = borrow("state", state);
  const py::gil_scoped_release release;
  run_logistic_mixture(tensors, {likelihood, atoms, smoothing_scale}, false, threads,
                       instruction_set);
}

void backward(const py::object& grad, const py::object& x, const py::object& params,
              const py::object& state, const py::object& grad_x, const py::object& grad_params,
              const std::string& likelihood, const std::vector<int64_t>& atoms,
              double smoothing_scale, int threads, const std::string& instruction_set) {
  MixtureTensors tensors;
  tensors.grad = borrow("grad", grad);
  tensors.x = borrow("x", x);
  tensors.params = borrow("params", params);
  tensors.state = borrow("state", state);
  tensors.grad_x = borrow("grad_x", grad_x);
  tensors.grad_params = borrow("grad_params", grad_params);
  const py::gil_scoped_release release;
  run_logistic_mixture(tensors, {likelihood, atoms, smoothing_scale}, true, threads,
                       instruction_set);
}

void elementary(const py::object& input, const py::object& exp, const py::object& expm1,
                const py::object& log, const std::string& instruction_set) {
  run_elementary_functions(borrow("input", input), borrow("exp", exp), borrow("expm1", expm1),
                           borrow("log", log), instruction_set);
}

}  // namespace

void register_logistic_mixture(py::module_& module) {
  module.def("logistic_mixture", &forward, py::arg("x"), py::arg("params"), py::arg("log_prob"),
             py::arg("state"), py::arg("likelihood"), py::arg("atoms"), py::arg("smoothing_scale"),
             py::arg("threads") = 1, py::arg("instruction_set") = "auto",
             "Writes log_prob (B, H, W), and state (B, 4, H, W) for the backward.");
  module.def("logistic_mixture_backward", &backward, py::arg("grad"), py::arg("x"),
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
