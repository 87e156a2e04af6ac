// The parts of the Python module dsmooth._C, and a torch tensor of Python's as memory to borrow,
// without linking torch: by DLPack's C exchange interface, which torch.Tensor offers.
#pragma once

#include <pybind11/pybind11.h>

#include "../common/tensors.h"

namespace dsmooth {

// The tensor's description; for None, of an absent tensor. It holds while the tensor
// lives and keeps its shape, and the name does. Throws std::invalid_argument, naming the tensor,
// for anything else and for a tensor whose numbers its memory does not hold (a meta tensor, a
// sparse one, a negative view).
Borrowed borrow(const char* name, const pybind11::object& tensor);

// Torch's current stream of a CUDA device: a cudaStream_t. Throws what torch throws.
void* current_stream(Device device);

void register_gated_resnet(pybind11::module_& module);
void register_logistic_mixture(pybind11::module_& module);
// The classes CpuSampler and, where CUDA was built, CudaSampler: see dsmooth/sampling/cached.py.
void register_sampler(pybind11::module_& module);

}  // namespace dsmooth
