#include "sampler.h"

#include <cxxabi.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <future>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "../../common/isa.h"
#include "../step.h"
#include "worker.h"

namespace dsmooth::sampler {

#define DSMOOTH_SET(name)               \
  namespace name {                      \
  const CpuKernels* float32_kernels();  \
  const CpuKernels* bfloat16_kernels(); \
  }
FLOAT32_SETS
BFLOAT16_SETS
#undef DSMOOTH_SET

const CpuKernels& find_cpu_kernels(const std::string& instruction_set, bool bf16) {
#define DSMOOTH_SET(name) {#name, &name::float32_kernels},
  static const PerInstructionSet<const CpuKernels*> float32{FLOAT32_SETS};
#undef DSMOOTH_SET
#define DSMOOTH_SET(name) {#name, &name::bfloat16_kernels},
  static const PerInstructionSet<const CpuKernels*> bfloat16{BFLOAT16_SETS};
#undef DSMOOTH_SET
  if (!bf16) return *float32.find(instruction_set);
  const bool extended = instruction_set == "avx512" && has_instruction_set("avx512bf16");
  return *bfloat16.find(extended ? "avx512bf16" : instruction_set);
}

namespace {

// Panels are as even as possible. There are at least two, so that two threads can share a single
// image, unless one vector holds all channels. They are whole vectors if no tile holds all columns.
std::vector<Panel> cut(const Op& op, const CpuKernels& kernels) {
  const int most = kernels.max_units, least = kernels.unit_step;
  const int units = (op.n + least * kUnit - 1) / (least * kUnit) * least;
  const int fewest = std::min(units / least, op.channels() > kernels.lanes ? 2 : 1);
  const int count = std::max((units + most - 1) / most, fewest);
  const int vector = units > most && most % 2 == 0 ? 2 : least;
  const int vectors = (units + vector - 1) / vector;
  const int per_column = op.gate ? 2 : 1;
  std::vector<Panel> panels;
  int column = 0, channel = 0;
  for (int i = 0; i < count; ++i) {
    Panel panel{};
    panel.units = std::min(units, vectors * (i + 1) / count * vector) - column / kUnit;
    panel.column = column;
    panel.channel = channel;
    panel.channels = std::clamp(op.channels() - channel, 0, panel.units * kUnit / per_column);
    column += panel.units * kUnit;
    channel += panel.channels;
    panels.push_back(panel);
  }
  return panels;
}

int count_columns(const std::vector<Panel>& panels) {
  return panels.back().column + panels.back().units * kUnit;
}

// Calls f(column, output) for each column of a panel that is not padding.
template <class F>
void each_output(const Op& op, const Panel& panel, F f) {
  const int half = panel.units * kUnit / 2;
  for (int column = 0; column < panel.units * kUnit; ++column) {
    const int within = op.gate ? column % half : column;
    if (within < panel.channels)
      f(column, panel.channel + within + (op.gate && column >= half ? op.n / 2 : 0));
  }
}

// Memory of the caches of a slice of up to a given size.
class State {
 public:
  State(const NetworkView& network, int batch, int height, int width) : network_(network) {
    for (int i = 0; i <= network.n_caches + network.n_ops; ++i)
      memory_.push_back(zero_words(workspace_words(network, i, batch, height, width)));
    for (std::vector<Line>& lines : memory_)
      pointers_.push_back(reinterpret_cast<float*>(lines.data()));
  }

  // For the next slice.
  void clear() {
    for (int i = 0; i < network_.n_caches; ++i)
      std::fill(memory_[i].begin(), memory_[i].end(), Line{});
  }
  StateView view(const Slice& slice) const {
    return {&network_,       pointers_.data(), pointers_.data() + network_.n_caches,
            slice.batch,     slice.height,     slice.width,
            pointers_.back()};
  }

