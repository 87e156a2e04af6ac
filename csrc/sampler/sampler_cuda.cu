#include <algorithm>
#include <utility>

#include "../common/cuda_check.h"
#include "block_run.cuh"
#include "sampler_cuda.h"

namespace dsmooth::sampler {
namespace {

struct ThreadBlock {
  static constexpr int kWarps = 8, kWarpLanes = 32;
  __device__ int lane() const { return static_cast<int>(threadIdx.x); }
  __device__ void sync() const { __syncthreads(); }
  __device__ unsigned char* shared() const {
    extern __shared__ __align__(128) unsigned char memory[];
    return memory;
  }
};
constexpr int kThreads = ThreadBlock::kWarps * ThreadBlock::kWarpLanes;

// One block a multiprocessor: shared memory holds no second one.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) sample_kernel(const __grid_constant__ BlockRun run) {
  ThreadBlock block;
  run_block<T>(run, static_cast<int>(blockIdx.x), block);
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  cuda_check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

CudaSampler::CudaSampler(Program program, bool bf16, int device)
    : plan_(std::move(program), bf16), device_(device) {
  processors_ = attribute(cudaDevAttrMultiProcessorCount, device);
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  shared_ = lay_out_shared(plan_.row_columns(), plan_.pixel_columns(), table_bytes(plan_.network()),
                           bf16 ? sizeof(Bf16) : sizeof(float), limit);
}

Sharing CudaSampler::share(int64_t n, int height, int width, size_t memory, int max_slice) const {
  return sampler::share(n, processors_, bytes_per_image(height, width), memory, max_slice);
}

size_t CudaSampler::workspace_bytes(const Sharing& sharing, int height, int width) const {
  return static_cast<size_t>(sharing.blocks) *
         plan_.workspace(sharing.largest, height, width).words * sizeof(float);
}

void CudaSampler::sample(const CudaRequest& r) const {
  const BlockRun run{plan_.network(),
                     shared_,
                     r.sharing,
                     r.n,
                     {0, r.height, r.width, r.seed, r.first_index, r.temperature, r.context, r.out},
                     r.workspace,
                     plan_.workspace(r.sharing.largest, r.height, r.width)};
  const auto kernel = plan_.network().bf16 ? sample_kernel<Bf16> : sample_kernel<float>;
  const DeviceGuard guard(device_);
  cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_.bytes),
      "cudaFuncSetAttribute");
  kernel<<<static_cast<unsigned>(r.sharing.blocks), kThreads, static_cast<size_t>(shared_.bytes),
           static_cast<cudaStream_t>(r.stream)>>>(run);
  cuda_check(cudaGetLastError(), "launch of sample_kernel");
}

}  // namespace dsmooth::sampler
