// The Python module dsmooth._C: the shared functions here, each op's own by its register_*. They
// are headers of one file because pybind11's own take five seconds to compile, for each file.
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "../common/isa.h"
#include "../common/parallel.h"
#include "../common/philox.h"
#include "gated_resnet.h"
#include "logistic_mixture.h"
#include "sampler.h"

namespace dsmooth {
namespace {

std::array<uint32_t, 4> philox(const std::array<uint32_t, 4>& counter,
                               const std::array<uint32_t, 2>& key) {
  const PhiloxBlock block =
      philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native code of dsmooth. Internal: use dsmooth's Python functions.";
#if defined(DSMOOTH_HAS_CUDA)
  module.attr("has_cuda") = true;
#else
  module.attr("has_cuda") = false;
#endif
  module.attr("has_openmp") = has_openmp();

  module.def("instruction_sets", &instruction_sets,
             "Names of the instruction sets built that this CPU has, the best last.");
  register_logistic_mixture(module);
  register_gated_resnet(module);
  sampler::register_sampler(module);
  module.def("philox4x32_10", &philox, py::arg("counter"), py::arg("key"),
             "The 4 words of a Philox4x32-10 block.");
}

}  // namespace dsmooth
