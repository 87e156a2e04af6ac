// A worker: a team of threads that draws one slice of the batch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../step.h"
#include "kernels.h"

namespace dsmooth::sampler {

// The job of a part of an operation, as the step describes it to its worker (step.h).
inline Job make_job(const StateView& state, int index, Part part, int row, int column, int count) {
  const NetworkView& network = *state.network;
  const OpView& op = network.ops[index];
  const MatrixView& matrix = op.matrix(part);
  Job job{};
  job.m = count * state.batch;
  job.panels = matrix.panels;
  job.n_panels = matrix.n_panels;
  for (int t = 0; t < op.n_terms; ++t) {
    const TermSpec& term = op.terms[t];
    if (op.phase == Phase::kHorizontal && term.row_part != (part == Part::kRow)) continue;
    const CacheView& cache = network.caches[term.cache];
    const int down = op.resolution - cache.resolution;
    const auto in_cache = [&](int at) { return down > 0 ? at << 1 : down < 0 ? at >> 1 : at; };
    for (int tap = 0; tap < term.taps; ++tap)
      job.segments[job.n_segments++] = {
          state.at(term.cache, in_cache(row) + term.drow, in_cache(column) + term.dcol + tap),
          cache.stride, network.bf16 ? term.channels / 2 : term.channels};
  }
  // The initial sums: partial sums, the image biases, or the bias.
  job.init_stride = op.row.columns;
  if (op.two_parts() && part == Part::kPixel) {
    job.init = state.partial(index, column);
    job.init_rows = job.m;
  } else if (op.projection != nullptr) {
    job.init = state.image_bias(op);
    job.init_rows = state.batch;
  } else {
    job.init = op.bias;
    job.init_rows = 1;
  }
  if (op.two_parts() && part == Part::kRow) {
    job.partial = {state.partial(index, column), matrix.columns};
    return job;
  }
  const auto rows = [&](int cache) {
    return cache == kNone ? StridedRows{}
                          : StridedRows{state.at(cache, row, column), network.caches[cache].stride};
  };
  job.epilogue = {op.gate,          op.split,
                  op.channels,      rows(op.residual_in),
                  rows(op.add),     rows(op.residual_out),
                  rows(op.act_out), rows(op.raw_out)};
  return job;
}

// State that the workers of a call share with its caller.
struct Control {
  std::atomic<bool> stop{false};
  std::atomic<int64_t> image_rows{0};  // done
};

// A barrier for a few threads that sync every microsecond. They spin, and sleep when a thread is
// late, because it has lost its core to another process.
class Barrier {
 public:
  explicit Barrier(int n) : n_(n) {}

  // Returns whether the thread had to sleep.
  bool wait() {
    if (n_ == 1) return false;
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      round_.notify_all();
      return false;
    }
    for (int spins = 0; spins < kSpins; ++spins) {
      if (round_.load(std::memory_order_acquire) != round) return false;
      pause();
    }
    round_.wait(round, std::memory_order_acquire);
    return true;
  }

 private:
  static constexpr int kSpins = 400;
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");  // waits about as long; yield does nothing
#endif
  }

  const int n_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

// How the lanes of a team work. Lanes sync 30 times per pixel. On a busy machine that is an order
// of magnitude slower than a single lane: then the first lane works solo for some rows, and the
// others sleep. Results do not change.
struct Pace {
  static constexpr int kLate = 6, kLeastPatience = 4, kMostPatience = 64;

  bool solo = false;
  int rows_left = kLeastPatience;  // to the end of the solo, this row included
  int patience = kLeastPatience;   // rows of the next solo

  bool operator==(const Pace&) const = default;
};

// The pace after a barrier, within a row or at its end. late: times that a lane slept at a barrier
// since the lanes last began a row together.
inline Pace decide(Pace pace, int late, bool row_ends) {
  if (!row_ends) {
    pace.solo |= late > Pace::kLate;
    return pace;
  }
  if (pace.solo && --pace.rows_left > 0) return pace;
  // If lanes were late again, they sleep for twice as many rows.
  if (late > Pace::kLate)
    pace.patience = std::min(2 * pace.patience, Pace::kMostPatience);
  else if (!pace.solo)
    pace.patience = Pace::kLeastPatience;
  return {false, pace.patience, pace.patience};
}

// State that the lanes of a team share.
struct Team {
  Team(int lanes, Control& shared) : control(shared), barrier(lanes) {}

  // The first lane decides before a barrier, and all lanes read the decision after it. Two
  // decisions alternate, as the first lane may reach the next barrier while another still reads.
  struct Decision {
    bool stop = false;
    Pace pace;
  };

  Control& control;
  Barrier barrier;
  Decision decisions[2];
  std::atomic<int> late{0};
};

class CpuWorker {
 public:
  static constexpr bool kMasksAndClasses = true, kStops = true;

  CpuWorker(const CpuKernels& kernels, Team& team, int lane, int lanes)
      : kernels_(kernels), team_(team), lane_(lane), lanes_(lanes) {}

