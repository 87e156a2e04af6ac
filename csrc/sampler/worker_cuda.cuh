// A worker that is one thread block.
#pragma once

#include "pixel_stages.cuh"
#include "row_tiles.cuh"
#include "step.h"

namespace dsmooth::sampler {

// The sum of an output runs over k in the same steps whatever the batch, so that images do not
// depend on how many share a slice. T: float, or Bf16 with sums in float.
template <class T, class Block, bool kKeeps>
class CudaWorker {
 public:
  static constexpr bool kCompletes = kKeeps, kConditions = kKeeps;

  DSMOOTH_HOST_DEVICE explicit CudaWorker(Block& block) : block_(block) {}

  DSMOOTH_HOST_DEVICE void begin_row(int row) {
    sync();
    const BlockMemory<Block> memory(block_);
    for_each(memory.head().state.network->n_caches * kRowsInReach + 1,
             [&](int i) { memory.rows()[i] = memory.find_row(i, row); });
    sync();
    find_columns(0);
  }

  DSMOOTH_HOST_DEVICE void matmul(const Product& p) {
    turn_ = draw_rows<T>(block_, p.index, p.part, p.column, p.count, turn_);
  }

  DSMOOTH_HOST_DEVICE void pixel(const StateView& state, int row, int column) {
    int n;
    const PixelStage* list =
        BlockMemory<Block>::head_of(block_).stages + state.network->ops_at(row, column, n);
    state.batch <= kRows ? draw_stages<T, 1>(block_, list, n, column)
                         : draw_stages<T, 2>(block_, list, n, column);
    find_columns(column + 1);  // the sync behind the pixel's noise is theirs too
  }

  template <class F>
  DSMOOTH_HOST_DEVICE void for_each(int n, F f) const {
    for (int i = block_.lane(); i < n; i += BlockMemory<Block>::kLanes) f(i);
  }

  DSMOOTH_HOST_DEVICE void sync() { block_.sync(); }
  DSMOOTH_HOST_DEVICE void end_row(int) { sync(); }
  DSMOOTH_HOST_DEVICE bool stop() const { return false; }

 private:
  // For the pixel at a column of the row.
  DSMOOTH_HOST_DEVICE void find_columns(int column) const {
    const BlockMemory<Block> memory(block_);
    for_each(2 * memory.head().state.network->n_caches + 1,
             [&](int i) { memory.columns()[i] = memory.find_column(i, column); });
  }

  static_assert((Block::kWarps & (Block::kWarps - 1)) == 0);

  Block& block_;
  int turn_ = 0;  // the warp that takes the next tile of a row part
};

}  // namespace dsmooth::sampler
