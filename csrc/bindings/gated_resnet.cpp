// The gated block's entry points for Python: tensors by name, of which every one is checked.
#include "gated_resnet.h"

#include <pybind11/stl.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "../gated_resnet/gated_resnet.h"
#include "../gated_resnet/operands.h"
#include "borrow.h"

namespace dsmooth {
namespace {

namespace py = pybind11;

// The names of a direction as Python's strings, made once.
const std::vector<PyObject*>& keys_of(GatedDirection direction) {
  const auto make = [](GatedDirection d) {
    std::vector<PyObject*> keys;
    for (const GatedName& name : gated_names(d)) {
      PyObject* key = PyUnicode_InternFromString(name.name);
      if (key == nullptr) throw py::error_already_set();
      keys.push_back(key);
    }
    return keys;
  };
  static const std::vector<PyObject*> forward = make(GatedDirection::kForward);
  static const std::vector<PyObject*> backward = make(GatedDirection::kBackward);
  return direction == GatedDirection::kForward ? forward : backward;
}

void refuse_unknown_names(const py::dict& tensors, GatedDirection direction) {
  std::string known;
  py::set rest;
  for (const auto& item : tensors) rest.add(item.first);
  for (PyObject* key : keys_of(direction)) {
    known += (known.empty() ? "" : ", ") + std::string(py::str(py::handle(key)));
    if (PySet_Discard(rest.ptr(), key) < 0) throw py::error_already_set();
  }
  throw std::invalid_argument("tensors must be among " + known + ", got " +
                              std::string(py::str(py::list(rest))));
}

// `owners` keeps the tensors alive while the interpreter is free to run something else.
GatedCall read_call(const py::dict& tensors, GatedDirection direction,
                    std::vector<py::object>& owners) {
  GatedGiven given;
  const std::vector<GatedName>& names = gated_names(direction);
  const std::vector<PyObject*>& keys = keys_of(direction);
  owners.reserve(names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    PyObject* object = PyDict_GetItemWithError(tensors.ptr(), keys[i]);
    if (object == nullptr) {
      if (PyErr_Occurred() != nullptr) throw py::error_already_set();
      continue;
    }
    owners.push_back(py::reinterpret_borrow<py::object>(object));
    given.at(names[i]) = borrow(names[i].name, object);
  }
  if (owners.size() != tensors.size()) refuse_unknown_names(tensors, direction);
  return check_gated_operands(given, direction);
}

template <GatedDirection kDirection>
void run(const py::dict& tensors, int pad_top, int pad_left, int64_t layer, int64_t first_image,
         uint32_t keep_from, double scale, int threads, const std::string& instruction_set) {
  if (!std::isfinite(scale)) {
    throw std::invalid_argument("scale must be finite, got " + std::to_string(scale));
  }
  if (first_image < 0 || first_image > INT32_MAX) {
    throw std::invalid_argument("first_image must lie in 0 .. 2**31 - 1, got " +
                                std::to_string(first_image));
  }
  std::vector<py::object> owners;
  GatedCall call = read_call(tensors, kDirection, owners);
  call.shape.pad_top = pad_top;
  call.shape.pad_left = pad_left;
  const auto* seed = static_cast<const uint64_t*>(call.tensors.seed);
  call.dropout.active = seed != nullptr;
  call.dropout.seed = seed == nullptr ? 0 : *seed;
  call.dropout.layer = static_cast<uint32_t>(layer);
  call.dropout.first_image = first_image;
  call.dropout.keep_from = keep_from;
  call.dropout.scale = scale;
  const py::gil_scoped_release release;
  (kDirection == GatedDirection::kForward ? gated_resnet_forward : gated_resnet_backward)(
      call, threads, instruction_set);
}

template <GatedDirection kDirection>
void define(py::module_& module, const char* name, const char* doc) {
  module.def(name, &run<kDirection>, py::arg("tensors"), py::arg("pad_top"), py::arg("pad_left"),
             py::arg("layer"), py::arg("first_image"), py::arg("keep_from"), py::arg("scale"),
             py::arg("threads") = 1, py::arg("instruction_set") = "auto", doc);
}

}  // namespace

void register_gated_resnet(py::module_& module) {
  define<GatedDirection::kForward>(
      module, "gated_resnet_forward",
      "Writes y and, where they are given, h and gates. tensors: by the names of the field table "
      "in dsmooth/functional/gated_resnet.def. pad_top, pad_left: rows and columns of zeros before "
      "the image. keep_from, scale: dropout keeps an element whose word >> 9 is at least the "
      "first, times the second; none without a seed. layer, first_image: where in the network and "
      "in a larger batch, for the counters of dropout.");
  define<GatedDirection::kBackward>(module, "gated_resnet_backward",
                                    "Writes the gradients (grad_x, ...) of what is given, from "
                                    "grad_y and what the forward saved; "
                                    "arguments as for the forward.");
}

}  // namespace dsmooth
