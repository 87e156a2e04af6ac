// The gated resnet's entry points for Python: tensors by name, of which every one is checked.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>

#include "../gated_resnet/gated_resnet.h"
#include "borrow.h"

namespace dsmooth {
namespace {

// The tensors live, in the caller's map, while the interpreter is free to run something else.
template <bool kBackward>
void run_gated_resnet(const std::map<std::string, py::object>& tensors, int pad_top, int pad_left,
                      uint32_t layer, int64_t first_image, uint32_t keep_from, double scale,
                      int threads, const std::string& instruction_set) {
  if (!std::isfinite(scale)) refuse("scale", "be finite", std::to_string(scale));
  check_threads(threads);
  std::map<std::string, Borrowed> given;
  for (const auto& [name, tensor] : tensors) given[name] = borrow(name.c_str(), tensor);
  GatedCall call = check_gated_operands(given, kBackward, pad_top, pad_left);
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

void register_gated_resnet(py::module_& module) {
  define_gated_resnet<false>(
      module, "gated_resnet_forward",
      "Writes y and, where they are given, h and gates. tensors: by the names of the "
      "field table in dsmooth/functional/gated_resnet.def. The others: see GatedDropout.");
  define_gated_resnet<true>(
      module, "gated_resnet_backward",
      "Writes the gradients (grad_x, ...) by the tensors given, from grad_y, h and gates.");
}

}  // namespace
}  // namespace dsmooth
