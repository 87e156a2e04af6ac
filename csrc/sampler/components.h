// The component of a mixture that a uniform picks by the cumulative softmax of the logits.
//
// Few components are taken one after the other. Those of a network that has an atom for every byte
// are taken by blocks: each exponential is computed once and takes the place of its logit, and the
// sum of a block is formed in one order of additions, a tree. So vectors of any width, and lanes
// that share the blocks, give the same bits.
#pragma once

#include <cmath>

#include "../common/host_device.h"
#include "elementary.h"

namespace dsmooth::sampler {

constexpr int kBlock = 16;

DSMOOTH_INLINE int blocks_of(int components) { return (components + kBlock - 1) / kBlock; }

// The component that u picks, one after the other.
DSMOOTH_HOST_DEVICE inline int pick_component(const float* logits, int n, float u,
                                              float temperature) {
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

// The largest logit of a block.
DSMOOTH_HOST_DEVICE inline float top_of_block(const float* logits, int n, int block) {
  const int first = block * kBlock, end = n < first + kBlock ? n : first + kBlock;
  float top = logits[first];
  for (int i = first + 1; i < end; ++i) top = logits[i] > top ? logits[i] : top;
  return top;
}

// Turns the logits of a block to e^((logit - top) / temperature); returns their sum.
DSMOOTH_HOST_DEVICE inline float weigh_block(float* logits, int n, int block, float top,
                                             float temperature) {
  const int first = block * kBlock;
  float sums[kBlock];
  DSMOOTH_DEVICE_UNROLL
  for (int i = 0; i < kBlock; ++i) {
    sums[i] = 0;
    if (first + i < n)
      logits[first + i] = sums[i] = Scalar::exp_negative((logits[first + i] - top) / temperature);
  }
  DSMOOTH_DEVICE_UNROLL
  for (int half = kBlock / 2; half > 0; half /= 2) {
    DSMOOTH_DEVICE_UNROLL
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// The component that u picks by weights in blocks of these sums.
DSMOOTH_HOST_DEVICE inline int pick_by_blocks(const float* weights, const float* sums, int n,
                                              float u) {
  const int blocks = blocks_of(n);
  float total = 0;
  for (int i = 0; i < blocks; ++i) total += sums[i];
  const float threshold = u * total;
  int block = 0;
  float before = 0, next = sums[0];  // weights of the blocks before the picked one, and with it
  while (block < blocks - 1 && threshold >= next) {
    before = next;
    next += sums[++block];
  }
  const int first = block * kBlock, last = (n < first + kBlock ? n : first + kBlock) - 1;
  int component = first;
  for (int i = first; i < last; ++i) {
    before += weights[i];
    component += threshold >= before;
  }
  return component;
}

}  // namespace dsmooth::sampler
