// What a thread block does in a launch: it draws some rows of one slice of the batch, without
// waiting for another block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device_plan.h"
#include "worker_cuda.cuh"

namespace dsmooth::sampler {

// One launch, the same for all blocks. Block b draws slice round * blocks + b.
struct BlockRun {
  NetworkView network;
  SharedLayout shared;
  Sharing sharing;
  int64_t n;
  Slice all;      // of all n images; its batch is not used
  float* memory;  // workspace.words for each block
  Workspace workspace;
  int64_t round;
  int first_row, end_row;  // those of a prompt come first
};

// Bytes in front of shared memory: where the caches of the block's slice lie.
DSMOOTH_HOST_DEVICE inline int table_bytes(const NetworkView& network) {
  return static_cast<int>(sizeof(StateView)) +
         (network.n_caches + network.n_ops) * static_cast<int>(sizeof(float*));
}

template <class T, class Block>
DSMOOTH_HOST_DEVICE void run_block(const BlockRun& run, int block_index, Block& block) {
  const NetworkView& network = run.network;
  StateView& state = *reinterpret_cast<StateView*>(block.shared());
  float* const base = run.memory + static_cast<size_t>(block_index) * run.workspace.words;
  if (block.lane() == 0) {
    float** places = reinterpret_cast<float**>(block.shared() + sizeof(StateView));
    state = {&network, places, places + network.n_caches, 0, run.all.height, run.all.width};
    lay_out_workspace(network, run.sharing.largest, run.all.height, run.all.width,
                      [&](int i, size_t word) { places[i] = base + word; });
  }
  CudaWorker<T, Block> worker(block, run.shared);
  const int64_t pixels = int64_t{network.image_channels} * run.all.height * run.all.width;
  const int64_t i = run.round * run.sharing.blocks + block_index;
  if (i >= run.sharing.slices) return;
  const int64_t first = run.n * i / run.sharing.slices;
  const int64_t end = run.n * (i + 1) / run.sharing.slices;
  Slice slice = run.all;
  slice.batch = static_cast<int>(end - first);
  slice.first_index += static_cast<uint64_t>(first);
  slice.context = slice.context ? slice.context + first * pixels : nullptr;
  slice.out += first * pixels;
  if (block.lane() == 0) state.batch = slice.batch;
  constexpr size_t kLanes = static_cast<size_t>(Block::kWarps * Block::kWarpLanes);
  if (run.first_row == 0)
    for (size_t word = static_cast<size_t>(block.lane()); word < run.workspace.cache_words;
         word += kLanes)
      base[word] = 0.0f;
  worker.sync();
  Step<CudaWorker<T, Block>>(network, slice, state, worker).draw(run.first_row, run.end_row);
}

}  // namespace dsmooth::sampler
