// Views of a program, and the order of packed weights, for the plans of all devices.
#pragma once

#include <vector>

#include "network.h"
#include "program.h"

namespace dsmooth::sampler {

// The views of a program, without its matrices. Pointers go to the vectors and survive a move.
struct Skeleton {
  std::vector<CacheView> caches;
  std::vector<TermSpec> terms;
  std::vector<OpView> ops;
  std::vector<PixelOp> at_pixel;
  NetworkView network{};

  Skeleton() = default;
  // The program's operations must be in the order of their phases. The words of an image are padded
  // to a multiple of `stride_words`.
  Skeleton(const Program& program, bool bf16, int stride_words);
  Skeleton(Skeleton&&) = default;
  Skeleton& operator=(Skeleton&&) = default;

  // Gives an operation, whose matrices are there, its packed projection.
  void add_projection(size_t op, const float* projection);
};

// Checks a program and brings its operations into the order of their phases.
Program checked_by_phase(Program program);

// The terms of one part of an operation; outside the horizontal stream there is one part only.
std::vector<const Term*> terms_of(const Op& op, Part part);

// Bytes of the caches and waiting sums of one image.
size_t bytes_per_image(const NetworkView& network, int height, int width);

}  // namespace dsmooth::sampler
