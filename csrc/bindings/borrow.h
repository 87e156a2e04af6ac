// A torch tensor of Python's as memory to borrow, without linking torch: by DLPack's C exchange
// interface, which torch.Tensor offers and which costs some 50 ns a tensor.
#pragma once

#include <pybind11/pybind11.h>

#include "../common/borrowed.h"

namespace dsmooth {

// The tensor's description, or that of an absent tensor for None. It holds while the tensor lives
// and keeps its shape. Throws std::invalid_argument, naming the tensor, for anything else and for
// a tensor whose memory cannot be addressed (a meta tensor, a sparse one).
Borrowed borrow(const char* name, PyObject* tensor);
inline Borrowed borrow(const char* name, const pybind11::object& tensor) {
  return borrow(name, tensor.ptr());
}

// Torch's current stream of a CUDA device: a cudaStream_t. Throws what torch throws.
void* current_stream(Device device);

}  // namespace dsmooth
