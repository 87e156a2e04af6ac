// Draws images on the CPU: workers, each a team of threads, draw the slices of the batch.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "../../common/parallel.h"
#include "../program/program.h"
#include "kernels.h"

namespace dsmooth::sampler {

struct CpuCall {
  int64_t n;
  Slice all;  // the n images; its batch is not used
  int threads;
  int slice;  // the most images that a worker draws at a time; 0: CpuSampler::slice
};

// Zeros, up to a whole line.
inline std::vector<Line> zero_words(size_t count) {
  return std::vector<Line>(lines_of(count * sizeof(float)));
}

// A program packed for an instruction set. Pointers into it stay valid when it is moved.
class CpuSampler {
 public:
  CpuSampler(Program program, const std::string& instruction_set, bool bf16);

  // Fills call.all.out, except for the known pixels. Calls `poll` with the fraction done about ten
  // times a second from the calling thread; if it throws, the workers stop and the exception is
  // rethrown to the caller. Throws std::bad_alloc if the caches do not fit into memory.
  void sample(const CpuCall& call, const std::function<void(double)>& poll) const;

  const NetworkView& network() const { return skeleton_.network; }
  const CpuKernels& kernels() const { return kernels_; }
  int slice() const;  // best number of images per worker
  size_t bytes_per_image(int height, int width) const {
    return sampler::bytes_per_image(network(), height, width);
  }

 private:
  using Panels = std::vector<Panel>;

  // Memory that lives as long as the sampler.
  float* keep(size_t words) {
    return reinterpret_cast<float*>(kept_.emplace_back(zero_words(words)).data());
  }
  // The matrix of the terms of one part of an operation, cut into panels; no panels without terms.
  MatrixView pack(const Op& op, Part part, Panels panels);
  // Output o of row r is values[o * rows + r]; packed rows of columns.
  const float* pack_columns(const Op& op, const Panels& panels, const std::vector<float>& values,
                            int rows);

  const CpuKernels& kernels_;
  std::vector<Panels> panels_;
  std::vector<std::vector<Line>> kept_;
  Skeleton skeleton_;
};

}  // namespace dsmooth::sampler
