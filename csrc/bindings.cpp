// The Python module dsmooth._C: the only file that knows Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "philox.h"

namespace py = pybind11;

namespace {

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  const auto block =
      dsmooth::philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native code of dsmooth. Internal: use dsmooth's Python functions.";
  module.def("philox4x32_10", &philox, py::arg("counter"), py::arg("key"),
             "The 4 words of a Philox4x32-10 block.");
  module.def("philox_uniform", &dsmooth::philox_uniform, py::arg("word"),
             "Uniform in (0, 1) of one word, exact in float32.");
}
