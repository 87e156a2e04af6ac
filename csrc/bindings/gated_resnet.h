#pragma once

#include <pybind11/pybind11.h>

namespace dsmooth {

void register_gated_resnet(pybind11::module_& module);

}  // namespace dsmooth
