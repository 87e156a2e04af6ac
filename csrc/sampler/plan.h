// A program made ready to run on one instruction set: packed matrices, and where each lies.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "network.h"
#include "tile_kernels.h"

namespace dsmooth::sampler {

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

// Immutable once made; shared by all workers and calls. A view's pointers stay valid when the plan
// is moved.
class Plan {
 public:
  Plan(Program program, const TileKernels& kernels);
  Plan(const Plan&) = delete;
  Plan(Plan&&) = default;

  const NetworkView& network() const { return skeleton_.network; }
  const TileKernels& kernels() const { return kernels_; }

 private:
  using Panels = std::vector<Panel>;

  // Memory that lives as long as the plan.
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
