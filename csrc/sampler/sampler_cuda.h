// Draws images on a CUDA device. The caller owns all memory, that of the device too.
#pragma once

#include <cstddef>
#include <cstdint>

#include "block_run.cuh"
#include "device_plan.h"

namespace dsmooth::sampler {

struct CudaRequest {
  int64_t n;
  Slice all;  // the n images, in memory of the device; its batch is not used
  Partition partition;
  float* workspace;  // workspace_bytes(partition), aligned to 128
  void* stream;      // a cudaStream_t of the device
};

// The kernels for a type of operands, with kKernelWarps warps a block. completes: the kernel keeps
// the pixels of a mask and adds biases of images; the other one draws every pixel.
using SampleKernel = void (*)(BlockRun);
SampleKernel float32_kernel(bool completes);   // cuda_float32.cu
SampleKernel bfloat16_kernel(bool completes);  // cuda_bfloat16.cu
constexpr int kKernelWarps = 8;

class CudaSampler {
 public:
  // Reads the limits of the current device. Throws std::runtime_error, in plain words and with
  // CUDA's text, if there is none or if its driver is too old, and if the network is too wide for
  // it; std::invalid_argument if another device is current.
  CudaSampler(Program program, bool bf16, int device);

  int device() const { return device_; }
  const NetworkView& network() const { return plan_.network(); }

  // Size of the image of the weights, 0 when it is written; and its contents, once, for the address
  // where the device will have it.
  size_t weight_bytes() const { return plan_.bytes(); }
  void write_weights(void* to, uintptr_t address) { plan_.write(to, address); }

  size_t bytes_per_image(int height, int width) const {
    return plan_.bytes_per_image(height, width);
  }
  Partition partition(int64_t n, int height, int width, size_t memory, int max_slice) const;
  size_t workspace_bytes(const Partition& partition, int height, int width) const;

  // Number of launches that draw a batch: each block draws one slice after the other, a few rows in
  // each launch, so that none takes long. A slice's state stays in the workspace between launches.
  int64_t launches(const Partition& partition, int height) const;
  // Launches one of them on the stream and returns; they must come in order, and the weights must
  // be on the device by then in the order of the stream. Throws std::runtime_error with CUDA's
  // text.
  void sample(const CudaRequest& request, int64_t launch) const;

 private:
  DevicePlan plan_;
  int device_;
  int processors_;
  SharedLayout shared_;
};

}  // namespace dsmooth::sampler
