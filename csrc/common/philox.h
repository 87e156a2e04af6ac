// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (2011). Noise is a function of (key, counter): no state, the same numbers on host and
// device.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace dsmooth {

// Streams used in C++: the low byte of the counter's last word. dsmooth/philox.py has all streams.
enum class Stream : uint32_t { kSample = 0, kSampleConditioned = 1, kDropout = 5 };

struct PhiloxWords {
  uint32_t word[4];
};

DSMOOTH_HOST_DEVICE constexpr PhiloxWords philox4x32_10(PhiloxWords counter, uint32_t key0,
                                                        uint32_t key1) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = kMultiplier0 * counter.word[0];
    const uint64_t product1 = kMultiplier1 * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// u = ((word >> 9) + 1/2) * 2^-23: exact in float32, symmetric about 1/2, never 0 or 1.
DSMOOTH_HOST_DEVICE constexpr float philox_uniform(uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f;
}

}  // namespace dsmooth
