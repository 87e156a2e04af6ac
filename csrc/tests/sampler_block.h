// Thread blocks emulated on the host: lanes that run the CUDA worker, each with its share of every
// product, and wait for each other at sync().
//
// Two modes. kThreads: every lane is a thread; a missing sync is a data race, which ThreadSanitizer
// reports. kTurns: one lane at a time runs from sync to sync, in shuffled order; with a missing
// sync a lane reads a value that another has not yet written, and the image changes.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "../sampler/cuda/sampler.h"

namespace dsmooth::sampler {

enum class Mode { kThreads, kTurns };

class Block {
 public:
  Block(int lanes, Mode mode) : lanes_(lanes), mode_(mode), order_(lanes), turn_came_(lanes) {
    std::iota(order_.begin(), order_.end(), 0);
    shuffle();
  }
  int lanes() const { return lanes_; }

  void begin(int lane) {
    if (mode_ == Mode::kTurns) await_turn(lane, 0);
  }
  void sync(int lane, int64_t round) {
    if (mode_ == Mode::kThreads) return await_all();
    end_turn();
    await_turn(lane, round + 1);
  }
  void end() {
    if (mode_ == Mode::kTurns) end_turn();
  }

 private:
  // Only the last lane to arrive releases the others. A barrier whose waiters sleep has internal
  // counters, which ThreadSanitizer would take for the ordering of the missing sync.
  void await_all() {
    const unsigned met = met_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == lanes_) {
      arrived_.store(0, std::memory_order_relaxed);
      met_.store(met + 1, std::memory_order_release);
      return;
    }
    while (met_.load(std::memory_order_acquire) == met) std::this_thread::yield();
  }
  void await_turn(int lane, int64_t round) {
    std::unique_lock lock(mutex_);
    turn_came_[lane].wait(lock, [&] { return round_ == round && order_[turn_] == lane; });
  }
  void end_turn() {
    std::lock_guard lock(mutex_);
    if (++turn_ == order_.size()) {
      turn_ = 0;
      ++round_;
      shuffle();
    }
    turn_came_[order_[turn_]].notify_one();
  }
  void shuffle() { std::shuffle(order_.begin(), order_.end(), random_); }

  const int lanes_;
  const Mode mode_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> met_{0};
  std::mutex mutex_;
  std::mt19937 random_{1};
  std::vector<int> order_;
  std::vector<std::condition_variable> turn_came_;  // of each lane
  size_t turn_ = 0;
  int64_t round_ = 0;
};

// One lane of a block, as the worker of CUDA sees it.
template <int kTheWarps, int kTheWarpLanes>
class HostBlock {
 public:
  static constexpr int kWarps = kTheWarps, kWarpLanes = kTheWarpLanes;

  HostBlock(Block& block, int lane, unsigned char* shared, int64_t omit)
      : block_(block), lane_(lane), shared_(shared), omit_(omit) {}
  int lane() const { return lane_; }
  unsigned char* shared() const { return shared_; }
  void sync() {
    if (count_++ != omit_) block_.sync(lane_, round_++);
  }

 private:
  Block& block_;
  const int lane_;
  unsigned char* const shared_;
  const int64_t omit_;
  int64_t count_ = 0, round_ = 0;
};

// Draws n images like CudaSampler, one launch and one block at a time. omit: the index of a sync to
// leave out in the first block of each launch, -1 for none. Returns the workspace.
template <class T, int kWarps, int kWarpLanes>
std::vector<Granule> draw_as_cuda(Program program, const Slice& all, int64_t n, Card card,
                                  int max_slice, Mode mode, int64_t omit = -1) {
  using Lanes = HostBlock<kWarps, kWarpLanes>;
  card.warps = kWarps;
  CudaSampler sampler(std::move(program), sizeof(T) == sizeof(Bf16), card);
  std::vector<Granule> weights(sampler.bytes() / kGranule);
  sampler.write(weights.data(), reinterpret_cast<uintptr_t>(weights.data()));
  const CudaPlan plan =
      sampler.plan(n, all.height, all.width, size_t{1} << 30, max_slice, all.passes());
  constexpr uint32_t kNaN = ~0u;  // as a float and as two bfloat16
  const Granule not_numbers{{kNaN, kNaN, kNaN, kNaN}};
  std::vector<Granule> memory(plan.workspace_words() * sizeof(float) / kGranule, not_numbers);
  for (int64_t launch = 0; launch < plan.launches; ++launch) {
    const BlockRun run =
        sampler.argument(plan, all, reinterpret_cast<float*>(memory.data()), launch);
    for (int i = 0; i < plan.partition.workers; ++i) {
      std::vector<Granule> shared(run.shared.bytes / kGranule, not_numbers);
      Block block(kWarps * kWarpLanes, mode);
      std::vector<std::thread> threads;
      for (int lane = 0; lane < block.lanes(); ++lane)
        threads.emplace_back([&, lane] {
          Lanes lanes(block, lane, reinterpret_cast<unsigned char*>(shared.data()),
                      i == 0 ? omit : -1);
          block.begin(lane);
          run_block<T>(run, i, lanes);
          block.end();
        });
      for (std::thread& thread : threads) thread.join();
    }
  }
  return memory;
}

}  // namespace dsmooth::sampler
