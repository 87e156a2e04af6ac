// The Python side of the sampler: programs in, images out.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../common/mixture.h"
#include "../sampler/cpu/sampler.h"
#include "../sampler/cuda/sampler.h"
#include "borrow.h"

namespace dsmooth::sampler {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::vector<float> floats(const py::handle& array) {
  const auto a = py::cast<Floats>(array);
  return {a.data(), a.data() + a.size()};
}

int integer(const py::handle& from, const char* name) { return from.attr(name).cast<int>(); }

Term to_term(const py::handle& t) {
  const auto weight = py::cast<Floats>(t.attr("weight"));
  if (weight.ndim() != 3) throw py::value_error("the weight of a term must be (n, taps, channels)");
  return {{integer(t, "cache"), integer(t, "drow"), integer(t, "dcol"),
           static_cast<int>(weight.shape(1)), t.attr("row_part").cast<bool>(),
           static_cast<int>(weight.shape(2))},
          {weight.data(), weight.data() + weight.size()}};
}

Op to_op(const py::handle& o) {
  Op op{{static_cast<Phase>(integer(o, "phase")), integer(o, "resolution"),
         integer(o, "row_parity"), integer(o, "column_parity"), o.attr("gate").cast<bool>(),
         o.attr("split").cast<bool>(), integer(o, "residual_in"), integer(o, "add"),
         integer(o, "residual_out"), integer(o, "act_out"), integer(o, "raw_out")},
        0,
        floats(o.attr("bias")),
        {},
        {}};
  op.n = static_cast<int>(op.bias.size());
  for (const py::handle t : o.attr("terms")) op.terms.push_back(to_term(t));
  if (!o.attr("projection").is_none()) op.projection = floats(o.attr("projection"));
  return op;
}

Program to_program(const py::object& p) {
  Program program{
      {integer(p, "image_channels"), integer(p, "image_addends"), integer(p, "n_mix"),
       integer(p, "n_atoms"), likelihood_named(p.attr("likelihood").cast<std::string>()),
       p.attr("smoothing_scale").cast<float>(), p.attr("conditioned").cast<bool>(),
       integer(p, "image"), integer(p, "context"), integer(p, "params"), integer(p, "n_classes"), 0,
       p.attr("image_again").cast<bool>()},
      {},
      {},
      {}};
  const auto features = py::cast<Floats>(p.attr("features"));
  if (features.ndim() != 2) throw py::value_error("features must be (256, features of a byte)");
  program.features = static_cast<int>(features.shape(1));
  program.feature_table = floats(features);
  for (const py::handle c : p.attr("caches"))
    program.caches.push_back({integer(c, "resolution"), integer(c, "channels"), integer(c, "rows"),
                              c.attr("operand").cast<bool>()});
  for (const py::handle o : p.attr("ops")) program.ops.push_back(to_op(o));
  return program;
}

void check_presence(const Borrowed& tensor, bool needed) {
  if (tensor.given == needed) return;
  refuse(tensor.name, needed ? "be a tensor for this model" : "be None for this model",
         tensor.given ? "a tensor" : "None");
}

// The tensors of a call, borrowed while they live.
struct Tensors {
  Borrowed out, context;  // both (N, C, H, W) float32; context may be absent
  Borrowed mask;          // (N, H, W) uint8, or absent; out holds the known pixels
  Borrowed labels;        // (N,) int64, or absent
  Borrowed workspace{};   // absent on the CPU

