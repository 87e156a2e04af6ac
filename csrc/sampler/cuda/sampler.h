// The host side of drawing on a CUDA device: packed weights, slices and the arguments of launches.
// The caller owns all memory and launches the kernels (dsmooth/cuda/driver.py): nothing here calls
// CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../program/program.h"
#include "block_run.cuh"

namespace dsmooth::sampler {

// About 12 ms of MNIST or 80 ms of CIFAR-10, by docs/kernels.md.
constexpr int kRowsPerLaunch = 4;

// A device, and how the kernel uses it: one block per streaming multiprocessor.
struct Card {
  int processors;
  int shared_limit;  // the most bytes of shared memory that a block may have
  int rows_per_launch = kRowsPerLaunch;
  int warps = kKernelWarps;  // of a block
  int device = 0;
};

// n images in slices, and the launches that draw them: each block draws its slices in order, a few
// rows per launch, so that no launch takes long. A slice's state stays in the workspace between
// launches. They must run in order, after the copy of the weights.
struct CudaPlan {
  int64_t n;
  int height, width, passes;
  Partition partition;
  Workspace workspace;  // of a block
  int64_t launches;

  int64_t workspace_words() const {
    return partition.workers * static_cast<int64_t>(workspace.words);
  }
};

// A program prepared for a device: one memory image with the views, the biases and the packed
// matrices, to be copied to the device unchanged.
//
// The channels of a tap are padded to whole granules, and a sum to whole steps. The padding is zero
// in caches and weights.
class CudaSampler {
 public:
  // Throws std::runtime_error with both numbers if a block needs more shared memory than it may
  // have.
  CudaSampler(Program program, bool bf16, const Card& card);

  size_t bytes() const { return image_.size(); }
  // Writes the image of bytes() for the device address `address`, a multiple of 128. Afterwards
  // network() has device addresses. Call it only once: it frees the host's copy.
  void write(void* to, uintptr_t address);
  const Card& card() const { return card_; }
  const NetworkView& network() const { return network_; }
  const SharedLayout& shared() const { return shared_; }  // of a block
  // Bytes of the caches and partial sums of one image.
  size_t bytes_per_image(int height, int width) const {
    return sampler::bytes_per_image(skeleton_.network, height, width);
  }

  // memory, max_slice: as for partition_batch. Throws as check_size and partition_batch do, and
  // std::runtime_error if granules or the words of a cache overflow 32 bits, or an operation's
  // partial sums an int.
  CudaPlan plan(int64_t n, int height, int width, size_t memory, int max_slice, int passes) const;
  // The argument of a launch for the images `all`, whose batch is not used. memory: the workspace.
  BlockRun argument(const CudaPlan& plan, const Slice& all, float* memory, int64_t launch) const;

 private:
  // Appends an array and returns its offset in the image, as a pointer. Pointers in the image are
  // also offsets until it is written.
  template <class T>
  const T* append(const std::vector<T>& values);
  template <class F>
  void each_granule(const std::vector<const Term*>& terms, F f) const;
  MatrixView pack(const Op& op, Part part, CudaOp& to);
  std::vector<Source> sources(const Op& op, const std::vector<const Term*>& terms) const;
  // before: the previous operation at a pixel, or null.
  std::vector<PixelSource> pixel_sources(const Op& op, const OpView* before) const;
  std::vector<PixelStage> list_stages(const Program& program);
  // Bytes of the widest results that a pixel part stores for an image.
  int widest(int OpView::* cache) const;
  SharedLayout lay_out() const;
  Workspace workspace(int images, int height, int width) const;
  int launches_per_slice(int height) const;
  int per_granule() const { return kGranule / (network_.bf16 ? 2 : 4); }

  const Card card_;
  Skeleton skeleton_;
  NetworkView network_;
  std::vector<unsigned char> image_;
  const CudaOp* ops_ = nullptr;
  const PixelStage* stages_ = nullptr;  // in the order of at_pixel
  SharedLayout shared_;
};

// Slices for n images on `processors` streaming multiprocessors, one block each, when the caches of
// an image take `image_bytes` of at most `memory` bytes. Each block streams all weights for its
// slice, whatever its size, so there are the fewest slices that keep every processor busy;
// `max_slice` (0: none) bounds their size. Throws std::runtime_error with both numbers if `passes`
// images, which are drawn as one, do not fit.
Partition partition_batch(int64_t n, int processors, size_t image_bytes, size_t memory,
                          int max_slice, int passes = 1);

}  // namespace dsmooth::sampler
