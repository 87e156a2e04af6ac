// Addresses of all that a product reads and writes, shared by the lanes of a thread block.
//
// A Block gives its lanes: Block::kWarps and Block::kWarpLanes, powers of two, lane(), sync() and
// shared(), the memory that they share. On the device that is a thread block (sample_kernel.cuh);
// tests play one on the host. It may be copied.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_op.h"

namespace dsmooth::sampler {

template <class Block>
class BlockMemory {
 public:
  // Copies where everything lies, once.
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
  DSMOOTH_HOST_DEVICE float** places() const { return at<float*>(layout_.places); }
  DSMOOTH_HOST_DEVICE CudaOp* ops() const { return at<CudaOp>(layout_.ops); }
  DSMOOTH_HOST_DEVICE RowPlace* rows() const { return at<RowPlace>(layout_.rows); }
  DSMOOTH_HOST_DEVICE RowPlace* columns() const { return at<RowPlace>(layout_.columns); }
  DSMOOTH_HOST_DEVICE unsigned char* near() const { return at<unsigned char>(layout_.near); }
  // This lane's own pairs are at i * kLanes.
  DSMOOTH_HOST_DEVICE Pair* scratch() const { return at<Pair>(layout_.scratch) + block_.lane(); }

  static constexpr int kLanes = Block::kWarps * Block::kWarpLanes;
  DSMOOTH_HOST_DEVICE int warp() const { return warp_; }
  DSMOOTH_HOST_DEVICE int lane() const { return block_.lane() % Block::kWarpLanes; }

  // A column of the current row of a cache; {0, 0} of kNone.
  DSMOOTH_HOST_DEVICE RowPlace column_of(int cache, int column) const {
    if (cache == kNone) return {0, 0};
    const RowPlace row = rows()[cache * kRowsInReach - kRowAbove];
    const uint32_t image = static_cast<uint32_t>((column + 1) * batch());
    return {row.offset + image * row.stride, row.stride};
  }
  DSMOOTH_HOST_DEVICE unsigned char* granule(uint32_t i) const {
    return base_ + static_cast<size_t>(i) * kGranule;
  }

  // Initial values of a part's sums, and their stride from one image to the next. Biases of images
  // begin the sums of each column.
  DSMOOTH_HOST_DEVICE const float* init(int index, Part part, int column, int& stride) const {
    const CudaOp& op = ops()[index];
    stride = part == Part::kPixel ? op.begin_stride : op.projected ? op.columns() : 0;
    return part == Part::kPixel ? op.begin + ptrdiff_t{column * batch()} * stride : op.bias;
  }
  // The sums that wait between the parts of an operation.
  DSMOOTH_HOST_DEVICE float* partial(int index, int column) const {
    const size_t image = static_cast<size_t>(column * batch());
    return at<float*>(layout_.partials)[index] +
           image * static_cast<size_t>(ops()[index].columns());
  }

  // The row of a cache that a place of rows() stands for, when the step has come to `row`.
  DSMOOTH_HOST_DEVICE RowPlace find_row(int i, int row) const {
    const StateView& state = head().state;
    if (i == state.network->n_caches * kRowsInReach) return {0, 0};
    const int index = i / kRowsInReach;
    const CacheView& cache = state.network->caches[index];
    const int rows = cache.rows_of(state.height);
    const int slot = ((row >> cache.level) + i % kRowsInReach + kRowAbove + 1 + rows) % rows;
    const uint32_t stride = static_cast<uint32_t>(cache.stride) * sizeof(float) / kGranule;
    const uint32_t images =
        static_cast<uint32_t>(slot * (state.width_at(cache.level) + 2) * state.batch);
    const ptrdiff_t begin = reinterpret_cast<unsigned char*>(state.caches[index]) - base_;
    return {static_cast<uint32_t>(begin / kGranule) + images * stride, stride};
  }
  // The column that a place of columns() stands for, at a column of pixels.
  DSMOOTH_HOST_DEVICE RowPlace find_column(int i, int column) const {
    if (i == 0) return {0, 0};
    const int cache = (i - 1) / 2, left = i == left_column(cache) ? 1 : 0;
    return column_of(cache, (column >> head().state.network->caches[cache].level) - left);
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
