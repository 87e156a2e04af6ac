// Laws of the calls that the sampler makes to the CUDA runtime, on a runtime that is played
// (fake_cuda/cuda_runtime.h): errors, the device, attributes, and which rows are launched when.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../sampler/sampler_cuda.h"
#include "expect.h"
#include "sampler_toy.h"

namespace dsmooth::sampler {
namespace {

// Names for kernels: a launch that is played calls none.
void kernel_bfloat16(BlockRun) { std::puts("bfloat16"); }
void kernel_float32(BlockRun) { std::puts("float32"); }
void completion_bfloat16(BlockRun) { std::puts("bfloat16, known pixels"); }
void completion_float32(BlockRun) { std::puts("float32, known pixels"); }

}  // namespace

SampleKernel float32_kernel(bool completes) {
  return completes ? completion_float32 : kernel_float32;
}
SampleKernel bfloat16_kernel(bool completes) {
  return completes ? completion_bfloat16 : kernel_bfloat16;
}

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

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

void errors_are_said_and_not_left_behind() {
  fake_cuda = {};
  const std::string text = message_of([] { make(100); });
  expect(text == "cudaDeviceGetAttribute: invalid device ordinal", "other words: " + text);
  expect(fake_cuda.last_error == cudaSuccess, "a failed call leaves its error behind");

  fake_cuda = {};
  const CudaSampler sampler = make(0);
  fake_cuda.failing = {{"cudaLaunchKernelExC", cudaErrorNoKernelImageForDevice}};
  const std::string said = message_of([&] { launch_all(sampler, 3); });
  expect(said.find("has no code for the device") != std::string::npos, "no advice: " + said);
  expect(fake_cuda.last_error == cudaSuccess, "a failed launch leaves its error behind");
  fake_cuda.failing.clear();
  fake_cuda.last_error = cudaErrorInvalidValue;  // another's
  launch_all(sampler, 3);
  expect(fake_cuda.last_error == cudaErrorInvalidValue, "another's error is taken");

  fake_cuda = {};
  fake_cuda.failing = {{"cudaDeviceGetAttribute", cudaErrorInsufficientDriver}};
  expect(message_of([] { make(0); }).find("the driver knows CUDA 12.4, this build needs 13.0") !=
             std::string::npos,
         "an old driver is not said");
  fake_cuda.failing = {{"cudaFuncSetAttribute", cudaErrorInvalidValue}};
  expect(message_of([] { make(0); }).starts_with("cudaFuncSetAttribute: "), "an attribute fails");
}

// The rest of a multiprocessor's memory is L1.
void shared_memory_takes_what_a_block_needs() {
  fake_cuda = {};
  launch_all(make(0), 3);
  for (const FakeCuda::Launch& launch : fake_cuda.launches) {
    const int needed = static_cast<int>(launch.config.dynamicSmemBytes) + (1 << 10);
    const int given = (228 << 10) * fake_cuda.carve_out[launch.kernel] / 100;
    expect(given >= needed && given < needed + (228 << 10) / 50, "the carve-out is another");
  }
}

void another_current_device_is_refused() {
  fake_cuda = {};
  const std::string text = "device 1 must be current, got 0";
  expect(message_of([] { make(1); }) == text, "a sampler of another device");
  fake_cuda.current = 1;
  const CudaSampler sampler = make(1);
  launch_all(sampler, 3);
  fake_cuda.current = 0;
  expect(message_of([&] { launch_all(sampler, 3); }) == text, "a launch on another device");
}

// A smaller network's sampler, made between this one's making and its launches, must not take
// shared memory from it.
void samplers_share_a_kernel() {
  fake_cuda = {};
  const CudaSampler large = make(0, 60);
  const CudaSampler small = make(0, 3);
  launch_all(small, 3);
  launch_all(large, 3);
  std::set<size_t> bytes;
  for (const FakeCuda::Launch& launch : fake_cuda.launches) {
    bytes.insert(launch.config.dynamicSmemBytes);
    expect(launch.config.blockDim.x == kKernelWarps * 32 && launch.config.gridDim.x == 3,
           "another shape of a launch");
    expect(launch.kernel == reinterpret_cast<const void*>(kernel_bfloat16), "another kernel");
  }
  expect(bytes.size() == 2, "both take the same shared memory");
}

// Each block draws every row of its slices once, in order.
void launches_cover_the_rows() {
  for (const Conditioning conditioning : {Conditioning::kNone, Conditioning::kStack}) {
    fake_cuda = {};
    const CudaSampler sampler = make(0, 6, conditioning);
    std::vector<std::pair<int64_t, int>> drawn;
    fake_cuda.on_launch = [&](void** arguments) {
      const BlockRun& run = *static_cast<BlockRun*>(arguments[0]);
      expect(run.first_row < run.end_row, "a launch without rows");
      for (int row = run.first_row; row < run.end_row; ++row) drawn.push_back({run.round, row});
    };
    launch_all(sampler, 13);  // 3 processors, slices of 2: 3 rounds
    std::vector<std::pair<int64_t, int>> expected;
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
  shared_memory_takes_what_a_block_needs();
  another_current_device_is_refused();
  samplers_share_a_kernel();
  launches_cover_the_rows();
  std::printf(dsmooth::failures ? "%d failures\n" : "all laws hold\n", dsmooth::failures);
  return dsmooth::failures != 0;
}
