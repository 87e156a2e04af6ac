// Borrows the memory of a torch tensor from Python without linking torch, by DLPack's C exchange
// interface, which torch.Tensor provides.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../common/tensors.h"

namespace dsmooth {
namespace {

namespace py = pybind11;

// The part of DLPack 1.x's dlpack.h that is used here (github.com/dmlc/dlpack), whose layout is
// stable.
struct DlTensor {
  void* data;
  int32_t device_type, device_index;
  int32_t n_dims;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct DlExchange {
  uint32_t major, minor;
  const DlExchange* older;
  void* allocate;
  void* managed_from_object;
  void* object_from_managed;
  int (*tensor_from_object)(void* object, DlTensor* tensor);  // sets Python's error unless 0
};

struct Torch {
  PyTypeObject* tensor_type;
  const DlExchange* exchange;
};

// The class and its interface live as long as Python.
const Torch& torch() {
  static const Torch interface = [] {
    const py::object type = py::module_::import("torch").attr("Tensor");
    const auto capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
    if (!capsule.is_none()) {
      const void* pointer = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
      if (pointer == nullptr) throw py::error_already_set();
      const auto* exchange = static_cast<const DlExchange*>(pointer);
      while (exchange != nullptr && exchange->major != 1) exchange = exchange->older;
      if (exchange != nullptr && exchange->tensor_from_object != nullptr)
        return Torch{reinterpret_cast<PyTypeObject*>(type.ptr()), exchange};
    }
    throw std::runtime_error(
        "the extension reads tensors by version 1 of DLPack's C exchange interface "
        "(torch.Tensor.__dlpack_c_exchange_api__), which this torch does not provide");
  }();
  return interface;
}

// The tensor's description; None gives an absent tensor. It is valid as long as the tensor and the
// name live and the shape does not change. Throws std::invalid_argument, naming the tensor, for any
// other object and for a tensor without plain memory: meta, sparse, or a negative view.
Borrowed borrow(const char* name, const py::object& object) {
  Borrowed borrowed{};
  borrowed.name = name;
  if (object.is_none()) return borrowed;
  if (!PyObject_TypeCheck(object.ptr(), torch().tensor_type))
    refuse(name, "be a tensor", Py_TYPE(object.ptr())->tp_name);
  DlTensor tensor{};
  if (torch().exchange->tensor_from_object(object.ptr(), &tensor) != 0) {
    const py::error_already_set error;
    const py::str device = py::str(object.attr("device"));
    refuse(name, "be a strided tensor on cpu or cuda",
           "one on " + std::string(device) + " (" + std::string(py::str(error.value())) + ")");
  }
  if (tensor.n_dims > 0 && (tensor.shape == nullptr || tensor.strides == nullptr))
    refuse(name, "be a strided tensor", "one without strides");
  if (object.attr("is_neg")().cast<bool>())
    refuse(name, "not be a negative view", "one: call resolve_neg() on it");
  return {name,
          true,
          tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset,
          {tensor.code, tensor.bits, tensor.lanes},
          {tensor.device_type, tensor.device_index},
          tensor.n_dims,
          tensor.shape,
          tensor.strides};
}

}  // namespace
}  // namespace dsmooth
