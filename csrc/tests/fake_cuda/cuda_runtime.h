// The calls of the CUDA runtime that the sampler makes, played on the host: a test sees the
// launches and can let a call fail. Like the real runtime, it keeps the last error of a thread
// until someone asks for it.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrReservedSharedMemoryPerBlock = 111,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
using cudaStream_t = struct CUstream_st*;
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};
#define CUDART_VERSION 13000

struct FakeCuda {
  struct Launch {
    cudaLaunchConfig_t config;
    const void* kernel;
  };

  std::map<std::string, cudaError_t> failing;  // by the name of the call
  int current = 0;                             // of two devices
  cudaError_t last_error = cudaSuccess;
  std::map<const void*, int> shared_limit, carve_out;  // bytes; percent
  std::vector<Launch> launches;
  std::function<void(void** arguments)> on_launch = [](void**) {};

  cudaError_t done(const std::string& name, cudaError_t status) {
    if (failing.count(name)) status = failing[name];
    if (status != cudaSuccess) last_error = status;
    return status;
  }
};
inline FakeCuda fake_cuda;

inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorInvalidDevice ? "invalid device ordinal" : "an error";
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 12040;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return std::exchange(fake_cuda.last_error, cudaSuccess); }
inline cudaError_t cudaGetDevice(int* device) {
  *device = fake_cuda.current;
  return fake_cuda.done("cudaGetDevice", cudaSuccess);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int device) {
  *value = name == cudaDevAttrMultiProcessorCount                ? 3
           : name == cudaDevAttrMaxSharedMemoryPerMultiprocessor ? 228 << 10
           : name == cudaDevAttrReservedSharedMemoryPerBlock     ? 1 << 10
                                                                 : 227 << 10;
  const bool there = device >= 0 && device < 2;
  return fake_cuda.done("cudaDeviceGetAttribute", there ? cudaSuccess : cudaErrorInvalidDevice);
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute name, int value) {
  const bool is_limit = name == cudaFuncAttributeMaxDynamicSharedMemorySize;
  (is_limit ? fake_cuda.shared_limit : fake_cuda.carve_out)[kernel] = value;
  return fake_cuda.done("cudaFuncSetAttribute", cudaSuccess);
}
inline cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                       void** arguments) {
  const bool fits = static_cast<int>(config->dynamicSmemBytes) <= fake_cuda.shared_limit[kernel];
  const cudaError_t status =
      fake_cuda.done("cudaLaunchKernelExC", fits ? cudaSuccess : cudaErrorInvalidValue);
  if (status == cudaSuccess) {
    fake_cuda.launches.push_back({*config, kernel});
    fake_cuda.on_launch(arguments);
  }
  return status;
}
