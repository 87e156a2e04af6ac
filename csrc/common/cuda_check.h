// Errors of the CUDA runtime as exceptions, the current device for a scope, and launches.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace dsmooth {

// Advice to the user about an error, or "".
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

// Throws std::runtime_error with CUDA's text. The runtime keeps an error for whoever asks for the
// last one, which would be the next launch of anyone in this thread: it is taken out first.
inline void cuda_check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const std::string text = std::string(what) + ": " + cudaGetErrorString(status);
  const std::string advice = cuda_advice(status);
  cudaGetLastError();
  throw std::runtime_error(text + advice);
}

// Makes a device current, and the former one again at the end of the scope. Does neither where it
// is current already: either would make a context on a device that nobody uses. Callers in Python
// make it current themselves, as torch restores a device without making a context there.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    int current = 0;
    cuda_check(cudaGetDevice(&current), "cudaGetDevice");
    if (current == device) return;
    cuda_check(cudaSetDevice(device), "cudaSetDevice");
    former_ = current;
  }
  ~DeviceGuard() {
    if (former_ >= 0) cudaSetDevice(former_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int former_ = -1;
};

// Launches a kernel of one argument on the current device. Its own status is checked, not the
// thread's last error, which may be another's.
template <class Argument>
void launch(void (*kernel)(Argument), unsigned blocks, unsigned threads, size_t shared_bytes,
            void* stream, Argument argument, const char* what) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  void* arguments[] = {&argument};
  cuda_check(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments), what);
}

}  // namespace dsmooth
