// The loss's entry point for Python, on CPU tensors.
#pragma once

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../logistic_mixture/logistic_mixture.h"
#include "borrow.h"

namespace dsmooth {
namespace {

void logistic_mixture(const py::object& x, const py::object& params, const py::object& state,
                      const std::string& likelihood, const std::vector<int64_t>& atoms,
                      double smoothing_scale, int threads, const std::string& instruction_set,
                      const py::object& log_prob, const py::object& grad, const py::object& grad_x,
                      const py::object& grad_params) {
  const MixtureTensors tensors{borrow("x", x),
                               borrow("params", params),
                               borrow("log_prob", log_prob),
                               borrow("state", state),
                               borrow("grad", grad),
                               borrow("grad_x", grad_x),
                               borrow("grad_params", grad_params)};
  const py::gil_scoped_release release;
  run_logistic_mixture(tensors, {likelihood, atoms, smoothing_scale}, threads, instruction_set);
}

void register_logistic_mixture(py::module_& module) {
  module.def("logistic_mixture", &logistic_mixture, py::arg("x"), py::arg("params"),
             py::arg("state"), py::arg("likelihood"), py::arg("atoms"), py::arg("smoothing_scale"),
             py::arg("threads") = 1, py::arg("instruction_set") = "auto", py::kw_only(),
             py::arg("log_prob") = py::none(), py::arg("grad") = py::none(),
             py::arg("grad_x") = py::none(), py::arg("grad_params") = py::none(),
             "Without grad, writes log_prob (B, H, W), and state (B, 4, H, W) for the backward. "
             "With grad (B, H, W), writes the gradients by x and params, each unless None, of the "
             "sum of grad times log_prob.");
}

}  // namespace
}  // namespace dsmooth
