// The data of the CUDA worker, created by sampler.cpp: operations, addresses, the layout of
// a block's shared memory; and the addresses of everything that a product reads and writes.
//
// A Block provides to its lanes: Block::kWarps and Block::kWarpLanes, powers of two, lane(), sync()
// and shared(), the memory that they share. On the device it is a thread block (block_run.cuh);
// tests emulate it on the host. It may be copied.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../program/views.h"
#include "tensor_core.cuh"

namespace dsmooth::sampler {

// The rows of a cache that an operation may read: two above its own to one below.
constexpr int kRowsInReach = 4, kRowAbove = -2;

// A row of a cache, or a column in it, in granules: its offset in the workspace, and the distance
// from one image to the next.
struct RowAddress {
  uint32_t offset, stride;
};

// Index of a column that a pixel part may read: the pixel's own of each cache, and the one to its
// left. Index 0 means no column: its address is {0, 0}.
DSMOOTH_INLINE int own_column(int cache) { return 2 * cache + 2; }  // 0 of kNone
DSMOOTH_INLINE int left_column(int cache) { return 2 * cache + 1; }

// The address of a granule of k. Its column is the operation's, doubled or halved where the cache's
// resolution is: (2 column >> halvings) + shift. Column 0 is zeros.
struct alignas(8) Source {
  uint16_t row;  // of RowAddresses: cache * kRowsInReach + row - kRowAbove
  uint8_t shift, halvings;
  uint32_t within;  // an image, in granules

  DSMOOTH_HOST_DEVICE int in_cache(int column) const { return (2 * column >> halvings) + shift; }
};

// The address of a granule of k for a pixel part: in a column of a cache, `within` granules from
// the beginning of an image; or in shared memory, if the operation before has just written it
// there. Both are halves of one word: two fields would be split right after the load, which would
// wait for it.
struct alignas(8) PixelSource {
  uint32_t column_and_near;
  uint32_t within;

  PixelSource() = default;
  PixelSource(int column, int near, uint32_t within)
      : column_and_near(static_cast<uint32_t>(column) | static_cast<uint32_t>(near) << 16),
        within(within) {}
  // own_column or left_column.
  DSMOOTH_HOST_DEVICE int column() const { return static_cast<int>(column_and_near & 0xffff); }
  // Granules of a row of near(), or kNone.
  DSMOOTH_HOST_DEVICE int near() const { return static_cast<int>(column_and_near) >> 16; }
};

// A pixel part multiplies its steps in windows. Windows are padded with null sources.
constexpr int kWindow = 8;

// An operation at a pixel. Its sources depend on the operation before it.
struct alignas(16) PixelStage {
  const PixelSource* sources;
  int32_t op, resolution;
};

// Loads from memory that no kernel writes.
template <class T>
DSMOOTH_INLINE T load_constant(const T* from) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 8) {
    struct {
      uint32_t low, high;
    } bits;
    asm("ld.global.nc.v2.b32 {%0, %1}, [%2];" : "=r"(bits.low), "=r"(bits.high) : "l"(from));
    return __builtin_bit_cast(T, bits);
  } else {
    struct {
      uint32_t word[4];
    } bits;
    asm("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
        : "=r"(bits.word[0]), "=r"(bits.word[1]), "=r"(bits.word[2]), "=r"(bits.word[3])
        : "l"(from));
    return __builtin_bit_cast(T, bits);
  }
#else
  return *from;
#endif
}

// The granules of k come in steps of kStepGranules; the last ones may be zeros. Outputs come in
// units of kColumns columns; in a gate A and G of a channel are neighbours. The weights of a unit
// follow one another, step after step (weight_offset). Biases and partial sums are in the order of
// the columns. Part is the index of an array of two.
struct alignas(16) CudaOp {
  const Granule* weights[2];
  const Source* sources[2];
  const float* bias;  // in the shared copy, the slice's image biases if `projected`
  // Initial values of the pixel part's sums at column 0 and image 0, bias or row part, and floats
  // from one image to the next. A block sets them (block_run.cuh).
  const float* begin;
  int32_t begin_stride;
  uint16_t steps[2];
  uint16_t units, channels;
  uint16_t tiles_across;  // of a row part
  // Caches; `added` to the sums is a gate's residual, or another summand.
  int16_t added, residual_out, act_out, raw_out;
  uint8_t gate, split, two_parts;
  uint8_t units_per_tile;  // of a row part
  uint8_t projected;       // whether the sums of a row start from image biases

  DSMOOTH_HOST_DEVICE int columns() const { return units * kColumns; }
  DSMOOTH_HOST_DEVICE bool is_even() const { return channels % 2 == 0; }
};

// Fragments of a warp's tile in a row part: kWide across, and kLow or kTall rows of them.
constexpr int kWide = 2, kLow = 2, kTall = 6;
constexpr int kMostImages = 2 * kRows;  // of a slice

