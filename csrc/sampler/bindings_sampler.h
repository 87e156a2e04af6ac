#pragma once

#include <pybind11/pybind11.h>

// Adds the class CpuSampler to the module; see dsmooth/sampling/cached.py.
void register_sampler(pybind11::module_& module);
