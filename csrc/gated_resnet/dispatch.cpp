// Chooses the instruction set at run time and splits the images over threads.
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>

#include "../common/isa.h"
#include "../common/parallel.h"
#include "gated_resnet.h"

namespace dsmooth {

#define DSMOOTH_SET(name)                \
  namespace name {                       \
  GatedKernelSet gated_resnet_kernels(); \
  }
BLOCK_SETS
#undef DSMOOTH_SET

namespace {

const GatedKernels& find_kernels(ElementType type, const std::string& instruction_set) {
#define DSMOOTH_SET(name) {#name, &name::gated_resnet_kernels},
  static const PerInstructionSet<GatedKernelSet> sets{BLOCK_SETS};
#undef DSMOOTH_SET
  const GatedKernelSet& kernels = sets.find(instruction_set);
  if (type == kFloat64Type) return kernels.float64;
  return type == kBFloat16Type ? kernels.bfloat16 : kernels.float32;
}

void check_padding(const GatedShape& s) {
  const auto refuse = [](const char* name, int limit, int got) {
    throw std::invalid_argument(std::string(name) + " must lie in [0, " + std::to_string(limit) +
                                "), got " + std::to_string(got));
  };
  if (s.pad_top < 0 || s.pad_top >= s.kernel_h) refuse("pad_top", s.kernel_h, s.pad_top);
  if (s.pad_left < 0 || s.pad_left >= s.kernel_w) refuse("pad_left", s.kernel_w, s.pad_left);
}

struct alignas(64) Line {  // of a cache
  char bytes[64];
};

size_t lines(size_t bytes) { return (bytes + sizeof(Line) - 1) / sizeof(Line); }

// Memory that stays with the calling thread: a fresh page costs more than what is computed in it.
Line* take(size_t count) {
  thread_local std::unique_ptr<Line[]> memory;
  thread_local size_t size = 0;
  if (count > size) {
    size = 0;
    memory.reset();
    memory.reset(new Line[count]);
    size = count;
  }
  return memory.get();
}

// About so many pixels are one thread's next piece of work.
constexpr int64_t kPixels = 784;

// Groups of images whose weight gradients are summed apart. A function of the shape alone, so that
// the sum is the same for every thread count; about kPixels each, which makes adding up the sums
// cheap beside computing them.
int64_t count_groups(const GatedShape& s, size_t sums_bytes) {
  constexpr int64_t kFewest = 4, kMostBytes = 64 << 20;
  const int64_t by_pixels = std::max(s.batch * s.height * s.width / kPixels, kFewest);
  const int64_t by_memory = std::max(kMostBytes / static_cast<int64_t>(sums_bytes), kFewest);
  return std::min({s.batch, by_pixels, by_memory});
}

}  // namespace

void gated_resnet_forward(const GatedCall& call, int threads, const std::string& instruction_set) {
  check_padding(call.shape);
  const GatedKernels& kernels = find_kernels(call.shape.type, instruction_set);
  const int64_t batch = call.shape.batch;
  if (batch == 0) return;
  const int64_t pieces =
      std::clamp<int64_t>(batch * call.shape.height * call.shape.width / kPixels, 1, batch);
  const int64_t workers = std::clamp<int64_t>(threads, 1, pieces);
  const size_t scratch_lines = lines(kernels.scratch_bytes(call.shape));
  const size_t packed_lines = lines(kernels.packed_bytes(call.shape));
  Line* const packed = take(packed_lines + scratch_lines * workers);
  Line* const scratch = packed + packed_lines;
  kernels.pack_forward(call, packed);
  parallel_for_each(pieces, static_cast<int>(workers), [&](int64_t piece, int64_t worker) {
    kernels.forward(call, packed, batch * piece / pieces, batch * (piece + 1) / pieces,
                    scratch + scratch_lines * worker);
  });
}

void gated_resnet_backward(const GatedCall& call, int threads, const std::string& instruction_set) {
  check_padding(call.shape);
  const GatedKernels& kernels = find_kernels(call.shape.type, instruction_set);
  const int64_t batch = call.shape.batch;
  const size_t sums_lines = lines(kernels.sums_bytes(call.shape));
  const int64_t groups = count_groups(call.shape, sums_lines * sizeof(Line));
  const int64_t workers = std::clamp<int64_t>(threads, 1, std::max<int64_t>(groups, 1));
  // An empty batch has no memory, and so may have any extent.
  const size_t scratch_lines = batch == 0 ? 0 : lines(kernels.scratch_bytes(call.shape));
  const size_t packed_lines = lines(kernels.packed_bytes(call.shape));
  Line* const packed =
      take(packed_lines + scratch_lines * workers + sums_lines * std::max<int64_t>(groups, 1));
  Line* const scratch = packed + packed_lines;
  Line* const sums = scratch + scratch_lines * workers;
  if (groups > 0) kernels.pack_backward(call, packed);
  parallel_for_each(groups, static_cast<int>(workers), [&](int64_t group, int64_t worker) {
    kernels.backward(call, packed, batch * group / groups, batch * (group + 1) / groups,
                     scratch + scratch_lines * worker, sums + sums_lines * group);
  });
  parallel_for(workers, [&](int64_t part) {
    kernels.add_sums(call.shape, sums, sums_lines * sizeof(Line), groups, part, workers);
  });
  parallel_for(workers, [&](int64_t part) { kernels.write_gradients(call, sums, part, workers); });
}

}  // namespace dsmooth
