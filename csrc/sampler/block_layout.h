// How a thread block of the CUDA sampler is laid out: its shared memory, and the batch over blocks.
// Pure functions of sizes and of the device's limits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/host_device.h"
#include "cuda_op.h"
#include "network.h"

namespace dsmooth::sampler {

// Fragments of a warp's tile in a row part: kWide across, and kLow or kTall rows of them.
constexpr int kWide = 2, kLow = 2, kTall = 6;
constexpr int kMostImages = 2 * kRows;  // of a slice

// Parts of a block's shared memory, in bytes from its beginning.
struct SharedLayout {
  int places;       // where the caches of the slice begin, and behind them
  int partials;     // where the waiting sums of each operation do
  int ops;          // the operations, copied
  int rows;         // where the rows of the caches lie that can be read now
  int columns;      // where their columns lie that a pixel part can read
  int near;         // results of the last operations at this pixel, two buffers
  int near_stride;  // of a row in a buffer
  int near_raw;     // of raw_out behind act_out in a row
  int scratch;      // sums of row tiles, each lane's own
  bool tall;        // whether it has room for tall tiles
  int bytes;        // in all

  DSMOOTH_HOST_DEVICE int near_bytes() const { return kMostImages * near_stride; }
};

// Throws std::runtime_error with both numbers if `limit` bytes do not hold it. header: bytes in
// front; act and raw: of the widest results that a pixel part stores.
SharedLayout lay_out_shared(const NetworkView& network, int header, int op_bytes, int act, int raw,
                            int warps, int limit);

// How a batch is shared out: `slices` of at most `largest` images, taken in turn by `blocks`.
struct Sharing {
  int64_t slices;
  int largest;
  int blocks;
};

// Slices for n images on `processors` streaming multiprocessors, one block each, when the caches of
// an image take `image_bytes` of at most `memory` bytes. Each block streams all weights for its
// slice whatever its size, so slices are as few as keep every processor busy; `max_slice` (0: none)
// bounds them. Throws std::runtime_error with both numbers if not even one image fits.
Sharing share(int64_t n, int processors, size_t image_bytes, size_t memory, int max_slice);

}  // namespace dsmooth::sampler
