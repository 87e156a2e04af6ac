// Checks of a pixel's distribution, for the loss and the sampler.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "likelihood.h"

namespace dsmooth {

// Throws std::invalid_argument for another name.
inline Likelihood likelihood_named(const std::string& name) {
  if (name == "continuous") return Likelihood::kContinuous;
  if (name == "discretized") return Likelihood::kDiscretized;
  if (name == "gaussian") return Likelihood::kGaussian;
  throw std::invalid_argument("likelihood must be one of continuous, discretized, gaussian, got " +
                              name);
}

// Throws std::invalid_argument, naming the setting, if the settings contradict each other. atoms:
// only for kDiscretized and grey images. smoothing_scale: only for kGaussian.
inline void check_mixture(Likelihood likelihood, bool atoms, double smoothing_scale,
                          int64_t image_channels) {
  if (atoms && (likelihood != Likelihood::kDiscretized || image_channels != 1))
    throw std::invalid_argument("atoms need likelihood discretized and grey images");
  if (likelihood == Likelihood::kGaussian &&
      !(std::isfinite(smoothing_scale) && smoothing_scale > 0))
    throw std::invalid_argument("smoothing_scale must be positive and finite, got " +
                                std::to_string(smoothing_scale));
}

}  // namespace dsmooth
