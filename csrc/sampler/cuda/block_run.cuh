// A thread block as a worker, and its work in a launch: some rows of one slice of the batch. Blocks
// do not wait for each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../step.h"
#include "pixel_part.cuh"
#include "row_part.cuh"

namespace dsmooth::sampler {

// Replaces the logits of a pixel by weights, and stores the sums of their groups, followed by the
// largest logit of each group. Ends with a sync.
template <class Block>
DSMOOTH_HOST_DEVICE DSMOOTH_DEVICE_ONCE void weigh_components(Block& block, const StateView& state,
                                                              int row, int column,
                                                              float temperature) {
  const NetworkView& network = *state.network;
  const int n = network.n_mix + network.n_atoms, groups = network.groups;
  float* const params = state.at(network.params, row, column);
  const int stride = network.caches[network.params].stride;
  // f(logits, sums, group) of each image.
  const auto each_group = [&](auto f) {
    for (int i = block.lane(); i < state.batch * groups; i += BlockMemory<Block>::kLanes) {
      float* const logits = params + ptrdiff_t{i / groups} * stride;
      f(logits, logits + network.n_params, i % groups);
    }
    block.sync();
  };
  each_group(
      [&](float* logits, float* sums, int i) { sums[groups + i] = top_of_group(logits, n, i); });
  each_group([&](float* logits, float* sums, int i) {
    float top = sums[groups];
    for (int other = 1; other < groups; ++other)
      top = sums[groups + other] > top ? sums[groups + other] : top;
    sums[i] = weigh_group(logits, n, i, top, temperature);
  });
}

// A thread block as a worker. The sum of an output runs over k in the same steps for any batch, so
// images do not depend on the slice. T: float, or Bf16 with sums in float.
template <class T, class Block, bool kFull>
class CudaWorker {
 public:
  static constexpr bool kMasksAndClasses = kFull, kStops = false;

  DSMOOTH_HOST_DEVICE explicit CudaWorker(Block& block) : block_(block) {}

  DSMOOTH_HOST_DEVICE void begin_row(int row) {
    sync();
    const BlockMemory<Block> memory(block_);
    for_each(memory.head().state.network->n_caches * kRowsInReach + 1,
             [&](int i) { memory.rows()[i] = memory.find_row(i, row); });
    sync();
    find_columns(0);
  }

  DSMOOTH_HOST_DEVICE void matmul(const StateView&, int op, Part part, int /*row*/, int column,
                                  int count) {
    turn_ = draw_rows<T>(block_, op, part, column, count, turn_);
  }

  DSMOOTH_HOST_DEVICE void pixel(const StateView& state, int row, int column) {
    int n;
    const PixelStage* list =
        BlockMemory<Block>::head_of(block_).stages + state.network->ops_at(row, column, n);
    state.batch <= kRows ? draw_stages<T, 1>(block_, list, n, column)
                         : draw_stages<T, 2>(block_, list, n, column);
    find_columns(column + 1);  // visible after the sync that follows the pixel
  }

  DSMOOTH_HOST_DEVICE void weigh(const StateView& state, int row, int column, float temperature) {
    weigh_components(block_, state, row, column, temperature);
  }

