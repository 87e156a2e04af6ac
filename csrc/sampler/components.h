// Selects the component of a mixture for a uniform, by the cumulative softmax of the logits.
//
// A few components are processed one by one. With an atom for every byte they are processed in
// groups: each exponential is computed once and replaces its logit. The sum of a group is a tree of
// additions, so that vectors of any width, and any number of lanes, give the same bits.
#pragma once

#include <cmath>

#include "../common/host_device.h"
#include "elementary.h"

namespace dsmooth::sampler {

constexpr int kGroupSize = 16;

DSMOOTH_INLINE int groups_of(int components) { return (components + kGroupSize - 1) / kGroupSize; }

// The component that u selects, processing them one by one.
DSMOOTH_HOST_DEVICE inline int pick_component(const float* logits, int n, float u,
                                              float temperature) {
  float top = logits[0];
  for (int i = 1; i < n; ++i) top = logits[i] > top ? logits[i] : top;
  float total = 0;
  for (int i = 0; i < n; ++i) total += expf((logits[i] - top) / temperature);
  const float threshold = u * total;
  int component = 0;
  float cumulative = 0;
  for (int i = 0; i < n - 1; ++i) {
    cumulative += expf((logits[i] - top) / temperature);
    component += threshold >= cumulative;
  }
  return component;
}

// The largest logit of a group.
DSMOOTH_HOST_DEVICE inline float top_of_group(const float* logits, int n, int group) {
  const int first = group * kGroupSize, end = n < first + kGroupSize ? n : first + kGroupSize;
  float top = logits[first];
  for (int i = first + 1; i < end; ++i) top = logits[i] > top ? logits[i] : top;
  return top;
}

// Replaces the logits of a group by e^((logit - top) / temperature); returns their sum.
DSMOOTH_HOST_DEVICE inline float weigh_group(float* logits, int n, int group, float top,
                                             float temperature) {
  const int first = group * kGroupSize;
  float sums[kGroupSize];
  DSMOOTH_DEVICE_UNROLL
  for (int i = 0; i < kGroupSize; ++i) {
    sums[i] = 0;
    if (first + i < n)
      logits[first + i] = sums[i] = Scalar::exp_negative((logits[first + i] - top) / temperature);
  }
  DSMOOTH_DEVICE_UNROLL
  for (int half = kGroupSize / 2; half > 0; half /= 2) {
    DSMOOTH_DEVICE_UNROLL
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// The component that u selects, given weights in groups and the groups' sums.
DSMOOTH_HOST_DEVICE inline int pick_by_groups(const float* weights, const float* sums, int n,
                                              float u) {
  const int groups = groups_of(n);
  float total = 0;
  for (int i = 0; i < groups; ++i) total += sums[i];
  const float threshold = u * total;
  int group = 0;
  float before = 0, next = sums[0];  // total weight before and including the selected group
  while (group < groups - 1 && threshold >= next) {
    before = next;
    next += sums[++group];
  }
  const int first = group * kGroupSize,
            last = (n < first + kGroupSize ? n : first + kGroupSize) - 1;
  int component = first;
  for (int i = first; i < last; ++i) {
    before += weights[i];
    component += threshold >= before;
  }
  return component;
}

}  // namespace dsmooth::sampler
