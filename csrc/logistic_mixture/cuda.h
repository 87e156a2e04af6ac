// The loss on a CUDA device.
#pragma once

#include "logistic_mixture.h"

namespace dsmooth {

// Launches the forward or the backward on `stream` (a cudaStream_t) of `device`, whose memory the
// views point to. Does not wait. Throws std::runtime_error with CUDA's text.
template <class T>
void logistic_mixture_cuda(const LogisticMixtureArgs<T>& args, bool backward, int device,
                           void* stream);

}  // namespace dsmooth