  template <class F>
  DSMOOTH_HOST_DEVICE void for_each(int n, F f) const {
    DSMOOTH_DEVICE_ROLL
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
  int turn_ = 0;  // the warp for the next tile of a row part
};

// The argument of a launch, the same for all blocks. Block b draws slice round * blocks + b.
struct BlockRun {
  int64_t n;
  Slice all;  // the n images, in memory of the device; its batch is not used
  Partition partition;
  float* memory;  // Workspace::words for each worker, aligned to 128 bytes
  Workspace workspace;
  NetworkView network;
  const CudaOp* ops;
  const PixelStage* stages;
  SharedLayout shared;
  int64_t round;
  int first_row, end_row;  // the rows of a prompt come first
};

// Fills shared memory for a slice of `batch` images; all lanes see it.
template <class Block>
DSMOOTH_HOST_DEVICE void begin_block(const BlockRun& run, float* base, int batch, Block& block) {
  const NetworkView& network = run.network;
  const Slice& all = run.all;
  const int lane = block.lane(), n_addresses = network.n_caches + network.n_ops;
  constexpr int kLanes = BlockMemory<Block>::kLanes;
  if (lane == 0)
    *reinterpret_cast<BlockHead*>(block.shared()) = {
        {&network, nullptr, nullptr, batch, all.height, all.width},
        run.shared,
        run.stages,
        reinterpret_cast<unsigned char*>(base)};
  block.sync();
  const BlockMemory<Block> memory(block);
  // The lanes compute the sizes in parallel, which is slow; then one lane adds them.
  uint32_t* const words = reinterpret_cast<uint32_t*>(memory.near());
  for (int i = lane; i < n_addresses; i += kLanes)
    words[i] = static_cast<uint32_t>(
        workspace_words(network, i, run.partition.largest, all.height, all.width));
  const uint32_t* const ops = reinterpret_cast<const uint32_t*>(run.ops);
  uint32_t* const copy = reinterpret_cast<uint32_t*>(memory.ops());
  for (int i = lane; i < network.n_ops * static_cast<int>(sizeof(CudaOp) / 4); i += kLanes)
    copy[i] = ops[i];
  block.sync();
  if (lane == 0) {
    float** const addresses = memory.addresses();
    memory.head().state.caches = addresses;
    memory.head().state.partials = addresses + network.n_caches;
    float* next = base + kZeroWords;
    for (int i = 0; i < n_addresses; next += words[i++]) addresses[i] = next;
    memory.head().state.image_biases = next;
  }
  block.sync();
  for (int i = lane; i < network.n_ops; i += kLanes) {
    CudaOp& op = memory.ops()[i];
    if (op.projected) op.bias = memory.head().state.image_bias(network.ops[i]);
    op.begin = op.two_parts ? memory.addresses()[network.n_caches + i] : op.bias;
    op.begin_stride = op.two_parts ? op.columns() : 0;
  }
  // Zeroed, so that no lane reads a NaN.
  for (int i = lane; i < 2 * run.shared.near_bytes() / 4; i += kLanes) words[i] = 0;
}

template <class T, class Block>
DSMOOTH_HOST_DEVICE void run_block(const BlockRun& run, int block_index, Block& block) {
  const NetworkView& network = run.network;
  const int64_t slices = run.partition.slices;
  const int64_t i = run.round * run.partition.workers + block_index;
  if (i >= slices) return;
  const int64_t first = run.all.begin(run.n, i, slices);
  const Slice slice = run.all.images(network, first, run.all.begin(run.n, i + 1, slices));
  float* const base = run.memory + static_cast<size_t>(block_index) * run.workspace.words;
  if (run.first_row == 0)
    for (size_t word = static_cast<size_t>(block.lane()); word < run.workspace.cache_words;
         word += static_cast<size_t>(BlockMemory<Block>::kLanes))
      base[word] = 0.0f;
  begin_block(run, base, slice.batch, block);
  const auto draw = [&](auto worker) {
    const StateView& state = BlockMemory<Block>::head_of(block).state;
    Step<decltype(worker)>(network, slice, state, worker).draw(run.first_row, run.end_row);
  };
  // The code for known pixels needs registers, and a tenth of a stage's time, so it has its own
  // branch. It is in the same kernel, since each kernel compiles everything that it calls.
  if (slice.mask != nullptr || slice.labels != nullptr)
    draw(CudaWorker<T, Block, true>(block));
  else
    draw(CudaWorker<T, Block, false>(block));
}

constexpr int kKernelWarps = 8;  // of sample.cu

}  // namespace dsmooth::sampler
