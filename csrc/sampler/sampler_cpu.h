// Draws images on the CPU: the batch in slices, slices over workers, workers on threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "network.h"
#include "tile_kernels.h"

namespace dsmooth::sampler {

struct CpuCall {
  int64_t n;
  Slice all;  // the n images; its batch is not used
  int threads;
  int slice;  // images at most that a worker draws at a time; 0: as suits the caches
};

// Zeroed memory, aligned to a cache line.
class Words {
 public:
  explicit Words(size_t count) : lines_((count + 15) / 16) {}
  float* data() { return reinterpret_cast<float*>(lines_.data()); }
  void clear() { std::fill(lines_.begin(), lines_.end(), Line{}); }

 private:
  struct alignas(64) Line {
    float word[16];
  };
  std::vector<Line> lines_;
};

// A program packed for an instruction set. Workers and calls share it; the pointers of its network
// stay valid when it is moved.
class CpuSampler {
 public:
  CpuSampler(Program program, const std::string& instruction_set, bool bf16);

  // Fills call.all.out, but for the known pixels. Calls `poll` with the fraction done some ten
  // times a second from the calling thread; if it throws, the workers stop and the exception goes
  // on to the caller. Throws std::bad_alloc if the caches do not fit into memory.
  void sample(const CpuCall& call, const std::function<void(double)>& poll) const;

  const NetworkView& network() const { return skeleton_.network; }
  const TileKernels& kernels() const { return kernels_; }
  size_t bytes_per_image(int height, int width) const {
    return sampler::bytes_per_image(network(), height, width);
  }

 private:
  using Panels = std::vector<Panel>;

  // Memory that lives as long as the sampler.
  float* keep(size_t words) { return words_.emplace_back(words).data(); }
  // The matrix of the terms of one part of an operation, cut into panels; no panels without terms.
  MatrixView pack(const Op& op, Part part, Panels panels);
  // Output o of row r is values[o * rows + r]; packed rows of columns.
  const float* pack_columns(const Op& op, const Panels& panels, const std::vector<float>& values,
                            int rows);

  const TileKernels& kernels_;
  std::vector<Panels> panels_;
  std::vector<Words> words_;
  Skeleton skeleton_;
};

}  // namespace dsmooth::sampler
