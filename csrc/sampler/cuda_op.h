// What the CUDA worker reads of an operation, made by device_plan.cpp.
#pragma once

#include <cstdint>

#include "network.h"
#include "tensor_core.cuh"

namespace dsmooth::sampler {

// The rows of a cache that an operation may read: two above its own to one below.
constexpr int kRowsInReach = 4, kRowAbove = -2;

// A row of a cache, counted in granules: where its first column begins in the workspace, and how
// far it is from one image to the next.
struct RowPlace {
  uint32_t offset, stride;
};

// Where a granule of k lies. The column is the operation's, twice or half as many where the cache
// has twice or half the resolution: (2 column >> halvings) + shift, zeros being column 0.
struct alignas(8) Source {
  uint16_t row;  // of RowPlaces: cache * kRowsInReach + row - kRowAbove
  uint8_t shift, halvings;
  uint32_t within;  // an image, in granules

  DSMOOTH_HOST_DEVICE int in_cache(int column) const { return (2 * column >> halvings) + shift; }
};

// Its own load, of what no kernel writes.
DSMOOTH_INLINE Source load_source(const Source* from) {
  Source source;
#if defined(__CUDA_ARCH__)
  uint32_t low, high;
  asm("ld.global.nc.v2.b32 {%0, %1}, [%2];" : "=r"(low), "=r"(high) : "l"(from));
  source.row = static_cast<uint16_t>(low);
  source.shift = static_cast<uint8_t>(low >> 16);
  source.halvings = static_cast<uint8_t>(low >> 24);
  source.within = high;
#else
  source = *from;
#endif
  return source;
}

DSMOOTH_INLINE PixelOp load_pixel_op(const PixelOp* from) {
#if defined(__CUDA_ARCH__)
  uint32_t word;
  asm("ld.global.nc.b32 %0, [%1];" : "=r"(word) : "l"(from));
  return {static_cast<int16_t>(word), static_cast<int16_t>(word >> 16)};
#else
  return *from;
#endif
}

// The granules of k come in steps of kStepGranules; the last ones may be zeros. Outputs come in
// units of kColumns columns: so many channels, or in a gate A and G of half as many, taken in turn.
// The weights of a unit follow one another, step after step (weight_place). Biases and waiting sums
// have the order of the columns. Arrays of two are those of Part.
struct alignas(16) CudaOp {
  const Granule* weights[2];
  const Source* sources[2];
  const float* bias;
  uint16_t steps[2];
  uint16_t units, channels;
  int16_t residual_in, add, residual_out, act_out, raw_out;  // caches
  uint8_t gate, split, two_parts;
  uint8_t units_per_tile, tiles_across;  // of a row part

  DSMOOTH_HOST_DEVICE int columns() const { return units * kColumns; }
};

}  // namespace dsmooth::sampler
