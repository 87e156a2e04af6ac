// One pixel from the parameters of its mixture (math.md section 3), and how it enters the network.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../host_device.h"
#include "../philox.h"
#include "elementary.h"
#include "network.h"

namespace dsmooth::sampler {

struct Pixel {
  float value[3];
};

// Four uniforms: the component by the cumulative softmax, then mean + scale * logit(u) per colour.
DSMOOTH_HOST_DEVICE inline Pixel draw_pixel(const NetworkView& p, const float* params,
                                            uint64_t seed, uint64_t index, uint32_t position,
                                            float temperature) {
  const int k = p.n_mix, colours = p.image_channels;
  const PhiloxBlock words =
      philox4x32_10({{position, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                      p.conditioned ? 1u : 0u}},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));

  float top = params[0];
  for (int i = 1; i < k; ++i) top = params[i] > top ? params[i] : top;
  float total = 0;
  for (int i = 0; i < k; ++i) total += std::exp((params[i] - top) / temperature);
  const float threshold = philox_uniform(words.word[0]) * total;
  int component = 0;
  float cumulative = 0;
  for (int i = 0; i < k - 1; ++i) {
    cumulative += std::exp((params[i] - top) / temperature);
    component += threshold >= cumulative;
  }

  const int per_colour = colours == 1 ? 2 : 3;
  // Parameter `slot` of a colour: 0 mean, 1 log-scale, 2 coefficient (g|r, b|r, b|g by colour).
  const auto parameter = [&](int colour, int slot) {
    return params[k + (colour * per_colour + slot) * k + component];
  };
  Pixel pixel{};
  for (int c = 0; c < colours; ++c) {
    float mean = parameter(c, 0);
    if (c == 1) mean += std::tanh(parameter(0, 2)) * pixel.value[0];
    if (c == 2)
      mean +=
          std::tanh(parameter(1, 2)) * pixel.value[0] + std::tanh(parameter(2, 2)) * pixel.value[1];
    const float log_scale = parameter(c, 1);
    const float scale = std::exp(log_scale < -7.0f ? -7.0f : log_scale) * temperature;
    const float u = philox_uniform(words.word[1 + c]);
    float x = mean + scale * (std::log(u) - std::log1p(-u));
    if (p.discretized) {
      x = x < -1.0f ? -1.0f : x > 1.0f ? 1.0f : x;
      x = std::nearbyint((x + 1.0f) * 127.5f) / 127.5f - 1.0f;
    }
    pixel.value[c] = x;
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
  uint16_t channels[8] = {};
  float rest[3] = {pixel.value[0], pixel.value[1], pixel.value[2]};
  for (int part = 0; part < p.image_parts; ++part)
    for (int c = 0; c < colours; ++c) {
      const uint16_t rounded = scalar::round_bf16(rest[c]);
      const uint32_t bits = static_cast<uint32_t>(rounded) << 16;
      float back;
      std::memcpy(&back, &bits, sizeof back);
      rest[c] -= back;
      channels[part * colours + c] = rounded;
    }
  const int ones = p.image_parts * colours;
  channels[ones] = 0x3F80;  // 1
  std::memcpy(to, channels, static_cast<size_t>(ones + 1 + (ones + 1) % 2) * sizeof(uint16_t));
}

}  // namespace dsmooth::sampler
