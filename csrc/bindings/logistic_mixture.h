#pragma once

#include <pybind11/pybind11.h>

namespace dsmooth {

void register_logistic_mixture(pybind11::module_& module);

}  // namespace dsmooth