 private:
  const NetworkView& network_;
  std::vector<std::vector<Line>> memory_;  // as workspace_words counts them
  std::vector<float*> pointers_;
};

// One call: its slices, and the teams of threads that draw them.
class Run {
 public:
  Run(const CpuSampler& sampler, const CpuCall& call)
      : sampler_(sampler),
        r_(call),
        partition_(partition_among(r_.n, r_.threads, r_.slice > 0 ? r_.slice : sampler.slice(),
                                   r_.all.passes())),
        lanes_(r_.threads / partition_.workers),
        current_(partition_.workers),
        running_(partition_.workers * lanes_) {
    for (int i = 0; i < partition_.workers; ++i) {
      states_.emplace_back(sampler.network(), partition_.largest, r_.all.height, r_.all.width);
      teams_.push_back(std::make_unique<Team>(lanes_, control_));
    }
  }

  // The work of one of `call.threads` threads.
  void work(int thread) {
    const int t = thread / lanes_, lane = thread % lanes_;
    if (t >= partition_.workers) return;
    CpuWorker worker(sampler_.kernels(), *teams_[t], lane, lanes_);
    for (;;) {
      if (lane == 0) take(t);
      worker.end_row(0);
      if (current_[t].batch == 0 || worker.stop()) break;
      const StateView state = states_[t].view(current_[t]);
      Step<CpuWorker> step(sampler_.network(), current_[t], state, worker);
      if (!step.draw(0, sampler_.network().rows(r_.all.height))) break;
    }
    std::lock_guard lock(mutex_);
    if (--running_ == 0) finished_.notify_one();
  }

  void wait(const std::function<void(double)>& poll) {
    const double all = static_cast<double>(r_.n) * sampler_.network().rows(r_.all.height);
    std::unique_lock lock(mutex_);
    while (
        !finished_.wait_for(lock, std::chrono::milliseconds(100), [&] { return running_ == 0; })) {
      lock.unlock();
      poll(static_cast<double>(control_.image_rows.load(std::memory_order_relaxed)) / all);
      lock.lock();
    }
  }

  void stop() { control_.stop.store(true, std::memory_order_relaxed); }

 private:
  // The next slice for a team; an empty slice if there are no more.
  void take(int team) {
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    const int64_t slices = partition_.slices;
    current_[team] = Slice{};
    if (i >= slices) return;
    const auto begin = [&](int64_t slice) { return r_.all.begin(r_.n, slice, slices); };
    current_[team] = r_.all.images(sampler_.network(), begin(i), begin(i + 1));
    states_[team].clear();
  }

