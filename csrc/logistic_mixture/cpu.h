// The loss on the CPU: what an instruction set offers, and the entry points.
#pragma once

#include <cstdint>
#include <string>

#include "logistic_mixture.h"

namespace dsmooth {

// Work is counted in blocks of up to `lanes` neighbouring pixels of a row. `scratch` holds
// kScratchPerComponent * n_mix + kScratchPerAtom * n_atoms + kScratchFixed vectors of that many
// numbers.
inline constexpr int kScratchPerComponent = 23;  // 3 in the forward; 10 + 10 parameters, gathered
inline constexpr int kScratchPerAtom = 2;        // its logit and the gradient by it, gathered
inline constexpr int kScratchFixed = 12;         // x, gradient by x, log_prob, gradient, state

template <class T>
struct LogisticMixtureKernel {
  int lanes = 0;
  using Run = void (*)(const LogisticMixtureArgs<T>& args, int64_t first_block, int64_t last_block,
                       T* scratch);
  Run forward = nullptr;
  Run backward = nullptr;
};

// exp, exp - 1 and log of `count` numbers, for measuring the errors of vector_math.h.
template <class T>
using ElementaryKernel = void (*)(const T* input, T* exp, T* expm1, T* log, int64_t count);

struct LogisticMixtureKernels {
  LogisticMixtureKernel<float> float32;
  LogisticMixtureKernel<double> float64;
  ElementaryKernel<float> elementary_float32 = nullptr;
  ElementaryKernel<double> elementary_float64 = nullptr;
};

// The forward, or the backward, of all pixels, split over threads. instruction_set: as for
// find_instruction_set.
template <class T>
void logistic_mixture_cpu(const LogisticMixtureArgs<T>& args, bool backward, int threads,
                          const std::string& instruction_set);

template <class T>
void elementary_functions(const T* input, T* exp, T* expm1, T* log, int64_t count,
                          const std::string& instruction_set);

}  // namespace dsmooth
