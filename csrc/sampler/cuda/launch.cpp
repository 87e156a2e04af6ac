// Launches of the CUDA sampler, and errors of the CUDA runtime as exceptions.
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "sampler.h"

namespace dsmooth::sampler {
namespace {

// About 12 ms of MNIST or 80 ms of CIFAR-10, by docs/benchmarks.md.
constexpr int kRowsPerLaunch = 4;

// Advice to the user about an error, or "".
std::string advice_about(cudaError_t status) {
  if (status == cudaErrorNoDevice) return "; this process sees no CUDA device";
  if (status == cudaErrorInsufficientDriver) {
    const int built = CUDART_VERSION;
    int driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
      return "; no NVIDIA driver is installed";
    const auto text = [](int v) {
      return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10);
    };
    return "; the driver knows CUDA " + text(driver) + ", this build needs " + text(built);
  }
  if (status == cudaErrorNoKernelImageForDevice)
    return "; this build has no code for the device: build it there, with its own nvcc";
  return "";
}

// Throws std::runtime_error with CUDA's text. The runtime also keeps the error for the next call
// that asks for the last one, in this thread. So the error is taken out first.
void cuda_check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const std::string text = std::string(what) + ": " + cudaGetErrorString(status);
  const std::string advice = advice_about(status);
  cudaGetLastError();
  throw std::runtime_error(text + advice);
}

// Callers in Python make the device current, and torch the former one again.
void check_current(int device) {
  int current = 0;
  cuda_check(cudaGetDevice(&current), "cudaGetDevice");
  if (current != device)
    throw std::invalid_argument("device " + std::to_string(device) + " must be current, got " +
                                std::to_string(current));
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  cuda_check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}

const void* kernel_of(bool bf16) {
  return reinterpret_cast<const void*>(bf16 ? bfloat16_kernel() : float32_kernel());
}

int launches_of_a_slice(int rows) { return (rows + kRowsPerLaunch - 1) / kRowsPerLaunch; }

}  // namespace

// Attributes belong to the kernel, and other samplers set them too, in any thread. So all of them
// set the most shared memory that the device allows. The carve-out is a hint: the rest is L1, which
// the rows of pixels are read through.
CudaSampler::CudaSampler(Program program, bool bf16, int device)
    : DeviceProgram(std::move(program), bf16), device_(device) {
  processors_ = attribute(cudaDevAttrMultiProcessorCount, device);
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  shared_ = shared(kKernelWarps, limit);
  check_current(device);
  const int all = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  const int of_the_system = attribute(cudaDevAttrReservedSharedMemoryPerBlock, device);
  const int percent = 100 * (shared_.bytes + of_the_system) / all + 1;
  const auto set = [bf16](cudaFuncAttribute what, int value) {
    cuda_check(cudaFuncSetAttribute(kernel_of(bf16), what, value), "cudaFuncSetAttribute");
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
  set(cudaFuncAttributePreferredSharedMemoryCarveout, std::min(percent, 100));
}

int64_t CudaSampler::workspace_words(const Partition& partition, int height, int width) const {
  return partition.workers *
         static_cast<int64_t>(workspace(partition.largest, height, width).words);
}

int64_t CudaSampler::launches(const Partition& partition, int height) const {
  check_size(height, height);
  const int64_t rounds = (partition.slices + partition.workers - 1) / partition.workers;
  return rounds * launches_of_a_slice(network().rows(height));
}

void CudaSampler::sample(const CudaCall& r, int64_t launch) const {
  const int rows = network().rows(r.all.height);
  const int per_slice = launches_of_a_slice(rows);
  const int first = static_cast<int>(launch % per_slice) * kRowsPerLaunch;
  const Workspace needed = workspace(r.partition.largest, r.all.height, r.all.width);
  const int end = std::min(first + kRowsPerLaunch, rows);
  BlockRun run{r, network(), ops(), stages(), shared_, needed, launch / per_slice, first, end};
  check_current(device_);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(r.partition.workers));
  config.blockDim = dim3(kKernelWarps * 32);
  config.dynamicSmemBytes = static_cast<size_t>(shared_.bytes);
  config.stream = static_cast<cudaStream_t>(r.stream);
  void* arguments[] = {&run};
  // The launch's own status is checked, not the thread's last error, which may be another's.
  cuda_check(cudaLaunchKernelExC(&config, kernel_of(network().bf16), arguments),
             "launch of sample_kernel");
}

}  // namespace dsmooth::sampler
