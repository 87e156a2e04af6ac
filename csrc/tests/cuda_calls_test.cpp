// Laws of the calls that the sampler makes to the CUDA runtime, on a runtime that is played
// (fake_cuda/cuda_runtime.h): errors, the device, attributes, and which rows are launched when.
#include <cuda_runtime.h>

#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "../sampler/sampler_cuda.h"
#include "expect.h"
#include "sampler_toy.h"

namespace dsmooth::sampler {
namespace {

// A kernel that no launch calls.
template <class T>
void kernel(BlockRun) {
  std::printf("%zu bytes\n", sizeof(T));
}

}  // namespace

SampleKernel float32_kernel() { return kernel<float>; }
SampleKernel bfloat16_kernel() { return kernel<Bf16>; }

namespace {

constexpr int kHeight = 12, kWidth = 8;

CudaSampler make(int device, int filters = 6, Conditioning conditioning = Conditioning::kNone) {
  return CudaSampler(Toy(filters, 1, conditioning).take(), true, device);
}

void launch_all(const CudaSampler& sampler, int64_t n) {
  const Partition partition = sampler.partition(n, kHeight, kWidth, size_t{1} << 30, 2);
  const Slice all{0, kHeight, kWidth, 1, 0, 1.0f, nullptr, nullptr};
  for (int64_t i = 0; i < sampler.launches(partition, kHeight); ++i)
    sampler.sample({n, all, partition, nullptr, nullptr}, i);
}

// Whether f throws what begins so, and leaves no error behind.
void expect_error(const std::function<void()>& f, const std::string& begin) {
  std::string message;
  try {
    f();
  } catch (const std::exception& error) {
    message = error.what();
  }
  expect(message.starts_with(begin), "\"" + message + "\" instead of \"" + begin + "\"");
  expect(fake_cuda.last_error == cudaSuccess, "a failed call leaves its error behind");
}

void errors_are_said_and_not_left_behind() {
  fake_cuda = {};
  expect_error([] { make(100); }, "cudaDeviceGetAttribute: invalid device ordinal");
  const CudaSampler sampler = make(0);
  fake_cuda.failing = {{"cudaLaunchKernelExC", cudaErrorNoKernelImageForDevice}};
  expect_error([&] { launch_all(sampler, 3); },
               "launch of sample_kernel: an error; this build has no code for the device");
  fake_cuda.failing = {{"cudaDeviceGetAttribute", cudaErrorInsufficientDriver}};
  expect_error([] { make(0); },
               "cudaDeviceGetAttribute: an error; the driver knows CUDA 12.4, "
               "this build needs 13.0");
  fake_cuda.failing = {{"cudaFuncSetAttribute", cudaErrorInvalidValue}};
  expect_error([] { make(0); }, "cudaFuncSetAttribute: ");
  fake_cuda.failing.clear();
  fake_cuda.last_error = cudaErrorInvalidValue;  // another's
  launch_all(sampler, 3);
  expect(fake_cuda.last_error == cudaErrorInvalidValue, "another's error is taken");
}

void another_current_device_is_refused() {
  fake_cuda = {};
  expect_error([] { make(1); }, "device 1 must be current, got 0");
  fake_cuda.current = 1;
  const CudaSampler sampler = make(1);
  launch_all(sampler, 3);
  fake_cuda.current = 0;
  expect_error([&] { launch_all(sampler, 3); }, "device 1 must be current, got 0");
}

// A smaller network's sampler, made between this one's making and its launches, must not take
// shared memory from it. What shared memory does not need is L1.
void samplers_share_a_kernel() {
  fake_cuda = {};
  const CudaSampler large = make(0, 60), small = make(0, 3);
  launch_all(small, 3);
  const int needed = static_cast<int>(fake_cuda.launches[0].config.dynamicSmemBytes) + (1 << 10);
  const int given = (228 << 10) * fake_cuda.carve_out[fake_cuda.launches[0].kernel] / 100;
  expect(given >= needed && given < needed + (228 << 10) / 50, "the carve-out is another");
  launch_all(large, 3);
  for (const FakeCuda::Launch& launch : fake_cuda.launches) {
    expect(launch.config.blockDim.x == kKernelWarps * 32 && launch.config.gridDim.x == 3,
           "another shape of a launch");
    expect(launch.kernel == reinterpret_cast<const void*>(kernel<Bf16>), "another kernel");
  }
  expect(fake_cuda.launches.front().config.dynamicSmemBytes <
             fake_cuda.launches.back().config.dynamicSmemBytes,
         "both take the same shared memory");
}

// Each block draws every row of its slices once, in order.
void launches_cover_the_rows() {
  for (const Conditioning conditioning : {Conditioning::kNone, Conditioning::kStack}) {
    fake_cuda = {};
    std::vector<std::pair<int64_t, int>> drawn, expected;
    fake_cuda.on_launch = [&](void** arguments) {
      const BlockRun& run = *static_cast<BlockRun*>(arguments[0]);
      for (int row = run.first_row; row < run.end_row; ++row) drawn.push_back({run.round, row});
    };
    launch_all(make(0, 6, conditioning), 13);  // 3 processors, slices of 2: 3 rounds
    for (int64_t round = 0; round < 3; ++round)
      for (int row = 0; row < kHeight * (conditioning == Conditioning::kStack ? 2 : 1); ++row)
        expected.push_back({round, row});
    expect(drawn == expected, "rows are left out, drawn twice or out of order");
  }
}

}  // namespace
}  // namespace dsmooth::sampler

int main() {
  using namespace dsmooth::sampler;
  errors_are_said_and_not_left_behind();
  another_current_device_is_refused();
  samplers_share_a_kernel();
  launches_cover_the_rows();
  return dsmooth::report();
}
