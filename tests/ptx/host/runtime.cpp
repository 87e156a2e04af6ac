// The CUDA runtime of a process without a device: launches go to a function that Python gives, with
// the kernel's name in the PTX, grid, block, shared memory and the addresses of the arguments. Like
// the real runtime, it keeps the last error until someone asks for it.
#include <cuda_runtime.h>

#include <cstddef>
#include <map>
#include <string>
#include <utility>

// The fields that Python sees and sets, as `Played` in cuda_player.py.
struct Played {
  void (*launched)(const char* kernel, const unsigned* grid, const unsigned* block, size_t shared,
                   void** arguments);
  int processors;
  int current;               // of two devices
  const char* failing = "";  // the name of the call that fails, and how
  cudaError_t failure, last_error;
  int carve_out;  // of shared memory, in percent, as it was set last
};

extern "C" {
Played played;
}

namespace {

cudaError_t done(const std::string& name, cudaError_t status = cudaSuccess) {
  if (played.failing == name) status = played.failure;
  if (status != cudaSuccess) played.last_error = status;
  return status;
}

std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> names;
  return names;
}

// The most dynamic shared memory that each kernel may take, in bytes.
std::map<const void*, int> shared_limits;

struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
} pushed;

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared) {
  const auto found = kernels().find(kernel);
  if (found == kernels().end()) return cudaErrorInvalidDeviceFunction;
  const unsigned g[] = {grid.x, grid.y, grid.z}, b[] = {block.x, block.y, block.z};
  played.launched(found->second.c_str(), g, b, shared, arguments);
  return cudaSuccess;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  kernels()[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *static_cast<void**>(stream) = pushed.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared, cudaStream_t) {
  return launch(kernel, grid, block, arguments, shared);
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments,
                             size_t shared, cudaStream_t) {
  return launch(kernel, grid, block, arguments, shared);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                void** arguments) {
  const size_t shared = config->dynamicSmemBytes;
  const bool fits = shared <= static_cast<size_t>(shared_limits[kernel]);
  const auto status = done("cudaLaunchKernelExC", fits ? cudaSuccess : cudaErrorInvalidValue);
  if (status != cudaSuccess) return status;
  return launch(kernel, config->gridDim, config->blockDim, arguments, shared);
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute name, int value) {
  const bool is_limit = name == cudaFuncAttributeMaxDynamicSharedMemorySize;
  (is_limit ? shared_limits[kernel] : played.carve_out) = value;
  return done("cudaFuncSetAttribute");
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int device) {
  *value = name == cudaDevAttrMultiProcessorCount                ? played.processors
           : name == cudaDevAttrMaxSharedMemoryPerMultiprocessor ? 164 << 10
           : name == cudaDevAttrReservedSharedMemoryPerBlock     ? 1 << 10
                                                                 : 163 << 10;
  return done("cudaDeviceGetAttribute", device < 2 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int* device) {
  *device = played.current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return std::exchange(played.last_error, cudaSuccess); }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 12040;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorInvalidDevice ? "invalid device ordinal" : "an error";
}
const char* cudaGetErrorName(cudaError_t) { return "an error"; }

}  // extern "C"
