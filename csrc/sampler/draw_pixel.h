// Draws one pixel from its mixture's parameters (math.md section 3) and writes it to the network's
// cache.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../common/bfloat16.h"
#include "../common/host_device.h"
#include "../common/philox.h"
#include "components.h"
#include "program/views.h"

namespace dsmooth::sampler {

struct Pixel {
  float value[3];
};

constexpr float kMinLogScale = -7.0f;

// The distance from the mean at which a component's distribution function is u.
DSMOOTH_HOST_DEVICE inline float draw_noise(const NetworkView& p, float log_scale, float u,
                                            float temperature) {
  const float scale = expf(log_scale < kMinLogScale ? kMinLogScale : log_scale);
  if (p.likelihood != Likelihood::kGaussian) return scale * temperature * (logf(u) - log1pf(-u));
  const float variance = scale * scale + p.smoothing_scale * p.smoothing_scale;
  return sqrtf(variance) * temperature * ndtri(u);
}

DSMOOTH_HOST_DEVICE inline float snap_to_byte(float x) {
  x = x < -1.0f ? -1.0f : x > 1.0f ? 1.0f : x;
  return nearbyintf((x + 1.0f) * 127.5f) / 127.5f - 1.0f;
}

// The nearest byte to a value; any byte for a NaN.
DSMOOTH_HOST_DEVICE inline int byte_of(float x) {
  const float byte = nearbyintf((x + 1.0f) * 127.5f);
  return byte > 0.0f ? byte < 255.0f ? static_cast<int>(byte) : 255 : 0;
}

// Uses four uniforms: one for the component (an index from n_mix is an atom), one for each colour.
// With groups, params hold the weights of components, and the sums of groups follow the last
// parameter.
DSMOOTH_HOST_DEVICE DSMOOTH_DEVICE_ONCE inline Pixel draw_pixel(const NetworkView& p,
                                                                const float* params, uint64_t seed,
                                                                uint64_t index, uint32_t position,
                                                                float temperature) {
  const int k = p.n_mix, colours = p.image_channels;
  const Stream stream = p.conditioned ? Stream::kSampleConditioned : Stream::kSample;
  const PhiloxWords words =
      philox4x32_10({{position, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                      static_cast<uint32_t>(stream)}},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const int n = k + p.n_atoms;
  const float u = philox_uniform(words.word[0]);
  const int component = p.groups > 0 ? pick_by_groups(params, params + p.n_params, n, u)
                                     : pick_component(params, n, u, temperature);
  Pixel pixel{};
  if (component >= k) {
    pixel.value[0] = static_cast<float>(component - k) / 127.5f - 1.0f;
    return pixel;
  }

  const int per_colour = colours == 1 ? 2 : 3;
  // Parameter `slot` of a colour: 0 mean, 1 log-scale, 2 coefficient (g|r, b|r, b|g by colour).
  const auto parameter = [&](int colour, int slot) {
    return params[n + (colour * per_colour + slot) * k + component];
  };
  for (int c = 0; c < colours; ++c) {
    float mean = parameter(c, 0);
    if (c == 1) mean += tanhf(parameter(0, 2)) * pixel.value[0];
    if (c == 2)
      mean += tanhf(parameter(1, 2)) * pixel.value[0] + tanhf(parameter(2, 2)) * pixel.value[1];
    const float u = philox_uniform(words.word[1 + c]);
    const float x = mean + draw_noise(p, parameter(c, 1), u, temperature);
    pixel.value[c] = p.likelihood == Likelihood::kDiscretized ? snap_to_byte(x) : x;
  }
  return pixel;
}

// Writes the channels of a pixel that every image has: its colours, with two addends also their
// remainders after rounding to bfloat16, and a one.
DSMOOTH_HOST_DEVICE inline void store_pixel(const NetworkView& p, const Pixel& pixel, float* to) {
  const int colours = p.image_channels;
  if (!p.bf16) {
    for (int addend = 0; addend < p.image_addends; ++addend)
      for (int c = 0; c < colours; ++c)
        to[addend * colours + c] = addend == 0 ? pixel.value[c] : 0.0f;
    to[p.image_addends * colours] = 1.0f;
    return;
  }
  bfloat16 channels[8] = {};
  float rest[3] = {pixel.value[0], pixel.value[1], pixel.value[2]};
  for (int addend = 0; addend < p.image_addends; ++addend)
    for (int c = 0; c < colours; ++c) {
      const bfloat16 rounded = to_bfloat16(rest[c]);
      rest[c] -= from_bfloat16(rounded);
      channels[addend * colours + c] = rounded;
    }
  const int ones = p.image_addends * colours;
  channels[ones] = to_bfloat16(1.0f);
  memcpy(to, channels, static_cast<size_t>(ones + 1 + (ones + 1) % 2) * sizeof(bfloat16));
}

// Writes the channels that only the modelled image has: the features of each colour's byte and, if
// a layer sees only that image, colours and one again. Writes zeros unless the image is `known`, as
// in a prompt.
DSMOOTH_HOST_DEVICE DSMOOTH_DEVICE_ONCE inline void store_image_channels(const NetworkView& p,
                                                                         Pixel pixel, bool known,
                                                                         float* to) {
  const int each = p.feature_words;
  DSMOOTH_DEVICE_UNROLL
  for (int c = 0; c < 3; ++c) {
    if (c >= p.image_channels || each == 0) break;
    const float* features = p.features + byte_of(pixel.value[c]) * each;
    for (int i = 0; i < each; ++i) *to++ = known ? features[i] : 0.0f;
  }
  if (!p.image_again) return;
  if (known)
    store_pixel(p, pixel, to);
  else
    for (int i = 0; i < p.pixel_words; ++i) to[i] = 0.0f;
}

}  // namespace dsmooth::sampler