  const CpuSampler& sampler_;
  const CpuCall& r_;
  const Partition partition_;
  const int lanes_;  // of a team
  Control control_;
  std::vector<State> states_;
  std::vector<std::unique_ptr<Team>> teams_;
  std::vector<Slice> current_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable finished_;
  int running_;
};

}  // namespace

CpuSampler::CpuSampler(Program unchecked, const std::string& instruction_set, bool bf16)
    : kernels_(find_cpu_kernels(instruction_set, bf16)) {
  const Program program = checked(std::move(unchecked));
  skeleton_ = Skeleton(program, bf16, 1);
  for (size_t i = 0; i < program.ops.size(); ++i) {
    const Op& op = program.ops[i];
    const Panels panels = cut(op, kernels_);
    skeleton_.ops[i].row = pack(op, Part::kRow, panels);
    skeleton_.ops[i].pixel = pack(op, Part::kPixel, panels);
    skeleton_.ops[i].bias = pack_columns(op, panels, op.bias, 1);
    if (!op.projection.empty())
      skeleton_.add_projection(i, pack_columns(op, panels, op.projection, program.n_classes));
  }
}

// Weights are read once per slice and pixel, so a slice of a large network should be large. The
// slice's memory is read once per pixel, so it should fit a fast cache.
int CpuSampler::slice() const {
  constexpr size_t kFewWeights = size_t{4} << 20;
  size_t bytes = 0;
  for (const std::vector<Line>& lines : kept_) bytes += lines.size() * sizeof(Line);
  return bytes <= kFewWeights ? kernels_.slice : 16;
}

MatrixView CpuSampler::pack(const Op& op, Part part, Panels panels) {
  const std::vector<const Term*> terms = terms_of(op, part);
  const int columns = count_columns(panels);
  if (terms.empty()) return {nullptr, 0, columns};
  const size_t per_word = kernels_.bf16 ? 2 : 1;
  const auto length_of = [](const Term& term) {
    return static_cast<size_t>(term.taps) * term.channels;
  };
  int piece = kMaxPiece;
  while (std::ranges::any_of(terms, [&](auto* t) { return t->channels / per_word % piece > 0; }))
    --piece;
  size_t depth = 0;
  for (const Term* term : terms) depth += length_of(*term) / per_word;
  float* const b = keep(depth * columns);
  // A wide panel is packed separately if rows read it repeatedly, so that it stays in the L1 cache,
  // and if it comes from a slow cache, so that whole lines are used.
  constexpr size_t kNearWords = 32 << 10;
  const bool paired = columns <= kernels_.max_units * kUnit ||
                      (part == Part::kPixel && depth * columns <= kNearWords);
  for (size_t i = 0; i < panels.size(); ++i) {
    Panel& panel = panels[i];
    const Panel& first = panels[paired ? i / 2 * 2 : i];
    const Panel& last = panels[paired ? std::min(i | 1, panels.size() - 1) : i];
    panel.step = last.column + last.units * kUnit - first.column;
    float* to = b + depth * first.column + (panel.column - first.column);
    panel.piece = piece;
    panel.b = to;
    for (const Term* term : terms) {
      const size_t length = length_of(*term);
      each_output(op, panel, [&](int column, int output) {
        for (size_t k = 0; k < length; ++k) {
          float* const word = to + k / per_word * panel.step + column;
          put_operand(word, k % per_word, term->weight[output * length + k], kernels_.bf16);
        }
      });
      to += length / per_word * panel.step;
    }
  }
  const Panels& kept = panels_.emplace_back(std::move(panels));
  return {kept.data(), static_cast<int>(kept.size()), columns};
}

const float* CpuSampler::pack_columns(const Op& op, const Panels& panels,
                                      const std::vector<float>& values, int rows) {
  const size_t depth = rows, columns = count_columns(panels);
  float* const packed = keep(depth * columns);
  for (const Panel& panel : panels)
    each_output(op, panel, [&](int column, int output) {
      for (size_t row = 0; row < depth; ++row)
        packed[row * columns + panel.column + column] = values[output * depth + row];
    });
  return packed;
}

// The threads start first: the system may provide fewer than requested, with the same images.
void CpuSampler::sample(const CpuCall& call, const std::function<void(double)>& poll) const {
  if (call.n == 0) return;
  std::promise<Run*> ready;  // null: nothing to do
  const std::shared_future<Run*> run_of_all = ready.get_future().share();
  std::vector<std::thread> threads;
  threads.reserve(call.threads);
  try {
    while (static_cast<int>(threads.size()) < call.threads)
      threads.emplace_back([run_of_all, i = static_cast<int>(threads.size())] {
        if (Run* const run = run_of_all.get()) run->work(i);
      });
  } catch (const std::exception&) {
    if (threads.empty())
      throw std::runtime_error("the system does not let this process start a thread");
  }
  CpuCall now = call;
  now.threads = static_cast<int>(threads.size());
  std::unique_ptr<Run> run;
  std::exception_ptr failure;
  const auto stop = [&] { run ? run->stop() : ready.set_value(nullptr); };
  const auto join = [&] {
    for (std::thread& thread : threads) thread.join();
  };
  try {
    run = std::make_unique<Run>(*this, now);
    ready.set_value(run.get());
    run->wait(poll);
#if defined(__GLIBCXX__)
  } catch (const abi::__forced_unwind&) {
    // Python, before 3.14, ends a daemon thread that asks for the GIL while the interpreter ends.
    // The callers' destructors would ask for it again, so this thread waits for the process's end.
    stop();
    join();
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
#endif
  } catch (...) {
    failure = std::current_exception();
    stop();
  }
  join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace dsmooth::sampler