// Areas of a block's shared memory, in bytes from its beginning.
struct SharedLayout {
  int addresses;    // addresses of the slice's caches, and past their end
  int partials;     // addresses of the partial sums of each operation
  int ops;          // the operations, copied
  int rows;         // addresses of the caches' rows in reach
  int columns;      // addresses of the columns that a pixel part can read
  int near;         // results of the last operations at this pixel, two buffers
  int near_stride;  // of a row in a buffer
  int near_raw;     // from act_out to raw_out in a row
  int scratch;      // sums of row tiles, each lane's own
  bool tall;        // whether there is space for tall tiles
  int bytes;        // in total

  DSMOOTH_HOST_DEVICE int near_bytes() const { return kMostImages * near_stride; }
};

// The start of a block's shared memory.
struct BlockHead {
  StateView state;
  SharedLayout layout;
  const PixelStage* stages;
  unsigned char* base;  // of the workspace, which begins with zeros
};

// Words of memory that a block needs: first zeros, read as padding, then the caches, then the
// partial sums.
struct Workspace {
  size_t words, cache_words;
};
constexpr size_t kZeroWords = 32;

template <class Block>
class BlockMemory {
 public:
  // Copies the addresses once.
  DSMOOTH_HOST_DEVICE explicit BlockMemory(const Block& block)
      : block_(block),
        layout_(head_of(block).layout),
        base_(head_of(block).base),
        batch_(head_of(block).state.batch),
        warp_(same_in_warp(block.lane() / Block::kWarpLanes)) {}

  DSMOOTH_HOST_DEVICE static BlockHead& head_of(const Block& block) {
    return *reinterpret_cast<BlockHead*>(block.shared());
  }
  DSMOOTH_HOST_DEVICE BlockHead& head() const { return head_of(block_); }
  DSMOOTH_HOST_DEVICE const SharedLayout& layout() const { return layout_; }
  DSMOOTH_HOST_DEVICE int batch() const { return batch_; }
  DSMOOTH_HOST_DEVICE float** addresses() const { return at<float*>(layout_.addresses); }
  DSMOOTH_HOST_DEVICE CudaOp* ops() const { return at<CudaOp>(layout_.ops); }
  DSMOOTH_HOST_DEVICE RowAddress* rows() const { return at<RowAddress>(layout_.rows); }
  DSMOOTH_HOST_DEVICE RowAddress* columns() const { return at<RowAddress>(layout_.columns); }
  DSMOOTH_HOST_DEVICE unsigned char* near() const { return at<unsigned char>(layout_.near); }
  // This lane's own pairs are at i * kLanes.
  DSMOOTH_HOST_DEVICE Pair* scratch() const { return at<Pair>(layout_.scratch) + block_.lane(); }

  static constexpr int kLanes = Block::kWarps * Block::kWarpLanes;
  DSMOOTH_HOST_DEVICE int warp() const { return warp_; }
  DSMOOTH_HOST_DEVICE int lane() const { return block_.lane() % Block::kWarpLanes; }

  // A column of the current row of a cache; {0, 0} of kNone.
  DSMOOTH_HOST_DEVICE RowAddress column_of(int cache, int column) const {
    if (cache == kNone) return {0, 0};
    const RowAddress row = rows()[cache * kRowsInReach - kRowAbove];
    const uint32_t image = static_cast<uint32_t>((column + 1) * batch());
    return {row.offset + image * row.stride, row.stride};
  }
  DSMOOTH_HOST_DEVICE unsigned char* granule(uint32_t i) const {
    return base_ + static_cast<size_t>(i) * kGranule;
  }

  // The partial sums between the parts of each operation.
  DSMOOTH_HOST_DEVICE float** partials() const { return at<float*>(layout_.partials); }

  // The row of a cache that entry i of rows() addresses at step row `row`.
  DSMOOTH_HOST_DEVICE RowAddress find_row(int i, int row) const {
    const StateView& state = head().state;
    if (i == state.network->n_caches * kRowsInReach) return {0, 0};
    const int index = i / kRowsInReach;
    const CacheView& cache = state.network->caches[index];
    const int rows = cache.rows_of(state.height);
    const int slot = ((row >> cache.resolution) + i % kRowsInReach + kRowAbove + 1 + rows) % rows;
    const uint32_t stride = static_cast<uint32_t>(cache.stride) * sizeof(float) / kGranule;
    const uint32_t images =
        static_cast<uint32_t>(slot * (state.width_at(cache.resolution) + 2) * state.batch);
    const ptrdiff_t begin = reinterpret_cast<unsigned char*>(state.caches[index]) - base_;
    return {static_cast<uint32_t>(begin / kGranule) + images * stride, stride};
  }
  // The column that entry i of columns() addresses, at a column of pixels.
  DSMOOTH_HOST_DEVICE RowAddress find_column(int i, int column) const {
    if (i == 0) return {0, 0};
    const int cache = (i - 1) / 2, left = i == left_column(cache) ? 1 : 0;
    return column_of(cache, (column >> head().state.network->caches[cache].resolution) - left);
  }

 private:
  template <class U>
  DSMOOTH_HOST_DEVICE U* at(int offset) const {
    return reinterpret_cast<U*>(block_.shared() + offset);
  }

  const Block block_;
  const SharedLayout layout_;
  unsigned char* const base_;
  const int batch_, warp_;
};

}  // namespace dsmooth::sampler
