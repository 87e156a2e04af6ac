#include <algorithm>
#include <utility>

#include "../common/cuda_check.h"
#include "sampler_cuda.h"

namespace dsmooth::sampler {
namespace {

// About 9 ms of MNIST or 140 ms of CIFAR-10, by docs/sampler.md.
constexpr int kRowsPerLaunch = 4;

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  cuda_check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}

// Rows to draw, those of a prompt above the image included.
int rows_of(const NetworkView& network, int height) {
  return network.stacked() ? 2 * height : height;
}

int launches_of_a_slice(int rows) { return (rows + kRowsPerLaunch - 1) / kRowsPerLaunch; }

}  // namespace

// The attribute belongs to the kernel, not to the launch, and other samplers set it too, in any
// thread: all of them set the most that the device allows.
CudaSampler::CudaSampler(Program program, bool bf16, int device)
    : plan_(std::move(program), bf16), device_(device) {
  processors_ = attribute(cudaDevAttrMultiProcessorCount, device);
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  shared_ = plan_.shared(sizeof(BlockHead), kKernelWarps, limit);
  const DeviceGuard guard(device);
  for (const SampleKernel kernel : {sample_kernel(bf16), completion_kernel(bf16)})
    cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, limit),
               "cudaFuncSetAttribute");
}

Sharing CudaSampler::share(int64_t n, int height, int width, size_t memory, int max_slice) const {
  return sampler::share(n, processors_, bytes_per_image(height, width), memory, max_slice);
}

size_t CudaSampler::workspace_bytes(const Sharing& sharing, int height, int width) const {
  return static_cast<size_t>(sharing.blocks) *
         plan_.workspace(sharing.largest, height, width).words * sizeof(float);
}

int64_t CudaSampler::launches(const Sharing& sharing, int height) const {
  const int64_t rounds = (sharing.slices + sharing.blocks - 1) / sharing.blocks;
  return rounds * launches_of_a_slice(rows_of(plan_.network(), height));
}

void CudaSampler::sample(const CudaRequest& r, int64_t launch) const {
  const int rows = rows_of(plan_.network(), r.all.height);
  const int per_slice = launches_of_a_slice(rows);
  const int first = static_cast<int>(launch % per_slice) * kRowsPerLaunch;
  const BlockRun run{plan_.network(),
                     plan_.ops(),
                     plan_.stages(),
                     shared_,
                     r.sharing,
                     r.n,
                     r.all,
                     r.workspace,
                     plan_.workspace(r.sharing.largest, r.all.height, r.all.width),
                     launch / per_slice,
                     first,
                     std::min(first + kRowsPerLaunch, rows)};
  const bool bf16 = plan_.network().bf16;
  const DeviceGuard guard(device_);
  dsmooth::launch(r.all.mask || r.all.condition ? completion_kernel(bf16) : sample_kernel(bf16),
                  static_cast<unsigned>(r.sharing.blocks), kKernelWarps * 32,
                  static_cast<size_t>(shared_.bytes), r.stream, run, "launch of sample_kernel");
}

}  // namespace dsmooth::sampler
