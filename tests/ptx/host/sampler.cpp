// The CUDA sampler's host side for Python: the launches that draw a small program's images, and the
// same images by the worker's emulation on the host.
#include "../../../csrc/sampler/cuda/sampler.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "../../../csrc/tests/sampler_block.h"
#include "../../../csrc/tests/sampler_toy.h"
#include "device_bf16.h"

namespace {

using namespace dsmooth::sampler;

struct Case {
  int filters, channels, conditioning, likelihood, atoms, features, hidden;
  int bf16, height, width;
  int64_t n;
  uint64_t seed, first_index;
  float temperature;
  int max_slice;
  int n_classes;
  int completes;  // the caller hands over known pixels and their mask
  float guidance;
};

Program program(const Case& c) {
  return Toy(c.filters, c.channels, static_cast<Conditioning>(c.conditioning), c.n_classes,
             static_cast<dsmooth::Likelihood>(c.likelihood), {c.atoms != 0, c.features, c.hidden});
}

Slice images(const Case& c, const float* context, float* out, const uint8_t* mask,
             const int64_t* labels) {
  return {0,       c.height, c.width, c.seed, c.first_index, c.temperature,
          context, out,      mask,    labels, c.guidance};
}

struct Sampler {
  Case c;
  CudaSampler sampler;
  CudaPlan plan;
  Sampler(const Case& given, const Card& card)
      : c(given),
        sampler(program(given), given.bf16 != 0, card),
        plan(sampler.plan(c.n, c.height, c.width, size_t{1} << 30, c.max_slice,
                          c.guidance > 0 ? 2 : 1)) {}
};

std::string words;  // of the last call's error

template <class F>
void attempt(F f) {
  words.clear();
  try {
    f();
  } catch (const std::exception& error) {
    words = error.what();
  }
}

}  // namespace

extern "C" {

const char* error_of_last_call() { return words.c_str(); }

void* make_sampler(const Case* c, int processors, int shared_limit) {
  Sampler* sampler = nullptr;
  attempt([&] { sampler = new Sampler(*c, {processors, shared_limit}); });
  return sampler;
}
void free_sampler(void* s) { delete static_cast<Sampler*>(s); }
int64_t weight_bytes(void* s) {
  return static_cast<int64_t>(static_cast<Sampler*>(s)->sampler.bytes());
}
void write_weights(void* s, void* to) {
  static_cast<Sampler*>(s)->sampler.write(to, reinterpret_cast<uintptr_t>(to));
}
int64_t workspace_bytes(void* s) { return 4 * static_cast<Sampler*>(s)->plan.workspace_words(); }
int64_t blocks(void* s) { return static_cast<Sampler*>(s)->plan.partition.workers; }
int64_t shared_bytes(void* s) { return static_cast<Sampler*>(s)->sampler.shared().bytes; }
int64_t argument_bytes(void*) { return sizeof(BlockRun); }
int64_t launches(void* s) { return static_cast<Sampler*>(s)->plan.launches; }
void write_argument(void* s, int64_t launch, const float* context, float* out, const uint8_t* mask,
                    const int64_t* labels, float* workspace, void* to) {
  const Sampler& made = *static_cast<Sampler*>(s);
  const Slice all = images(made.c, context, out, mask, labels);
  attempt([&] {
    const BlockRun run = made.sampler.argument(made.plan, all, workspace, launch);
    std::memcpy(to, &run, sizeof run);
  });
}

// The round and the rows, from the first to before the last, that a launch draws.
void rows_of(const void* argument, int* rows) {
  const auto& run = *static_cast<const BlockRun*>(argument);
  rows[0] = static_cast<int>(run.round), rows[1] = run.first_row, rows[2] = run.end_row;
}

// The same by a lane of the host.
void draw_on_host(void* s, const float* context, float* out, const uint8_t* mask,
                  const int64_t* labels, float* workspace) {
  const Case& c = static_cast<Sampler*>(s)->c;
  const Slice all = images(c, context, out, mask, labels);
  const auto draw = c.bf16 ? draw_as_cuda<DeviceBf16, 1, 1> : draw_as_cuda<float, 1, 1>;
  const auto memory = draw(program(c), all, c.n, {1, 163 << 10}, c.max_slice, Mode::kThreads, -1);
  std::memcpy(workspace, memory.data(), workspace_bytes(s));
}

}  // extern "C"
