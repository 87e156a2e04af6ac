#include "sampler_cpu.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "../common/isa.h"
#include "step.h"
#include "worker_cpu.h"

namespace dsmooth::sampler {

#define DSMOOTH_SET(name)             \
  namespace name {                    \
  const TileKernels* float32_tiles(); \
  }
FLOAT32_SETS
#undef DSMOOTH_SET
#define DSMOOTH_SET(name)              \
  namespace name {                     \
  const TileKernels* bfloat16_tiles(); \
  }
BFLOAT16_SETS
#undef DSMOOTH_SET

const TileKernels& find_tile_kernels(const std::string& instruction_set, bool bf16) {
#define DSMOOTH_SET(name) {#name, &name::float32_tiles},
  static const PerInstructionSet<const TileKernels*> float32{FLOAT32_SETS};
#undef DSMOOTH_SET
#define DSMOOTH_SET(name) {#name, &name::bfloat16_tiles},
  static const PerInstructionSet<const TileKernels*> bfloat16{BFLOAT16_SETS};
#undef DSMOOTH_SET
  if (!bf16) return *float32.find(instruction_set);
  const bool extended = instruction_set == "avx512" && has_instruction_set("avx512bf16");
  return *bfloat16.find(extended ? "avx512bf16" : instruction_set);
}

namespace {

// Weights are read once per slice and pixel, so a slice should be large; its caches are read once
// per pixel, so they should stay in the last-level cache.
constexpr int kSlice = 16;

// The memory of a slice's caches; a slice may be smaller.
class State {
 public:
  State(const NetworkView& network, int batch, int height, int width) : network_(network) {
    for (int i = 0; i <= network.n_caches + network.n_ops; ++i)
      places_.emplace_back(workspace_words(network, i, batch, height, width));
    for (Words& words : places_) pointers_.push_back(words.data());
  }

  // For the next slice.
  void clear() {
    for (int i = 0; i < network_.n_caches; ++i) places_[static_cast<size_t>(i)].clear();
  }
  StateView view(const Slice& slice) const {
    return {&network_,       pointers_.data(), pointers_.data() + network_.n_caches,
            slice.batch,     slice.height,     slice.width,
            pointers_.back()};
  }

 private:
  const NetworkView& network_;
  std::vector<Words> places_;  // as workspace_words counts them
  std::vector<float*> pointers_;
};

// One call: its slices, and the threads that take them.
class Run {
 public:
  Run(const Plan& plan, const Request& request)
      : plan_(plan),
        r_(request),
        partition_(partition_among(r_.n, r_.threads, r_.slice > 0 ? r_.slice : kSlice)),
        lanes_(r_.threads / partition_.workers) {
    for (int i = 0; i < partition_.workers; ++i) {
      states_.emplace_back(plan.network(), partition_.largest, r_.all.height, r_.all.width);
      teams_.push_back(std::make_unique<Team>(lanes_, control_));
    }
    current_.resize(teams_.size());
  }

  // Starts every thread, none of which works yet. Returns how many there are; if they are fewer
  // than wanted, because the system gives no more, all of them have left again.
  int start() {
    running_ = wanted();
    try {
      while (static_cast<int>(threads_.size()) < running_) {
        const int i = static_cast<int>(threads_.size());
        threads_.emplace_back([this, i] {
          gate_.wait(kClosed);
          if (gate_ == kOpen) lane(i / lanes_, i % lanes_);
        });
      }
    } catch (const std::system_error&) {
      const int started = static_cast<int>(threads_.size());
      leave(kCancelled);
      return started;
    }
    return running_;
  }

  int wanted() const { return partition_.workers * lanes_; }

  // Lets the threads work, and waits for them.
  void go(const std::function<void(double)>& poll) {
    gate_ = kOpen;
    gate_.notify_all();
    std::exception_ptr failure;
    try {
      wait(poll);
    } catch (...) {
      failure = std::current_exception();
      control_.stop.store(true, std::memory_order_relaxed);
    }
    leave(kOpen);
    if (failure) std::rethrow_exception(failure);
  }

 private:
  enum Gate : int { kClosed, kOpen, kCancelled };

  void leave(Gate gate) {
    gate_ = gate;
    gate_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  void wait(const std::function<void(double)>& poll) {
    const double all = static_cast<double>(r_.n) * plan_.network().rows(r_.all.height);
    std::unique_lock lock(mutex_);
    while (
        !finished_.wait_for(lock, std::chrono::milliseconds(100), [&] { return running_ == 0; })) {
      lock.unlock();
      poll(static_cast<double>(control_.image_rows.load(std::memory_order_relaxed)) / all);
      lock.lock();
    }
  }

  void lane(int team_index, int lane) {
    const size_t t = static_cast<size_t>(team_index);
    Team& team = *teams_[t];
    CpuWorker worker(plan_.kernels(), team, lane, lanes_);
    for (;;) {
      if (lane == 0) take(t);
      worker.end_row(0);
      if (current_[t].batch == 0 || worker.stop()) break;
      const StateView state = states_[t].view(current_[t]);
      if (!Step<CpuWorker>(plan_.network(), current_[t], state, worker).draw()) break;
    }
    std::lock_guard lock(mutex_);
    if (--running_ == 0) finished_.notify_one();
  }

  // The next slice for a team; an empty one when there is none.
  void take(size_t team) {
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    Slice& slice = current_[team];
    slice = Slice{};
    const int64_t slices = partition_.slices;
    if (i >= slices) return;
    slice = r_.all.part(plan_.network(), r_.n * i / slices, r_.n * (i + 1) / slices);
    states_[team].clear();
  }

  const Plan& plan_;
  const Request& r_;
  const Partition partition_;
  const int lanes_;  // of a team
  Control control_;
  std::vector<State> states_;
  std::vector<std::unique_ptr<Team>> teams_;
  std::vector<Slice> current_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable finished_;
  int running_ = 0;
  std::atomic<int> gate_{kClosed};
  std::vector<std::thread> threads_;
};

}  // namespace

CpuSampler::CpuSampler(Program program, const std::string& instruction_set, bool bf16)
    : plan_(std::move(program), find_tile_kernels(instruction_set, bf16)) {}

void CpuSampler::sample(const Request& request, const std::function<void(double)>& poll) const {
  if (request.n == 0) return;
  // With fewer threads, if need be: the images are the same.
  for (Request now = request;;) {
    Run run(plan_, now);
    const int started = run.start();
    if (started == run.wanted()) return run.go(poll);
    if (started == 0) throw std::runtime_error("the system lets this process start no thread");
    now.threads = started;
  }
}

}  // namespace dsmooth::sampler
