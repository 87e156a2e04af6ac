// Errors of the CUDA runtime as exceptions, and the current device for a scope.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace dsmooth {

// What a user can do about an error, or nothing.
inline std::string cuda_advice(cudaError_t status) {
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

inline void cuda_check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status) +
                             cuda_advice(status));
}

// Makes a device current, and the former one again at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    cuda_check(cudaGetDevice(&previous_), "cudaGetDevice");
    cuda_check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

}  // namespace dsmooth
