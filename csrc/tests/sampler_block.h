// A worker that plays a GPU's thread block on the host: lanes that run the whole step, each with
// its share of every product, and meet at sync().
//
// Two modes. kThreads: every lane a thread of its own; a missing sync is a data race, which
// ThreadSanitizer reports. kTurns: one lane at a time runs from sync to sync, in shuffled order; a
// missing sync lets a lane read what another has not yet written, and the image changes.
#pragma once

#include <algorithm>
#include <barrier>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "../sampler/isa.h"
#include "../sampler/step.h"

namespace dsmooth::sampler {

enum class Mode { kThreads, kTurns };

class Block {
 public:
  Block(int lanes, Mode mode, unsigned seed)
      : lanes_(lanes),
        mode_(mode),
        barrier_(lanes),
        random_(seed),
        order_(static_cast<size_t>(lanes)) {
    std::iota(order_.begin(), order_.end(), 0);
    shuffle();
  }
  int lanes() const { return lanes_; }

  void begin(int lane) {
    if (mode_ == Mode::kTurns) await_turn(lane, 0);
  }
  void sync(int lane, int64_t round) {
    if (mode_ == Mode::kThreads) return barrier_.arrive_and_wait();
    end_turn();
    await_turn(lane, round + 1);
  }
  void end(int) {
    if (mode_ == Mode::kTurns) end_turn();
  }

 private:
  void await_turn(int lane, int64_t round) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return round_ == round && order_[turn_] == lane; });
  }
  void end_turn() {
    std::lock_guard lock(mutex_);
    if (++turn_ == order_.size()) {
      turn_ = 0;
      ++round_;
      shuffle();
    }
    changed_.notify_all();
  }
  void shuffle() { std::shuffle(order_.begin(), order_.end(), random_); }

  const int lanes_;
  const Mode mode_;
  std::barrier<> barrier_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::mt19937 random_;
  std::vector<int> order_;
  size_t turn_ = 0;
  int64_t round_ = 0;
};

class BlockWorker {
 public:
  // omit: the number of a sync to leave out, -1 for none.
  BlockWorker(const Isa& isa, Block& block, int lane, int64_t omit)
      : isa_(isa), block_(block), lane_(lane), omit_(omit) {}

  void matmul(const Job& job) const {
    float sums[kMaxUnits * kUnit];
    for_each(job.m * job.n_panels, [&](int i) {
      const Panel& panel = job.panels[i % job.n_panels];
      const int m = i / job.n_panels;
      if (job.partial) {
        float* out = job.partial + m * job.partial_stride + panel.column;
        return isa_.tile(job, panel, m, 1, out, job.partial_stride);
      }
      isa_.tile(job, panel, m, 1, sums, panel.units * kUnit);
      isa_.finish(job, panel, m, 1, sums, panel.units * kUnit);
    });
  }
  template <class F>
  void for_each(int n, F f) const {
    for (int i = lane_; i < n; i += block_.lanes()) f(i);
  }
  void sync() {
    if (count_++ != omit_) block_.sync(lane_, round_++);
  }
  void end_row(int) { sync(); }
  bool stop() const { return false; }
  int64_t syncs() const { return count_; }

 private:
  const Isa& isa_;
  Block& block_;
  const int lane_;
  const int64_t omit_;
  int64_t count_ = 0, round_ = 0;
};

// Draws a slice with a block of lanes; returns the number of syncs.
inline int64_t draw_with_block(const Plan& plan, const Slice& slice, int lanes, Mode mode,
                               int64_t omit = -1, unsigned seed = 1) {
  State state(plan, slice.batch, slice.height, slice.width);
  Block block(lanes, mode, seed);
  std::vector<std::thread> threads;
  int64_t syncs = 0;
  for (int lane = 0; lane < lanes; ++lane)
    threads.emplace_back([&, lane] {
      BlockWorker worker(plan.isa, block, lane, omit);
      block.begin(lane);
      Step<BlockWorker>(plan, slice, state, worker).draw();
      if (lane == 0) syncs = worker.syncs();
      block.end(lane);
    });
  for (std::thread& thread : threads) thread.join();
  return syncs;
}

}  // namespace dsmooth::sampler
