// Chooses the instruction set at run time and splits the images over threads.
#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

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

const GatedKernels& find_kernels(GatedStorage storage, const std::string& instruction_set) {
#define DSMOOTH_SET(name) {#name, &name::gated_resnet_kernels},
  static const PerInstructionSet<GatedKernelSet> sets{BLOCK_SETS};
#undef DSMOOTH_SET
  const GatedKernelSet& kernels = sets.find(instruction_set);
  switch (storage) {
    case GatedStorage::kFloat64:
      return kernels.float64;
    case GatedStorage::kBFloat16:
      return kernels.bfloat16;
    default:
      return kernels.float32;
  }
}

void check_padding(const GatedShape& s) {
  const auto refuse = [](const char* name, int limit, int got) {
    throw std::invalid_argument(std::string(name) + " must lie in [0, " + std::to_string(limit) +
                                "), got " + std::to_string(got));
  };
  if (s.pad_top < 0 || s.pad_top >= s.kernel_h) refuse("pad_top", s.kernel_h, s.pad_top);
  if (s.pad_left < 0 || s.pad_left >= s.kernel_w) refuse("pad_left", s.kernel_w, s.pad_left);
}

// Memory that stays with the calling thread: a fresh page costs more than what is computed in it.
class Arena {
 public:
  // Pieces of the given sizes, each a multiple of 64 bytes apart.
  std::vector<char*> take(const std::vector<size_t>& sizes) {
    size_t total = 0;
    for (const size_t size : sizes) total += round_up(size);
    if (total > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<char*>(::operator new(total, kAlignment)));
      size_ = total;
    }
    std::vector<char*> pieces;
    char* next = memory_.get();
    for (const size_t size : sizes) {
      pieces.push_back(next);
      next += round_up(size);
    }
    return pieces;
  }

  static size_t round_up(size_t size) { return (size + 63) / 64 * 64; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Release {
    void operator()(char* memory) const { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<char, Release> memory_;
  size_t size_ = 0;
};

thread_local Arena arena;

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
  const GatedKernels& kernels = find_kernels(call.shape.storage, instruction_set);
  const int64_t batch = call.shape.batch;
  if (batch == 0) return;
  const int64_t pieces =
      std::clamp<int64_t>(batch * call.shape.height * call.shape.width / kPixels, 1, batch);
  const int64_t workers = std::clamp<int64_t>(threads, 1, pieces);
  const size_t scratch_bytes = Arena::round_up(kernels.scratch_bytes(call.shape));
  const auto memory = arena.take({kernels.packed_bytes(call.shape), scratch_bytes * workers});
  kernels.pack_forward(call, memory[0]);
  parallel_for_each(pieces, static_cast<int>(workers), [&](int64_t piece, int64_t worker) {
    kernels.forward(call, memory[0], batch * piece / pieces, batch * (piece + 1) / pieces,
                    memory[1] + scratch_bytes * worker);
  });
}

void gated_resnet_backward(const GatedCall& call, int threads, const std::string& instruction_set) {
  check_padding(call.shape);
  const GatedKernels& kernels = find_kernels(call.shape.storage, instruction_set);
  const int64_t batch = call.shape.batch;
  const size_t sums_bytes = Arena::round_up(kernels.sums_bytes(call.shape));
  const int64_t groups = count_groups(call.shape, sums_bytes);
  const int64_t workers = std::clamp<int64_t>(threads, 1, std::max<int64_t>(groups, 1));
  // An empty batch has no memory, and so may have any extent.
  const size_t scratch_bytes = batch == 0 ? 0 : Arena::round_up(kernels.scratch_bytes(call.shape));
  const auto memory = arena.take({kernels.packed_bytes(call.shape), scratch_bytes * workers,
                                  sums_bytes * std::max<int64_t>(groups, 1)});
  if (groups > 0) kernels.pack_backward(call, memory[0]);
  parallel_for_each(groups, static_cast<int>(workers), [&](int64_t group, int64_t worker) {
    kernels.backward(call, memory[0], batch * group / groups, batch * (group + 1) / groups,
                     memory[1] + scratch_bytes * worker, memory[2] + sums_bytes * group);
  });
  parallel_for(workers, [&](int64_t part) {
    kernels.add_sums(call.shape, memory[2], sums_bytes, groups, part, workers);
  });
  parallel_for(workers,
               [&](int64_t part) { kernels.write_gradients(call, memory[2], part, workers); });
}

}  // namespace dsmooth
