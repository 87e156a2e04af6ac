// The host side of drawing on a CUDA device: packed weights, slices and the arguments of launches.
// The caller owns all memory and launches the kernels (dsmooth/cuda/driver.py): nothing here calls
// CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "../program/program.h"
#include "block_run.cuh"

namespace dsmooth::sampler {

// A program prepared for a device: one memory image with the views, the biases and the packed
// matrices, to be copied to the device unchanged.
//
// The channels of a tap are padded to whole granules, and a sum to whole steps. The padding is zero
// in caches and weights.
class DeviceProgram {
 public:
  DeviceProgram(Program program, bool bf16);

  size_t bytes() const { return image_.size(); }
  // Writes the image of bytes() for the device address `address`, a multiple of 128. Afterwards
  // network(), ops() and stages() are device addresses. Call it only once: it frees the host's
  // copy.
  void write(void* to, uintptr_t address);
  const NetworkView& network() const { return network_; }
  const CudaOp* ops() const { return ops_; }
  const PixelStage* stages() const { return stages_; }  // in the order of at_pixel

  // The shared memory of a block. Throws std::runtime_error with both numbers if it exceeds `limit`
  // bytes.
  SharedLayout shared(int warps, int limit) const;
  // Bytes of the caches and partial sums of one image.
  size_t bytes_per_image(int height, int width) const {
    return sampler::bytes_per_image(skeleton_.network, height, width);
  }
  // Throws as check_size does, and std::runtime_error if its granules or the words of a cache
  // overflow 32 bits, or an operation's partial sums an int.
  Workspace workspace(int images, int height, int width) const;

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
  int per_granule() const { return kGranule / (network_.bf16 ? 2 : 4); }

  Skeleton skeleton_;
  NetworkView network_;
  std::vector<unsigned char> image_;
  const CudaOp* ops_ = nullptr;
  const PixelStage* stages_ = nullptr;
};

// Slices for n images on `processors` streaming multiprocessors, one block each, when the caches of
// an image take `image_bytes` of at most `memory` bytes. Each block streams all weights for its
// slice, whatever its size, so there are the fewest slices that keep every processor busy;
// `max_slice` (0: none) bounds their size. Throws std::runtime_error with both numbers if `passes`
// images, which are drawn as one, do not fit.
Partition partition_batch(int64_t n, int processors, size_t image_bytes, size_t memory,
                          int max_slice, int passes = 1);

class CudaSampler : public DeviceProgram {
 public:
  // processors and shared_limit: streaming multiprocessors of the device, and the most bytes of
  // shared memory that a block may have. Throws std::runtime_error if the network is too wide.
  CudaSampler(Program program, bool bf16, int device, int processors, int shared_limit)
      : DeviceProgram(std::move(program), bf16),
        device_(device),
        processors_(processors),
        shared_(shared(kKernelWarps, shared_limit)) {}

  int device() const { return device_; }
  int processors() const { return processors_; }
  int shared_bytes() const { return shared_.bytes; }  // of a block
  int64_t workspace_words(const Partition& partition, int height, int width) const;

  // Number of launches that draw a batch: each block draws its slices in order, a few rows per
  // launch, so that no launch takes long. A slice's state stays in the workspace between launches.
  // They must run in order, after the copy of the weights.
  int64_t launches(const Partition& partition, int height) const;
  // The argument of a launch of partition.workers blocks of kKernelWarps warps.
  BlockRun argument(const CudaCall& call, int64_t launch) const;

 private:
  int device_;
  int processors_;
  SharedLayout shared_;
};

}  // namespace dsmooth::sampler
