// Draws images on the CPU: the batch in slices, slices over workers, workers on threads.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "plan.h"

namespace dsmooth::sampler {

struct Request {
  int64_t n;
  Slice all;  // the n images; its batch is not used
  int threads;
  int slice;  // images at most that a worker draws at a time; 0: as suits the caches
};

class CpuSampler {
 public:
  CpuSampler(Program program, const std::string& instruction_set, bool bf16);

  // Fills request.all.out, but for the known pixels. Calls `poll` with the fraction done some ten
  // times a second from the calling thread; if it throws, the workers stop and the exception goes
  // on to the caller. Throws std::bad_alloc if the caches do not fit into memory.
  void sample(const Request& request, const std::function<void(double)>& poll) const;

  const NetworkView& network() const { return plan_.network(); }
  const char* instruction_set() const { return plan_.kernels().instruction_set; }
  size_t bytes_per_image(int height, int width) const {
    return sampler::bytes_per_image(network(), height, width);
  }

 private:
  Plan plan_;
};

}  // namespace dsmooth::sampler
