// One pixel from the parameters of its mixture (math.md section 3), and how it enters the network.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../common/bfloat16.h"
#include "../common/host_device.h"
#include "../common/philox.h"
#include "elementary.h"
#include "network.h"

namespace dsmooth::sampler {

struct Pixel {
  float value[3];
};

// The component that u picks by the cumulative softmax, or, from n_mix on, the atom.
DSMOOTH_HOST_DEVICE inline int draw_component(const NetworkView& p, const float* logits, float u,
                                              float temperature) {
  const int n = p.n_mix + p.n_atoms;
  float top = logits[0];
  for (int i = 1; i < n; ++i) top = logits[i] > top ? logits[i] : top;
  float total = 0;
  for (int i = 0; i < n; ++i) total += std::exp((logits[i] - top) / temperature);
  const float threshold = u * total;
  int component = 0;
  float cumulative = 0;
  for (int i = 0; i < n - 1; ++i) {
    cumulative += std::exp((logits[i] - top) / temperature);
    component += threshold >= cumulative;
  }
  return component;
}

// The distance from the mean at which a component's distribution function is u.
DSMOOTH_HOST_DEVICE inline float draw_noise(const NetworkView& p, float log_scale, float u,
                                            float temperature) {
  const float scale = std::exp(log_scale < -7.0f ? -7.0f : log_scale);
  if (p.likelihood != Likelihood::kGaussian)
    return scale * temperature * (std::log(u) - std::log1p(-u));
  const float variance = scale * scale + p.smoothing_scale * p.smoothing_scale;
  return std::sqrt(variance) * temperature * ndtri(u);
}

DSMOOTH_HOST_DEVICE inline float snap_to_level(float x) {
  x = x < -1.0f ? -1.0f : x > 1.0f ? 1.0f : x;
  return std::nearbyint((x + 1.0f) * 127.5f) / 127.5f - 1.0f;
}

// Four uniforms: the component or atom, then a colour each.
DSMOOTH_HOST_DEVICE DSMOOTH_DEVICE_ONCE inline Pixel draw_pixel(const NetworkView& p,
                                                                const float* params, uint64_t seed,
                                                                uint64_t index, uint32_t position,
                                                                float temperature) {
  const int k = p.n_mix, colours = p.image_channels;
  const Stream stream = p.conditioned ? Stream::kSampleConditioned : Stream::kSample;
  const PhiloxBlock words =
      philox4x32_10({{position, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                      static_cast<uint32_t>(stream)}},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const int component = draw_component(p, params, philox_uniform(words.word[0]), temperature);
  Pixel pixel{};
  if (component >= k) {
    const float level = static_cast<float>(p.atoms[component - k]) / 127.5f - 1.0f;
    for (int c = 0; c < colours; ++c) pixel.value[c] = level;
    return pixel;
  }

  const int per_colour = colours == 1 ? 2 : 3;
  // Parameter `slot` of a colour: 0 mean, 1 log-scale, 2 coefficient (g|r, b|r, b|g by colour).
  const auto parameter = [&](int colour, int slot) {
    return params[k + p.n_atoms + (colour * per_colour + slot) * k + component];
  };
  for (int c = 0; c < colours; ++c) {
    float mean = parameter(c, 0);
    if (c == 1) mean += std::tanh(parameter(0, 2)) * pixel.value[0];
    if (c == 2)
      mean +=
          std::tanh(parameter(1, 2)) * pixel.value[0] + std::tanh(parameter(2, 2)) * pixel.value[1];
    const float u = philox_uniform(words.word[1 + c]);
    const float x = mean + draw_noise(p, parameter(c, 1), u, temperature);
    pixel.value[c] = p.likelihood == Likelihood::kDiscretized ? snap_to_level(x) : x;
  }
  return pixel;
}

// Channels of the image's cache: colours (then, in two parts, what rounding to bfloat16 left of
// them), one.
DSMOOTH_HOST_DEVICE inline void store_pixel(const NetworkView& p, const Pixel& pixel, float* to) {
  const int colours = p.image_channels;
  if (!p.bf16) {
    for (int part = 0; part < p.image_parts; ++part)
      for (int c = 0; c < colours; ++c) to[part * colours + c] = part == 0 ? pixel.value[c] : 0.0f;
    to[p.image_parts * colours] = 1.0f;
    return;
  }
  bfloat16 channels[8] = {};
  float rest[3] = {pixel.value[0], pixel.value[1], pixel.value[2]};
  for (int part = 0; part < p.image_parts; ++part)
    for (int c = 0; c < colours; ++c) {
      const bfloat16 rounded = to_bfloat16(rest[c]);
      rest[c] -= from_bfloat16(rounded);
      channels[part * colours + c] = rounded;
    }
  const int ones = p.image_parts * colours;
  channels[ones] = to_bfloat16(1.0f);
  std::memcpy(to, channels, static_cast<size_t>(ones + 1 + (ones + 1) % 2) * sizeof(bfloat16));
}

}  // namespace dsmooth::sampler