  // The images to draw, and their number. Throws std::invalid_argument, naming the argument, unless
  // the tensors have the right sizes and the settings are valid.
  std::pair<int64_t, Slice> check(const NetworkView& network, Device device, uint64_t seed,
                                  uint64_t first_index, float temperature, float guidance) const {
    const int64_t channels = network.image_channels;
    float* const images = contiguous<float>(out, {kAny, channels, kAny, kAny}, device);
    const int64_t n = out.shape[0], height = out.shape[2], width = out.shape[3];
    check_size(height, width);
    check_presence(context, network.conditioned);
    if (context.given) contiguous<float>(context, {n, channels, height, width}, device);
    if (mask.given) contiguous<uint8_t>(mask, {n, height, width}, device);
    check_presence(labels, network.n_classes > 0);
    if (labels.given) contiguous<int64_t>(labels, {n}, device);
    if (!(temperature > 0 && std::isfinite(temperature)))
      refuse("temperature", "be positive and finite", std::to_string(temperature));
    if (!(guidance >= 0 && std::isfinite(guidance)) || (guidance > 0 && !labels.given))
      refuse("guidance", "be finite and not negative, 0 without labels", std::to_string(guidance));
    if (guidance > 0 && n % 2 != 0) refuse("out", "hold pairs of images", std::to_string(n));
    check_apart({&out, &workspace}, {&context, &mask, &labels});
    return {
        n,
        {0, static_cast<int>(height), static_cast<int>(width), seed, first_index, temperature,
         static_cast<const float*>(context.data), images, static_cast<const uint8_t*>(mask.data),
         static_cast<const int64_t*>(labels.data), guidance}};
  }
};

// The GIL is released while the workers run. Each poll acquires it briefly: for signals, so that
// Ctrl-C ends the call, and for the progress callback.
void sample(const CpuSampler& sampler, const py::object& out, const py::object& context,
            const py::object& mask, const py::object& labels, uint64_t seed, uint64_t first_index,
            float temperature, float guidance, int threads, int slice, const py::object& progress) {
  constexpr int kLargestSlice = 1 << 14;
  const Tensors tensors{borrow("out", out), borrow("context", context), borrow("mask", mask),
                        borrow("labels", labels)};
  const auto [n, all] =
      tensors.check(sampler.network(), Device{}, seed, first_index, temperature, guidance);
  check_threads(threads);
  if (slice < 0) refuse("slice", "not be negative", std::to_string(slice));
  const CpuCall call{n, all, threads, std::min(slice, kLargestSlice)};
  const py::gil_scoped_release release;
  sampler.sample(call, [&](double done) {
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!progress.is_none()) progress(done);
  });
}

Device device_of(const CudaSampler& sampler) { return {Device::kCuda, sampler.card().device}; }

// A contiguous tensor of `words` floats on the device, aligned for the kernels.
float* device_words(const Borrowed& tensor, int64_t words, Device device) {
  float* data = contiguous<float>(tensor, {words}, device);
  if (reinterpret_cast<uintptr_t>(data) % 128 != 0)
    refuse(tensor.name, "be aligned to 128 bytes", "an unaligned tensor");
  return data;
}

int64_t weight_words(const CudaSampler& sampler) {
  return static_cast<int64_t>(sampler.bytes() / sizeof(float));
}

void write_weights(CudaSampler& sampler, const py::object& host, const py::object& device) {
  const int64_t words = weight_words(sampler);
  if (words == 0) throw std::invalid_argument("the weights can be written only once");
  float* const image = contiguous<float>(borrow("host", host), {words});
  const float* address = device_words(borrow("device", device), words, device_of(sampler));
  sampler.write(image, reinterpret_cast<uintptr_t>(address));
}

CudaPlan plan(const CudaSampler& sampler, int64_t n, int height, int width, size_t memory,
              int max_slice, int passes) {
  constexpr int64_t kMostImages = int64_t{1} << 40;
  if (n < 1 || n > kMostImages) refuse("n", "lie in 1 .. 2**40", std::to_string(n));
  if (max_slice < 0) refuse("max_slice", "not be negative", std::to_string(max_slice));
  if ((passes != 1 && passes != 2) || n % passes != 0)
    refuse("passes", "be 1, or 2 for pairs of images", std::to_string(passes));
  return sampler.plan(n, height, width, memory, max_slice, passes);
}

