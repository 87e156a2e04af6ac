// Checks of a pixel's distribution, for the loss and the sampler.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

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
// bytes, only for kDiscretized. smoothing_scale: only for kGaussian.
template <class Byte>
void check_mixture(Likelihood likelihood, const std::vector<Byte>& atoms, double smoothing_scale) {
  if (!atoms.empty() && likelihood != Likelihood::kDiscretized)
    throw std::invalid_argument("atoms need likelihood discretized");
  bool seen[kBytes] = {};
  for (const Byte byte : atoms) {
    if (byte < 0 || byte >= kBytes || seen[byte])
      throw std::invalid_argument("atoms must be distinct bytes 0 .. 255, got " +
                                  std::to_string(byte));
    seen[byte] = true;
  }
  if (likelihood == Likelihood::kGaussian &&
      !(std::isfinite(smoothing_scale) && smoothing_scale > 0))
    throw std::invalid_argument("smoothing_scale must be positive and finite, got " +
                                std::to_string(smoothing_scale));
}

}  // namespace dsmooth
