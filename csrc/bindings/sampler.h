#pragma once

#include <pybind11/pybind11.h>

namespace dsmooth {

// Adds the classes CpuSampler and, where CUDA was built, CudaSampler to the module; see
// dsmooth/sampling/cached.py.
void register_sampler(pybind11::module_& module);

}  // namespace dsmooth
