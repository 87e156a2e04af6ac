// The loss on a CUDA device: one thread a pixel, the function the host tests run as "scalar".
#include <cuda_runtime.h>

#include <algorithm>

#include "../common/cuda_check.h"
#include "cuda.h"
#include "pixel.h"

namespace dsmooth {
namespace {

template <class T, int C, Likelihood kLikelihood, bool kBackward>
__global__ void logistic_mixture_kernel(LogisticMixtureArgs<T> args) {
  const int64_t pixels = args.batch * args.rows * args.cols;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t pixel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; pixel < pixels;
       pixel += step) {
    const int64_t line = pixel / args.cols;
    const int64_t b = line / args.rows, row = line % args.rows, col = pixel % args.cols;
    if constexpr (kBackward) {
      pixel_backward<T, C, kLikelihood>(args, b, row, col);
    } else {
      pixel_forward<T, C, kLikelihood>(args, b, row, col);
    }
  }
}

template <class T, bool kBackward>
auto choose_kernel(const LogisticMixtureArgs<T>& args) {
  return with_constants(args.channels, args.likelihood, [](auto channels, auto likelihood) {
    return &logistic_mixture_kernel<T, decltype(channels)::value, decltype(likelihood)::value,
                                    kBackward>;
  });
}

}  // namespace

template <class T>
void logistic_mixture_cuda(const LogisticMixtureArgs<T>& args, bool backward, int device,
                           void* stream) {
  const int64_t pixels = args.batch * args.rows * args.cols;
  if (pixels == 0) return;
  const DeviceGuard guard(device);
  constexpr int kThreads = 128;
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>((pixels + kThreads - 1) / kThreads, 1 << 20));
  const auto kernel = backward ? choose_kernel<T, true>(args) : choose_kernel<T, false>(args);
  launch(kernel, blocks, kThreads, 0, stream, args, "launch of logistic_mixture_kernel");
}

template void logistic_mixture_cuda<float>(const LogisticMixtureArgs<float>&, bool, int, void*);
template void logistic_mixture_cuda<double>(const LogisticMixtureArgs<double>&, bool, int, void*);

}  // namespace dsmooth
