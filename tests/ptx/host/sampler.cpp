// The CUDA sampler's host side for Python: a small program drawn by CudaSampler, whose launches the
// runtime beside this file hands on, and the same images by the worker's emulation on the host.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../../../csrc/sampler/sampler_cuda.h"
#include "../../../csrc/tests/sampler_block.h"
#include "../../../csrc/tests/sampler_toy.h"
#include "device_bf16.h"

namespace {

using namespace dsmooth::sampler;

struct Case {
  int filters, channels, conditioning, likelihood, n_atoms, features, hidden;
  int atoms[8];  // n_atoms of 256: not used, each byte is one
  int bf16, height, width;
  int64_t n;
  uint64_t seed, first_index;
  float temperature;
  int max_slice;
  int condition_size;
  int completes;  // the caller hands over known pixels and their mask
  float guidance;
};

Program program(const Case& c) {
  const auto atoms =
      c.n_atoms == dsmooth::kBytes ? Bytes::all() : std::vector<int>(c.atoms, c.atoms + c.n_atoms);
  return Toy(c.filters, c.channels, static_cast<Conditioning>(c.conditioning),
             static_cast<dsmooth::Likelihood>(c.likelihood), {atoms, c.features, c.hidden},
             c.condition_size)
      .take();
}

Slice images(const Case& c, const float* context, float* out, const uint8_t* mask,
             const float* condition) {
  return {0,       c.height, c.width, c.seed,    c.first_index, c.temperature,
          context, out,      mask,    condition, c.guidance};
}

struct Sampler {
  Case c;
  CudaSampler sampler;
  Partition partition;
  std::string error;
  explicit Sampler(const Case& given)
      : c(given),
        sampler(program(given), given.bf16 != 0, 0),
        partition(sampler.partition(c.n, c.height, c.width, size_t{1} << 30, c.max_slice,
                                    c.guidance > 0 ? 2 : 1)) {}
};

}  // namespace

extern "C" {

void* make_sampler(const Case* c) {
  try {
    return new Sampler(*c);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return nullptr;
  }
}
void free_sampler(void* s) { delete static_cast<Sampler*>(s); }
int64_t weight_bytes(void* s) {
  return static_cast<int64_t>(static_cast<Sampler*>(s)->sampler.bytes());
}
void write_weights(void* s, void* to) {
  static_cast<Sampler*>(s)->sampler.write(to, reinterpret_cast<uintptr_t>(to));
}
int64_t workspace_bytes(void* s) {
  auto& sampler = *static_cast<Sampler*>(s);
  return static_cast<int64_t>(
      sampler.sampler.workspace_bytes(sampler.partition, sampler.c.height, sampler.c.width));
}
void draw(void* s, const float* context, float* out, const uint8_t* mask, const float* condition,
          float* workspace) {
  auto& [c, sampler, partition, error] = *static_cast<Sampler*>(s);
  const Slice all = images(c, context, out, mask, condition);
  for (int64_t i = 0; i < sampler.launches(partition, c.height); ++i)
    sampler.sample({c.n, all, partition, workspace, nullptr}, i);
}

// The same by a lane of the host.
void draw_on_host(void* s, const float* context, float* out, const uint8_t* mask,
                  const float* condition, float* workspace) {
  const Case& c = static_cast<Sampler*>(s)->c;
  const Slice all = images(c, context, out, mask, condition);
  const auto draw = c.bf16 ? draw_as_cuda<DeviceBf16, 1, 1> : draw_as_cuda<float, 1, 1>;
  const auto memory = draw(program(c), all, c.n, {1, 163 << 10}, c.max_slice, Mode::kThreads, -1);
  std::memcpy(workspace, memory.data(), workspace_bytes(s));
}

}  // extern "C"
