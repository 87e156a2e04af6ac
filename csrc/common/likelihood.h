// The kind of a pixel's distribution, apart from its parameters. For host and device.
#pragma once

namespace dsmooth {

inline constexpr int kBytes = 256;  // values of a discretized sub-pixel

// A density of logistics, their mass in a byte, or a density of Gaussians.
enum class Likelihood { kContinuous, kDiscretized, kGaussian };

}  // namespace dsmooth
