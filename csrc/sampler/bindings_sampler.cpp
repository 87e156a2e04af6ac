// The Python side of the sampler: programs in, images out. Arguments were checked in Python.
#include "bindings_sampler.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "sampler_cpu.h"

namespace py = pybind11;

namespace {

using dsmooth::sampler::Cache;
using dsmooth::sampler::CpuSampler;
using dsmooth::sampler::kNone;
using dsmooth::sampler::Op;
using dsmooth::sampler::Pass;
using dsmooth::sampler::Program;
using dsmooth::sampler::Request;
using dsmooth::sampler::Term;
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
        values(o.attr("bias")),
        {}};
  op.n = static_cast<int>(op.bias.size());
  for (const py::handle t : o.attr("terms")) op.terms.push_back(to_term(t));
  return op;
}

Program to_program(const py::object& p, int image_channels, int n_mix, bool discretized,
                   bool conditioned) {
  Program program{image_channels,
                  p.attr("image_parts").cast<int>(),
                  n_mix,
                  discretized,
                  conditioned,
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

// The GIL is free while the workers run. Between polls it is taken for a moment: for signals, so
// that Ctrl-C ends the call, and for the caller's progress.
void sample(const CpuSampler& sampler, Array out, const py::object& context, uint64_t seed,
            uint64_t first_index, float temperature, int threads, int slice,
            const py::object& progress) {
  Array given;
  if (!context.is_none()) given = py::cast<Array>(context);
  const Request request{out.shape(0),
                        static_cast<int>(out.shape(2)),
                        static_cast<int>(out.shape(3)),
                        seed,
                        first_index,
                        temperature,
                        threads,
                        slice,
                        context.is_none() ? nullptr : given.data(),
                        out.mutable_data()};
  const py::gil_scoped_release release;
  sampler.sample(request, [&](double done) {
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!progress.is_none()) progress(done);
  });
}

}  // namespace

void register_sampler(py::module_& module) {
  module.def("sampler_instruction_sets", &dsmooth::sampler::instruction_sets, py::arg("bf16"),
             "Names of the instruction sets that the sampler can use here, the best last.");
  py::class_<CpuSampler>(module, "CpuSampler")
      .def(py::init([](const py::object& program, int image_channels, int n_mix, bool discretized,
                       bool conditioned, const std::string& instruction_set, bool bf16) {
             return CpuSampler(to_program(program, image_channels, n_mix, discretized, conditioned),
                               instruction_set, bf16);
           }),
           py::kw_only(), py::arg("program"), py::arg("image_channels"), py::arg("n_mix"),
           py::arg("discretized"), py::arg("conditioned"), py::arg("instruction_set"),
           py::arg("bf16"))
      .def("sample", &sample, py::kw_only(), py::arg("out").noconvert(), py::arg("context"),
           py::arg("seed"), py::arg("first_index"), py::arg("temperature"), py::arg("threads"),
           py::arg("slice"), py::arg("progress"))
      .def_property_readonly("instruction_set", &CpuSampler::instruction_set)
      .def("bytes_per_image", &CpuSampler::bytes_per_image, py::arg("height"), py::arg("width"));
}
