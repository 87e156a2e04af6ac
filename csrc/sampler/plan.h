// A program made ready to run on one instruction set: packed matrices, and where each lies.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "network.h"
#include "packing.h"
#include "program.h"
#include "tile_kernels.h"

namespace dsmooth::sampler {

// Zeroed memory, aligned to a cache line.
class Words {
 public:
  Words() = default;
  explicit Words(size_t count);
  float* data() const { return data_.get(); }
  size_t size() const { return count_; }
  void clear();

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float, Free> data_;
  size_t count_ = 0;
};

// The matrix of the terms of one part of an operation, cut into panels.
struct Matrix {
  std::vector<Panel> panels;
  int columns = 0;  // a multiple of kUnit, at least the outputs
  Words words;
};

struct PlannedOp {
  Matrix row, pixel;  // no panels where there are no terms
  Words bias;         // packed columns
  Words projection;   // of each number of the vector; empty where there is none
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
  const TileKernels& kernels_;
  std::vector<PlannedOp> planned_;
  Skeleton skeleton_;
};

// The memory of the caches of a slice of `batch` images of height x width.
class State {
 public:
  State(const NetworkView& network, int batch, int height, int width);

  void clear(int batch);  // for the next slice, of at most the first batch size
  StateView view() const;

 private:
  NetworkView network_;  // whose own pointers outlive this
  int batch_, height_, width_;
  std::vector<Words> places_;  // as workspace_words counts them
  std::vector<float*> pointers_;
};

}  // namespace dsmooth::sampler
