// How the CUDA worker cuts its work: the tiles of a product in shared memory, and the batch over
// blocks. Pure functions of sizes and of the device's limits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/host_device.h"
#include "network.h"
#include "tensor_core.cuh"

namespace dsmooth::sampler {

DSMOOTH_INLINE int padded_to_fragments(int n) {
  return (n + kFragment - 1) / kFragment * kFragment;
}

constexpr int kStages = 4;            // of the pipeline of copies: 3 groups on their way, 1 in use
constexpr int kFragmentsPerWarp = 8;  // 64 registers of sums per lane
// Columns of a panel at most. A row part has many rows, which want narrow panels; a pixel part has
// the images of a slice, and one wide panel keeps all warps busy.
constexpr int kRowColumns = 128, kPixelColumns = 512;
constexpr int kPixelRows = 32;
constexpr int kMostImages = 32;  // of a slice

// The tile of one part. In shared memory the sums come first, then the stages, each of them
// `rows` x `depth` of activations and `depth` x `columns` of weights. Rows are padded by a granule,
// so that the fragments of a warp fall into different banks.
struct Tile {
  int rows;     // a power of two times 16
  int depth;    // operands in k per stage: 16, 32 or 64
  int columns;  // of the widest panel
  int operand;  // bytes

  DSMOOTH_HOST_DEVICE int a_stride() const { return depth + kGranule / operand; }
  DSMOOTH_HOST_DEVICE int b_stride(int width) const { return width + kGranule / operand; }
  DSMOOTH_HOST_DEVICE int sums_stride(int width) const { return width + 4; }
  DSMOOTH_HOST_DEVICE int sums_bytes() const { return rows * sums_stride(columns) * 4; }
  DSMOOTH_HOST_DEVICE int stage_bytes() const {
    return (rows * a_stride() + depth * b_stride(columns)) * operand;
  }
  DSMOOTH_HOST_DEVICE int bytes() const { return sums_bytes() + kStages * stage_bytes(); }
};

struct SharedLayout {
  Tile row, pixel;
  int table_bytes;  // pointers to caches and partial sums, in front
  int bytes;        // in all

  DSMOOTH_HOST_DEVICE const Tile& tile(Part part) const { return part == Part::kRow ? row : pixel; }
};

// The largest tiles that fit into `limit` bytes of shared memory; columns are those of the widest
// panels of row and pixel parts. Throws std::runtime_error with both numbers if none does.
SharedLayout lay_out_shared(int row_columns, int pixel_columns, int table_bytes, int operand,
                            int limit);

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
