// The check of the loss's tensors against the extents of x.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../common/borrowed.h"
#include "logistic_mixture.h"

namespace dsmooth {

// The tensors of a call, by the names of LogisticMixtureArgs; some are absent.
struct MixtureTensors {
  Borrowed x, params, log_prob, state, grad, grad_x, grad_params;
};

// The kind of the pixels' distribution, apart from its parameters.
struct MixtureSettings {
  std::string likelihood;
  std::vector<int64_t> atoms;
  double smoothing_scale;
};

// The call of the forward, or the backward, after a check of every tensor: shape, dtype, device,
// memory, and that what is written lies apart. T is the type of x. Throws std::invalid_argument,
// which names the tensor or the setting, what was expected and what came.
template <class T>
LogisticMixtureArgs<T> check_mixture_operands(const MixtureTensors& tensors,
                                              const MixtureSettings& settings, bool backward);

}  // namespace dsmooth
