// The Python side of the sampler: programs in, images out.
#include "sampler.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "../common/tensor_view.h"
#include "../sampler/sampler_cpu.h"
#if defined(DSMOOTH_HAS_CUDA)
#include "../sampler/sampler_cuda.h"
#endif

namespace dsmooth {
namespace {

namespace py = pybind11;

using sampler::Cache;
using sampler::CpuSampler;
using sampler::kNone;
using sampler::Op;
using sampler::Pass;
using sampler::Program;
using sampler::Request;
using sampler::Term;
using Array = py::array_t<float, py::array::c_style>;
using AnyArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::vector<float> values(const py::handle& array) {
  const auto a = py::cast<AnyArray>(array);
  return {a.data(), a.data() + a.size()};
}

Term to_term(const py::handle& t) {
  const auto weight = py::cast<AnyArray>(t.attr("weight"));
  if (weight.ndim() != 3) throw py::value_error("the weight of a term must be (n, taps, channels)");
  return {t.attr("cache").cast<int>(),
          t.attr("drow").cast<int>(),
          t.attr("dcol").cast<int>(),
          static_cast<int>(weight.shape(1)),
          static_cast<int>(weight.shape(2)),
          t.attr("row_part").cast<bool>(),
          std::vector<float>(weight.data(), weight.data() + weight.size())};
}

Op to_op(const py::handle& o) {
  const auto integer = [&](const char* name) { return o.attr(name).cast<int>(); };
  Op op{static_cast<Pass>(integer("stage")),
        integer("level"),
        integer("row_parity"),
        integer("column_parity"),
        o.attr("gate").cast<bool>(),
        0,
        integer("residual_in"),
        integer("add"),
        integer("residual_out"),
        integer("act_out"),
        integer("raw_out"),
        o.attr("split").cast<bool>(),
        values(o.attr("bias")),
        {}};
  op.n = static_cast<int>(op.bias.size());
  for (const py::handle t : o.attr("terms")) op.terms.push_back(to_term(t));
  return op;
}

// What a model is beside its weights, as every sampler takes it.
struct Settings {
  py::object program;
  int image_channels, n_mix;
  std::string likelihood;
  std::vector<int> atoms;
  float smoothing_scale;
  bool conditioned;
};

Program to_program(const Settings& s) {
  const py::object& p = s.program;
  Program program{s.image_channels,
                  p.attr("image_parts").cast<int>(),
                  s.n_mix,
                  sampler::likelihood_named(s.likelihood),
                  s.atoms,
                  s.smoothing_scale,
                  s.conditioned,
                  p.attr("image").cast<int>(),
                  p.attr("context").cast<int>(),
                  p.attr("params").cast<int>(),
                  {},
                  {}};
  for (const py::handle c : p.attr("caches"))
    program.caches.push_back({c.attr("level").cast<int>(), c.attr("channels").cast<int>(),
                              c.attr("rows").cast<int>(), c.attr("operand").cast<bool>()});
  for (const py::handle o : p.attr("ops")) program.ops.push_back(to_op(o));
  return program;
}

std::string shape_of(const py::array& array) {
  return py::str(py::tuple(array.attr("shape"))).cast<std::string>();
}

// Throws std::invalid_argument, naming the argument, unless the request reads and writes inside its
// arrays and asks for something that can be drawn.
void check(const CpuSampler& sampler, const Array& out, const std::optional<Array>& context,
           float temperature, int threads, int slice) {
  const auto refuse = [](const std::string& what) { throw std::invalid_argument(what); };
  constexpr py::ssize_t kLongest = 1 << 15;  // a side
  const auto is_side = [](py::ssize_t n) { return n > 0 && n <= kLongest && n % 4 == 0; };
  const int channels = sampler.network().image_channels;
  if (out.ndim() != 4 || out.shape(1) != channels || !is_side(out.shape(2)) ||
      !is_side(out.shape(3))) {
    refuse("out must have shape (N, " + std::to_string(channels) +
           ", H, W), H and W multiples of 4 up to 32768, got " + shape_of(out));
  }
  if (!out.writeable()) refuse("out must be writeable");
  if (context.has_value() != sampler.network().conditioned) {
    refuse(context ? "context must be None for a model without conditioning"
                   : "context must be an array for a conditioned model");
  }
  if (context && shape_of(*context) != shape_of(out)) {
    refuse("context must have shape " + shape_of(out) + ", got " + shape_of(*context));
  }
  if (!(temperature > 0 && std::isfinite(temperature))) {
    refuse("temperature must be positive, got " + std::to_string(temperature));
  }
  if (threads < 1) refuse("threads must be at least 1, got " + std::to_string(threads));
  if (slice < 0) refuse("slice must not be negative, got " + std::to_string(slice));
}

// The GIL is free while the workers run. Between polls it is taken for a moment: for signals, so
// that Ctrl-C ends the call, and for the caller's progress.
void sample(const CpuSampler& sampler, Array out, const std::optional<Array>& context,
            uint64_t seed, uint64_t first_index, float temperature, int threads, int slice,
            const py::object& progress) {
  check(sampler, out, context, temperature, threads, slice);
  const Request request{out.shape(0),
                        static_cast<int>(out.shape(2)),
                        static_cast<int>(out.shape(3)),
                        seed,
                        first_index,
                        temperature,
                        threads,
                        slice,
                        context ? context->data() : nullptr,
                        out.mutable_data()};
  const py::gil_scoped_release release;
  sampler.sample(request, [&](double done) {
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!progress.is_none()) progress(done);
  });
}

#if defined(DSMOOTH_HAS_CUDA)
using sampler::CudaRequest;
using sampler::CudaSampler;
using sampler::Sharing;

// A view whose elements follow one another.
template <int N>
View<float, N> whole(const Tensor& tensor, const std::array<int64_t, N>& shape, Device device) {
  const View<float, N> view(tensor, shape, device);
  int64_t stride = 1;
  for (int i = N - 1; i >= 0; stride *= view.shape[i--])
    if (view.stride[i] != stride && view.shape[i] > 1)
      throw py::value_error(tensor.name + " must be contiguous");
  return view;
}

void launch(const CudaSampler& sampler, const Tensor& out, const std::optional<Tensor>& context,
            const Tensor& workspace, const Sharing& sharing, uint64_t seed, uint64_t first_index,
            float temperature, uintptr_t stream) {
  const Device device{DeviceType::kCuda, sampler.device()};
  const auto images = whole<4>(out, {kAny, sampler.image_channels(), kAny, kAny}, device);
  const auto [n, channels, height, width] = images.shape;
  const int h = static_cast<int>(height), w = static_cast<int>(width);
  const auto bytes = static_cast<int64_t>(sampler.workspace_bytes(sharing, h, w));
  const CudaRequest request{
      n,
      h,
      w,
      seed,
      first_index,
      temperature,
      sharing,
      context ? whole<4>(*context, images.shape, device).data : nullptr,
      images.data,
      whole<1>(workspace, {bytes / static_cast<int64_t>(sizeof(float))}, device).data,
      reinterpret_cast<void*>(stream)};
  const py::gil_scoped_release release;
  sampler.sample(request);
}

void register_cuda_sampler(py::module_& module) {
  py::class_<Sharing>(module, "Sharing")
      .def_readonly("slices", &Sharing::slices)
      .def_readonly("largest", &Sharing::largest)
      .def_readonly("blocks", &Sharing::blocks);
  py::class_<CudaSampler>(module, "CudaSampler")
      .def(py::init([](const py::object& program, int image_channels, int n_mix,
                       const std::string& likelihood, const std::vector<int>& atoms,
                       float smoothing_scale, bool conditioned, bool bf16, int device) {
             return CudaSampler(to_program({program, image_channels, n_mix, likelihood, atoms,
                                            smoothing_scale, conditioned}),
                                bf16, device);
           }),
           py::kw_only(), py::arg("program"), py::arg("image_channels"), py::arg("n_mix"),
           py::arg("likelihood"), py::arg("atoms"), py::arg("smoothing_scale"),
           py::arg("conditioned"), py::arg("bf16"), py::arg("device"))
      .def_property_readonly("weight_words",
                             [](const CudaSampler& s) { return s.weight_bytes() / sizeof(float); })
      .def(
          "write_weights",
          [](CudaSampler& s, Array to, uintptr_t address) {
            if (static_cast<size_t>(to.nbytes()) != s.weight_bytes())
              throw py::value_error("the array must have weight_words words");
            s.write_weights(to.mutable_data(), address);
          },
          py::arg("to").noconvert(), py::arg("address"),
          "Writes what the device must hold at `address`; once.")
      .def("bytes_per_image", &CudaSampler::bytes_per_image, py::arg("height"), py::arg("width"))
      .def("share", &CudaSampler::share, py::arg("n"), py::arg("height"), py::arg("width"),
           py::arg("memory"), py::arg("max_slice"))
      .def(
          "workspace_words",
          [](const CudaSampler& s, const Sharing& sharing, int height, int width) {
            return s.workspace_bytes(sharing, height, width) / sizeof(float);
          },
          py::arg("sharing"), py::arg("height"), py::arg("width"))
      .def("sample", &launch, py::kw_only(), py::arg("out"), py::arg("context"),
           py::arg("workspace"), py::arg("sharing"), py::arg("seed"), py::arg("first_index"),
           py::arg("temperature"), py::arg("stream"));
}
#endif

}  // namespace

