// A worker that is a team of threads on one slice of the batch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "isa.h"

namespace dsmooth::sampler {

// What the workers of a call share with its caller.
struct Control {
  std::atomic<bool> stop{false};
  std::atomic<int64_t> image_rows{0};  // done
};

// A barrier of few threads that meet every microsecond: they spin, and yield when one is late.
class Barrier {
 public:
  explicit Barrier(int n) : n_(n) {}

  void wait() {
    if (n_ == 1) return;
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < kSpins)
        pause();
      else
        std::this_thread::yield();
    }
  }

 private:
  static constexpr int kSpins = 2000;
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  const int n_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

struct Team {
  Team(int lanes, Control& given) : control(given), barrier(lanes) {}
  Control& control;
  Barrier barrier;
  // Control::stop as the first lane saw it, so that all lanes leave at the same place. Two in turn:
  // the first lane may reach the next barrier while another still reads.
  bool stop[2] = {false, false};
};

class CpuWorker {
 public:
  CpuWorker(const Isa& isa, Team& team, int lane, int lanes)
      : isa_(isa), team_(team), lane_(lane), lanes_(lanes) {}

  void matmul(const Job& job) const {
    if (lanes_ == 1) return tiles(job, 0, job.m, 0, 1);
    // Enough rows: each lane takes some, with all panels. Else the lanes share the panels.
    if (job.m >= 4 * lanes_)
      return tiles(job, job.m * lane_ / lanes_, job.m * (lane_ + 1) / lanes_, 0, 1);
    tiles(job, 0, job.m, lane_, lanes_);
  }

  template <class F>
  void for_each(int n, F f) const {
    for (int i = lane_; i < n; i += lanes_) f(i);
  }

  void sync() {
    turn_ ^= 1;
    if (lane_ == 0) team_.stop[turn_] = team_.control.stop.load(std::memory_order_relaxed);
    team_.barrier.wait();
  }
  bool stop() const { return team_.stop[turn_]; }

  void progress(int images) const {
    if (lane_ == 0) team_.control.image_rows.fetch_add(images, std::memory_order_relaxed);
  }

 private:
  // Rows of activations that stay in the first cache while the panels go by.
  static constexpr int kRowsAtATime = 48;

  void tiles(const Job& job, int begin, int end, int first_panel, int step) const {
    alignas(64) float sums[kMaxRows * kMaxUnits * kUnit];
    for (int block = begin; block < end; block += kRowsAtATime) {
      const int block_end = std::min(end, block + kRowsAtATime);
      for (int i = first_panel; i < job.n_panels; i += step) {
        const Panel& panel = job.panels[i];
        const int most = isa_.max_rows(panel.units);
        const int count = (block_end - block + most - 1) / most;
        for (int t = 0, m = block; t < count; ++t) {
          const int next = block + (block_end - block) * (t + 1) / count;
          tile(job, panel, m, next - m, sums);
          m = next;
        }
      }
    }
  }

  void tile(const Job& job, const Panel& panel, int m, int rows, float* sums) const {
    if (job.partial) {
      float* out = job.partial + m * job.partial_stride + panel.column;
      return isa_.tile(job, panel, m, rows, out, job.partial_stride);
    }
    const int stride = panel.units * kUnit;
    isa_.tile(job, panel, m, rows, sums, stride);
    isa_.finish(job, panel, m, rows, sums, stride);
  }

  const Isa& isa_;
  Team& team_;
  const int lane_, lanes_;
  int turn_ = 0;
};

}  // namespace dsmooth::sampler
