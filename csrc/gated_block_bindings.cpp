// The gated block's entry points for Python. Shapes and dtypes are checked by the op in
// dsmooth/functional/gated_resnet.py, which also owns the memory; addresses come as integers.
#include "gated_block_bindings.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "gated_block.h"

namespace dsmooth {
namespace {

namespace py = pybind11;
using Address = uintptr_t;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

GatedBlockShape make_shape(const std::string& storage, const std::vector<int64_t>& extents,
                           const std::vector<int>& skip_channels, bool taps_outside) {
  if (extents.size() != 8 || skip_channels.size() > kMaxSkips) {
    throw std::invalid_argument("gated block: 8 extents and at most 2 skips expected");
  }
  GatedBlockShape s;
  if (storage == "float32") {
    s.storage = GatedStorage::kFloat32;
  } else if (storage == "float64") {
    s.storage = GatedStorage::kFloat64;
  } else if (storage == "bfloat16") {
    s.storage = GatedStorage::kBFloat16;
  } else {
    throw std::invalid_argument("storage must be float32, float64 or bfloat16, got " + storage);
  }
  s.batch = extents[0], s.height = extents[1], s.width = extents[2];
  s.filters = static_cast<int>(extents[3]);
  s.kernel_h = static_cast<int>(extents[4]), s.kernel_w = static_cast<int>(extents[5]);
  s.pad_top = static_cast<int>(extents[6]), s.pad_left = static_cast<int>(extents[7]);
  s.taps_outside = taps_outside;
  s.n_skips = static_cast<int>(skip_channels.size());
  for (int i = 0; i < s.n_skips; ++i) s.skip_channels[i] = skip_channels[i];
  return s;
}

// `seed`: the address of an int64, 0 for no dropout.
GatedDropout make_dropout(Address seed, int64_t layer, uint32_t keep_from, double scale) {
  GatedDropout dropout;
  dropout.active = seed != 0;
  if (dropout.active) dropout.seed = *static_cast<const uint64_t*>(pointer(seed));
  dropout.layer = static_cast<uint32_t>(layer);
  dropout.keep_from = keep_from;
  dropout.scale = scale;
  return dropout;
}

GatedWeights make_weights(const std::vector<Address>& w) {
  if (w.size() != 9) throw std::invalid_argument("gated block: 9 weights expected");
  GatedWeights weights;
  weights.conv_in = pointer(w[0]), weights.bias_in = pointer(w[1]);
  weights.conv_out = pointer(w[2]), weights.bias_out = pointer(w[3]);
  weights.nin = pointer(w[4]), weights.bias_nin = pointer(w[5]);
  weights.gain_in = pointer(w[6]), weights.gain_out = pointer(w[7]);
  weights.gain_nin = pointer(w[8]);
  return weights;
}

void check_count(const std::vector<Address>& addresses, size_t expected) {
  if (addresses.size() != expected) {
    throw std::invalid_argument("gated block: " + std::to_string(expected) +
                                " addresses expected, got " + std::to_string(addresses.size()));
  }
}

void forward(const std::string& storage, const std::vector<int64_t>& extents,
             const std::vector<int>& skip_channels, bool taps_outside, Address seed, int64_t layer,
             uint32_t keep_from, double scale, const std::vector<Address>& weights,
             const std::vector<Address>& tensors, int threads, const std::string& instruction_set) {
  check_count(tensors, 4 + skip_channels.size());
  GatedForward args;
  args.shape = make_shape(storage, extents, skip_channels, taps_outside);
  args.dropout = make_dropout(seed, layer, keep_from, scale);
  args.weights = make_weights(weights);
  args.x = pointer(tensors[0]);
  args.y = pointer(tensors[1]);
  args.h = pointer(tensors[2]);
  args.gates = pointer(tensors[3]);
  for (int i = 0; i < args.shape.n_skips; ++i) args.skips[i] = pointer(tensors[4 + i]);
  const py::gil_scoped_release release;
  gated_block_forward(args, threads, instruction_set);
}

void backward(const std::string& storage, const std::vector<int64_t>& extents,
              const std::vector<int>& skip_channels, bool taps_outside, Address seed, int64_t layer,
              uint32_t keep_from, double scale, const std::vector<Address>& weights,
              const std::vector<Address>& tensors, int threads,
              const std::string& instruction_set) {
  check_count(tensors, 13 + 2 * skip_channels.size());
  GatedBackward args;
  args.shape = make_shape(storage, extents, skip_channels, taps_outside);
  args.dropout = make_dropout(seed, layer, keep_from, scale);
  args.weights = make_weights(weights);
  args.grad_y = pointer(tensors[0]);
  args.x = pointer(tensors[1]);
  args.h = pointer(tensors[2]);
  args.gates = pointer(tensors[3]);
  args.grad_x = pointer(tensors[4]);
  args.grad_conv_in = pointer(tensors[5]);
  args.grad_bias_in = pointer(tensors[6]);
  args.grad_conv_out = pointer(tensors[7]);
  args.grad_bias_out = pointer(tensors[8]);
  args.grad_nin = pointer(tensors[9]);
  args.grad_gain_in = pointer(tensors[10]);
  args.grad_gain_out = pointer(tensors[11]);
  args.grad_gain_nin = pointer(tensors[12]);
  for (int i = 0; i < args.shape.n_skips; ++i) {
    args.skips[i] = pointer(tensors[13 + 2 * i]);
    args.grad_skips[i] = pointer(tensors[14 + 2 * i]);
  }
  const py::gil_scoped_release release;
  gated_block_backward(args, threads, instruction_set);
}

}  // namespace

void register_gated_block(py::module_& module) {
  module.def("gated_block_instruction_sets", &gated_block_instruction_sets,
             "Names of the instruction sets built that this CPU has, the best last.");
  module.def(
      "gated_block_forward", &forward, py::arg("storage"), py::arg("extents"),
      py::arg("skip_channels"), py::arg("taps_outside"), py::arg("seed"), py::arg("layer"),
      py::arg("keep_from"), py::arg("scale"), py::arg("weights"), py::arg("tensors"),
      py::arg("threads") = 1, py::arg("instruction_set") = "auto",
      "extents: B, H, W, F, kh, kw, rows padded on top, columns padded on the left. weights: "
      "conv_in, its bias, conv_out, its bias, nin, its bias, their gains. tensors: x, y, h, gates, "
      "skips.");
  module.def("gated_block_backward", &backward, py::arg("storage"), py::arg("extents"),
             py::arg("skip_channels"), py::arg("taps_outside"), py::arg("seed"), py::arg("layer"),
             py::arg("keep_from"), py::arg("scale"), py::arg("weights"), py::arg("tensors"),
             py::arg("threads") = 1, py::arg("instruction_set") = "auto",
             "tensors: the gradient of y; x, h, gates; the gradients of x, conv_in, its bias, "
             "conv_out, its bias, nin and the gains; then each skip and its gradient.");
}

}  // namespace dsmooth