void register_sampler(py::module_& module) {
#if defined(DSMOOTH_HAS_CUDA)
  register_cuda_sampler(module);
#endif
  py::class_<CpuSampler>(module, "CpuSampler")
      .def(py::init([](const py::object& program, int image_channels, int n_mix,
                       const std::string& likelihood, const std::vector<int>& atoms,
                       float smoothing_scale, bool conditioned, const std::string& instruction_set,
                       bool bf16) {
             return CpuSampler(to_program({program, image_channels, n_mix, likelihood, atoms,
                                           smoothing_scale, conditioned}),
                               instruction_set, bf16);
           }),
           py::kw_only(), py::arg("program"), py::arg("image_channels"), py::arg("n_mix"),
           py::arg("likelihood"), py::arg("atoms"), py::arg("smoothing_scale"),
           py::arg("conditioned"), py::arg("instruction_set"), py::arg("bf16"))
      .def("sample", &sample, py::kw_only(), py::arg("out").noconvert(),
           py::arg("context").noconvert(), py::arg("seed"), py::arg("first_index"),
           py::arg("temperature"), py::arg("threads"), py::arg("slice"), py::arg("progress"))
      .def_property_readonly("instruction_set", &CpuSampler::instruction_set)
      .def("bytes_per_image", &CpuSampler::bytes_per_image, py::arg("height"), py::arg("width"));
}

}  // namespace dsmooth