  void begin_row(int) { sync(); }
  // The horizontal stream at one pixel, and the parameters of its mixture, product after product.
  void pixel(const StateView& state, int row, int column) {
    int n;
    const int16_t* list = state.network->at_pixel + state.network->ops_at(row, column, n);
    for (int i = 0; i < n; ++i) {
      const int op = list[i], resolution = state.network->ops[op].resolution;
      matmul(state, op, Part::kPixel, row >> resolution, column >> resolution, 1);
      sync();
    }
  }
  void matmul(const StateView& state, int op, Part part, int row, int column, int count) const {
    if (now_.pace.solo && lane_ != 0) return;
    const Job job = make_job(state, op, part, row, column, count);
    const int lanes = now_.pace.solo ? 1 : lanes_;
    // With enough rows each lane computes some, with all panels. Otherwise the lanes share the
    // panels.
    if (job.m >= 4 * lanes)
      tiles(job, job.m * lane_ / lanes, job.m * (lane_ + 1) / lanes, 0, 1);
    else
      tiles(job, 0, job.m, lane_, lanes);
  }

  // The lane that weighs an image draws it next.
  void weigh(const StateView& state, int row, int column, float temperature) const {
    const NetworkView& network = *state.network;
    float* const params = state.at(network.params, row, column);
    const int stride = network.caches[network.params].stride;
    for_each(state.batch, [&](int b) {
      float* const logits = params + ptrdiff_t{b} * stride;
      kernels_.weigh(logits, network.n_mix + network.n_atoms, logits + network.n_params,
                     temperature);
    });
  }

  template <class F>
  void for_each(int n, F f) const {
    if (now_.pace.solo && lane_ != 0) return;
    const int step = now_.pace.solo ? 1 : lanes_;
    for (int i = lane_; i < n; i += step) f(i);
  }

  // A solo lane reaches a barrier before the end of the row only when it stops.
  void sync() {
    if (!now_.pace.solo || (lane_ == 0 && !now_.stop && must_stop())) wait_at_barrier(false);
  }

  // The end of a row of `images` images, where all lanes sync.
  void end_row(int images) {
    if (now_.stop) return;
    if (lane_ == 0) team_.control.image_rows.fetch_add(images, std::memory_order_relaxed);
    wait_at_barrier(true);
  }

  // Whether to return early: the same in all lanes.
  bool stop() const { return now_.stop; }

 private:
  // Rows of activations that stay in the L1 cache while all panels are read.
  static constexpr int kRowsAtATime = 48;

  // A lane's share of rows begin .. end - 1: pairs of panels in turn or, if they are not
  // interleaved or there are fewer pairs than lanes, panels.
  void tiles(const Job& job, int begin, int end, int lane, int lanes) const {
    const bool paired = job.panels->step > job.panels->units * kUnit;
    const int most = paired && (job.n_panels + 1) / 2 >= lanes ? 2 : 1;
    for (int first = begin; first < end; first += kRowsAtATime) {
      const int last = std::min(end, first + kRowsAtATime);
      for (int i = lane * most; i < job.n_panels; i += lanes * most) {
        const int count = std::min(most, job.n_panels - i), rows = std::min(last - first, 2);
        const Panel* const panels = job.panels + i;
        if (kernels_.max_rows(units_of(panels, count)) >= rows)
          tiles_of(job, panels, count, first, last);
        else
          for (int j = 0; j < count; ++j) tiles_of(job, panels + j, 1, first, last);
      }
    }
  }

  static int units_of(const Panel* panels, int count) {
    return panels[0].units + (count == 2 ? panels[1].units : 0);
  }

  // The columns of one panel, or of two interleaved panels at once. With one panel the few sums of
  // a row would wait for each other, and a few columns would fill only half a vector.
  void tiles_of(const Job& job, const Panel* panels, int count, int begin, int end) const {
    alignas(64) float sums[kMaxSums];
    const int units = units_of(panels, count), stride = units * kUnit;
    const int most = kernels_.max_rows(units), n = (end - begin + most - 1) / most;
    for (int t = 0, m = begin, next; t < n; ++t, m = next) {
      next = begin + (end - begin) * (t + 1) / n;
      if (job.partial.begin) {
        kernels_.tile(job, *panels, units, m, next - m, job.partial.row(m) + panels->column,
                      job.partial.stride);
        continue;
      }
      kernels_.tile(job, *panels, units, m, next - m, sums, stride);
      for (int j = 0; j < count; ++j)
        kernels_.finish(job, panels[j], m, next - m, sums + panels[j].column - panels->column,
                        stride);
    }
  }

  bool must_stop() const { return team_.control.stop.load(std::memory_order_relaxed); }

  void wait_at_barrier(bool row_ends) {
    turn_ ^= 1;
    if (lane_ == 0) {
      const Pace pace = decide(now_.pace, team_.late.load(std::memory_order_relaxed), row_ends);
      if (row_ends && !pace.solo) team_.late.store(0, std::memory_order_relaxed);
      team_.decisions[turn_] = {must_stop(), pace};
    }
    if (team_.barrier.wait() && !now_.pace.solo) team_.late.fetch_add(1, std::memory_order_relaxed);
    now_ = team_.decisions[turn_];
  }

  const CpuKernels& kernels_;
  Team& team_;
  const int lane_, lanes_;
  int turn_ = 0;
  Team::Decision now_;
};

}  // namespace dsmooth::sampler
