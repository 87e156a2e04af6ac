// The kind of a pixel's distribution, without its parameters. For host and device.
#pragma once

namespace dsmooth {

inline constexpr int kBytes = 256;  // values of a discretized sub-pixel

// A density of logistics, the probability of a byte under logistics, or a density of Gaussians.
enum class Likelihood { kContinuous, kDiscretized, kGaussian };

}  // namespace dsmooth