// The bytes of the kernel's argument. The caller keeps the tensors until the launch is done.
py::bytes argument_of_launch(const CudaSampler& sampler, const py::object& out,
                             const py::object& context, const py::object& mask,
                             const py::object& workspace, const CudaPlan& plan, int64_t launch,
                             uint64_t seed, uint64_t first_index, float temperature, float guidance,
                             const py::object& labels) {
  if (weight_words(sampler) != 0) throw std::invalid_argument("write_weights must be called first");
  const Device device = device_of(sampler);
  const Tensors tensors{borrow("out", out), borrow("context", context), borrow("mask", mask),
                        borrow("labels", labels), borrow("workspace", workspace)};
  const auto [n, all] =
      tensors.check(sampler.network(), device, seed, first_index, temperature, guidance);
  if (n != plan.n || all.height != plan.height || all.width != plan.width ||
      all.passes() != plan.passes)
    refuse("plan", "be of these images", "another plan");
  if (launch < 0 || launch >= plan.launches)
    refuse("launch", "be one of the plan's launches", std::to_string(launch));
  float* const memory = device_words(tensors.workspace, plan.workspace_words(), device);
  const BlockRun run = sampler.argument(plan, all, memory, launch);
  return {reinterpret_cast<const char*>(&run), sizeof run};
}

void register_cuda_sampler(py::module_& module) {
  py::class_<CudaPlan>(module, "CudaPlan")
      .def_property_readonly("blocks", [](const CudaPlan& p) { return p.partition.workers; })
      .def_property_readonly("workspace_words", &CudaPlan::workspace_words)
      .def_readonly("launches", &CudaPlan::launches);
  py::class_<CudaSampler>(module, "CudaSampler")
      .def(py::init([](const py::object& program, bool bf16, int device, int processors,
                       int shared_limit) {
             if (processors < 1) refuse("processors", "be positive", std::to_string(processors));
             const Card card{
                 .processors = processors, .shared_limit = shared_limit, .device = device};
             return CudaSampler(to_program(program), bf16, card);
           }),
           py::arg("program"), py::arg("bf16"), py::arg("device"), py::arg("processors"),
           py::arg("shared_limit"))
      .def_property_readonly_static("lanes", [](const py::object&) { return kKernelWarps * 32; })
      .def_property_readonly("shared_bytes",
                             [](const CudaSampler& sampler) { return sampler.shared().bytes; })
      .def_property_readonly("weight_words", &weight_words)
      .def("write_weights", &write_weights, py::arg("host"), py::arg("device"),
           py::keep_alive<1, 3>(),
           "Writes the content of `device` to `host`, once; `device` must outlive this object.")
      .def("bytes_per_image", &CudaSampler::bytes_per_image, py::arg("height"), py::arg("width"))
      .def("plan", &plan, py::arg("n"), py::arg("height"), py::arg("width"), py::arg("memory"),
           py::arg("max_slice"), py::arg("passes"))
      .def("argument", &argument_of_launch, py::kw_only(), py::arg("out"), py::arg("context"),
           py::arg("mask"), py::arg("workspace"), py::arg("plan"), py::arg("launch"),
           py::arg("seed"), py::arg("first_index"), py::arg("temperature"), py::arg("guidance"),
           py::arg("labels"), "The argument of a launch of plan.blocks blocks of `lanes` lanes.");
}

// The classes CpuSampler and CudaSampler: see dsmooth/sampling/cached.py.
void register_sampler(py::module_& module) {
  register_cuda_sampler(module);
  py::class_<CpuSampler>(module, "CpuSampler")
      .def(py::init([](const py::object& program, bool bf16, const std::string& instruction_set) {
             return CpuSampler(to_program(program), instruction_set, bf16);
           }),
           py::arg("program"), py::arg("bf16"), py::arg("instruction_set"))
      .def("sample", &sample, py::kw_only(), py::arg("out"), py::arg("context"), py::arg("mask"),
           py::arg("labels"), py::arg("seed"), py::arg("first_index"), py::arg("temperature"),
           py::arg("guidance"), py::arg("threads"), py::arg("slice"), py::arg("progress"),
           "mask: (N, H, W) uint8, nonzero where a pixel of out is known and kept; or None. "
           "labels: (N,) int64, -1 for no class; None for a network without classes. "
           "guidance: 0, or the weight for images 2i and 2i + 1, which are drawn as one.")
      .def_property_readonly("instruction_set",
                             [](const CpuSampler& s) { return s.kernels().instruction_set; })
      .def("bytes_per_image", &CpuSampler::bytes_per_image, py::arg("height"), py::arg("width"));
}

}  // namespace
}  // namespace dsmooth::sampler
