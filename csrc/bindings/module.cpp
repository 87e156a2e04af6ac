// The Python module dsmooth._C, which converts arguments and checks each tensor. It is one source
// file with headers, since pybind11's own headers take five seconds to compile.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "../common/isa.h"
#include "../common/parallel.h"
#include "../common/philox.h"
#include "../gated_resnet/gated_resnet.h"
#include "../logistic_mixture/logistic_mixture.h"
#include "borrow.h"
#include "sampler.h"

namespace dsmooth {
namespace {

void logistic_mixture(const py::object& x, const py::object& params, const py::object& state,
                      const std::string& likelihood, bool atoms, double smoothing_scale,
                      int threads, const std::string& instruction_set, const py::object& log_prob,
                      const py::object& grad, const py::object& grad_x,
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

// The caller's dict keeps the tensors alive while the GIL is released.
template <bool kBackward>
void run_gated_resnet(const std::map<std::string, py::object>& tensors, int pad_top, int pad_left,
                      uint32_t layer, int64_t first_image, uint32_t keep_from, double scale,
                      int threads, const std::string& instruction_set) {
  if (!std::isfinite(scale)) refuse("scale", "be finite", std::to_string(scale));
  check_threads(threads);
  std::map<std::string, Borrowed> operands;
  for (const auto& [name, tensor] : tensors) operands[name] = borrow(name.c_str(), tensor);
  GatedCall call = check_gated_operands(operands, kBackward, pad_top, pad_left);
  // Dropout counts the elements of all images in 64 bits. An empty batch may have any extents.
  const int64_t elements =
      call.shape.batch == 0 ? 1 : 2 * call.shape.height * call.shape.width * call.shape.filters;
  const int64_t most = std::min<int64_t>(INT32_MAX, INT64_MAX / 2 / elements);
  if (first_image < 0 || first_image > most)
    refuse("first_image", "lie in 0 .. " + std::to_string(most), std::to_string(first_image));
  const auto* seed = static_cast<const uint64_t*>(call.tensors.seed);
  call.dropout = {
      seed != nullptr, seed == nullptr ? 0 : *seed, layer, first_image, keep_from, scale};
  const py::gil_scoped_release release;
  (kBackward ? gated_resnet_backward : gated_resnet_forward)(call, threads, instruction_set);
}

template <bool kBackward>
void define_gated_resnet(py::module_& module, const char* name, const char* doc) {
  module.def(name, &run_gated_resnet<kBackward>, py::arg("tensors"), py::arg("pad_top"),
             py::arg("pad_left"), py::arg("layer"), py::arg("first_image"), py::arg("keep_from"),
             py::arg("scale"), py::arg("threads") = 1, py::arg("instruction_set") = "auto", doc);
}

std::array<uint32_t, 4> philox(const std::array<uint32_t, 4>& counter,
                               const std::array<uint32_t, 2>& key) {
  const PhiloxWords drawn =
      philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {drawn.word[0], drawn.word[1], drawn.word[2], drawn.word[3]};
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native code of dsmooth. Internal: use dsmooth's Python functions.";
  module.attr("has_openmp") = has_openmp();

  module.def("instruction_sets", &instruction_sets,
             "Names of the built instruction sets that this CPU has, the best last.");
  module.def("logistic_mixture", &logistic_mixture, py::arg("x"), py::arg("params"),
             py::arg("state"), py::arg("likelihood"), py::arg("atoms"), py::arg("smoothing_scale"),
             py::arg("threads") = 1, py::arg("instruction_set") = "auto", py::kw_only(),
             py::arg("log_prob") = py::none(), py::arg("grad") = py::none(),
             py::arg("grad_x") = py::none(), py::arg("grad_params") = py::none(),
             "Without grad, writes log_prob (B, H, W), and state (B, 4, H, W) for the backward. "
             "With grad (B, H, W), writes the gradients of the sum of grad times log_prob to "
             "grad_x and grad_params, each unless None.");
  define_gated_resnet<false>(
      module, "gated_resnet_forward",
      "Writes y and, if given, h and gates. tensors: named as in the "
      "field table in dsmooth/functional/gated_resnet.def. The others: see GatedDropout.");
  define_gated_resnet<true>(module, "gated_resnet_backward",
                            "Writes the given gradients (grad_x, ...), from grad_y, h and gates.");
  sampler::register_sampler(module);
  module.def("philox4x32_10", &philox, py::arg("counter"), py::arg("key"),
             "The 4 words of a Philox4x32-10 block.");
}

}  // namespace dsmooth
