// Log-likelihood of images under a mixture of logistics or Gaussians at each pixel, on the CPU, and
// its gradient: the call, and the code of an instruction set. equations.h has the mathematics.
#pragma once

#include <cstdint>
#include <string>

#include "../common/host_device.h"
#include "../common/mixture.h"
#include "../common/tensors.h"

namespace dsmooth {

inline constexpr int kMaxComponents = 1 << 24;  // scratch sizes fit an int64

// The smoothing's own scale sigma, whose square is added to the variance of every Gaussian.
struct Smoothing {
  double log_scale = 0;  // log sigma
  double precision = 1;  // 1 / sigma^2
};

struct Position {
  int64_t b, row, col;  // of a pixel, or the first of a vector's
};

// A (B, channels, H, W) tensor, whose rows may be collapsed to one; strides in elements.
template <class T>
struct Planes {
  T* data = nullptr;
  int64_t stride_b = 0, stride_c = 0, stride_row = 0, stride_col = 1;

  DSMOOTH_INLINE T* at(const Position& p, int64_t channel = 0) const {
    return data + p.b * stride_b + p.row * stride_row + p.col * stride_col + channel * stride_c;
  }
};

template <class T>
struct LogisticMixtureArgs {
  Planes<const T> x;       // (B, C, H, W)
  Planes<const T> params;  // (B, P, H, W)
  Planes<T> log_prob;      // (B, 1, H, W); forward only
  // (B, 4, H, W), see State: written by the forward, read by the backward.
  Planes<T> state;
  Planes<const T> grad;   // (B, 1, H, W): d loss / d log_prob; from here on backward only
  Planes<T> grad_x;       // (B, C, H, W), data is null if not needed
  Planes<T> grad_params;  // (B, P, H, W), data is null if not needed
  int64_t batch = 0, rows = 0, cols = 0, n_mix = 0;
  int channels = 0;
  Likelihood likelihood = Likelihood::kContinuous;
  Smoothing smoothing;  // of kGaussian
  int64_t n_atoms = 0;  // kBytes or 0; 0 except for grey images and kDiscretized

  // Whether f holds for every tensor.
  template <class F>
  DSMOOTH_INLINE bool all(const F& f) const {
    return f(x) && f(params) && f(log_prob) && f(state) && f(grad) && f(grad_x) && f(grad_params);
  }
};

// Sums of a pixel that the forward leaves for the backward: over components and atoms, max and sum
// of exp(logit - max), and of factor * exp(joint - max) with joint = logit - shift + exponent. An
// atom has factor 1, and joint = logit - shift at its byte, else -inf.
enum State { kMaxJoint, kSumJoint, kMaxLogit, kSumLogit, kStateChannels };

// The tensors of a call, named as in LogisticMixtureArgs; some are absent.
struct MixtureTensors {
  Borrowed x, params, log_prob, state, grad, grad_x, grad_params;
};

// The kind of the pixels' distribution, without its parameters.
struct MixtureSettings {
  std::string likelihood;
  bool atoms;  // one for each byte
  double smoothing_scale;
};

// Computes the forward, or with `grad` the backward, of all pixels, divided among threads. First
// checks every tensor: shape, dtype, device, memory, and that no output overlaps another tensor.
// Throws std::invalid_argument with the tensor or setting, the expected value and the actual one.
// instruction_set: as for find_instruction_set.
void run_logistic_mixture(const MixtureTensors& tensors, const MixtureSettings& settings,
                          int threads, const std::string& instruction_set);

// Work is counted in vectors of up to `lanes` neighbouring pixels of a row. `scratch` holds
// kScratchPerComponent * n_mix + kScratchPerAtom * n_atoms + kScratchFixed vectors of `lanes`
// numbers.
inline constexpr int kScratchPerComponent = 23;  // 3 in the forward; 10 + 10 parameters, gathered
inline constexpr int kScratchPerAtom = 2;        // its logit and the gradient by it, gathered
inline constexpr int kScratchFixed = 12;         // x, gradient by x, log_prob, gradient, state

template <class T>
struct MixtureKernel {
  using Run = void (*)(const LogisticMixtureArgs<T>& args, int64_t first, int64_t last, T* scratch);
  int lanes;
  Run forward, backward;
};

struct MixtureKernels {
  MixtureKernel<float> float32;
  MixtureKernel<double> float64;
};

}  // namespace dsmooth
