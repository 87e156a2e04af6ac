// Pixel parts of the CUDA worker: products with the images of a slice for rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "finish.cuh"

namespace dsmooth::sampler {

// Each weight is used once. So nothing is staged: a warp takes a unit of output columns, loads its
// weights into the registers where they are multiplied, and finishes them there. The next
// operation's loads go ahead of the barrier between the two; only what the present one writes has
// to wait, and comes from shared memory. kHigh: fragments of 8 images.
//
// A warp's instructions are what a pixel takes, so there are few: the host has found where each
// granule lies, and what may be missing is left out by a predicate instead of a branch.
template <class T, class Block, int kHigh>
class PixelStages {
 public:
  DSMOOTH_HOST_DEVICE PixelStages(const Block& block, int column)
      : memory_(block), column_(column) {}

  // The n operations of a list, with a sync behind each.
  DSMOOTH_HOST_DEVICE void draw(const PixelStage* list, int n, Block& block) {
    if (n == 0) return;
    PixelStage next = load_constant(list), after = load_constant(list + (n > 1 ? 1 : 0));
    const Window first{next, memory_.warp(), 0};
    const Sources sources = load_sources(first);
    fetch_weights(first);
    fetch_rows(first, sources);
    for (int i = 0; i < n; ++i) {
      const PixelStage now = next;
      next = after;
      after = load_constant(list + (i + 2 < n ? i + 2 : n - 1));
      stage(now, next);  // behind the last one, nothing that matters
      block.sync();
    }
  }

 private:
  using W = Warp<T, Block::kWarpLanes>;
  // Short sums end with kFirst steps: of MNIST's gates there are 5, of its other operations 5 or 8.
  static constexpr int kFirst = 5;
  static constexpr int kFragmentGranules = W::kLoadedRows * W::kLoadedGranules;
  static constexpr int kPixelPart = static_cast<int>(Part::kPixel);

  struct Sums {
    Pair of[kHigh][W::kSlots];
  };
  // The steps of a unit that are multiplied at once.
  struct Window {
    PixelStage stage;
    int unit, step;  // the first ones
  };
  struct Sources {
    PixelSource of[kWindow][W::kLoadedGranules];
  };
  // The operands of the window that is next, and the sums of its unit.
  struct Held {
    Granule weights[kWindow][W::kLoadedWeights], rows[kWindow][kHigh * kFragmentGranules];
    int near[kWindow][W::kLoadedGranules];  // where granules come from shared memory, or kNone
    Sums sums;
  };

  DSMOOTH_HOST_DEVICE void stage(const PixelStage& now, const PixelStage& next) {
    const CudaOp& op = memory_.ops()[now.op];
    buffer_ ^= 1;
    Sums odd{};
    for (Window window{now, memory_.warp(), 0};;) {
      const int steps = op.steps[kPixelPart] - window.step, unit = window.unit;
      const bool mine = unit < op.units, whole = mine && steps <= kWindow;
      Window following{now, whole || !mine ? unit + Block::kWarps : unit,
                       whole || !mine ? 0 : window.step + kWindow};
      const bool more = following.unit < op.units;
      if (!more) following = {next, memory_.warp(), 0};
      const Sources sources = load_sources(following);
      const Sums added = load_added(op, unit, whole);
      if (mine) multiply(steps, odd);
      const Sums sums = total(odd);
      fetch_weights(following);
      if (whole) {
        op.gate ? finish<true>(op, unit, sums, added) : finish<false>(op, unit, sums, added);
        odd = {};
      }
      fetch_rows(following, sources);
      if (!more) break;
      window = following;
    }
  }

  DSMOOTH_HOST_DEVICE int steps_of(const Window& window) const {
    return memory_.ops()[window.stage.op].steps[kPixelPart] - window.step;
  }
  DSMOOTH_HOST_DEVICE int image(int high, int slot) const {
    return high * kRows + W::slot_row(memory_.lane(), slot);
  }
  // An image that is not there is replaced by another, whose results go nowhere.
  DSMOOTH_HOST_DEVICE int loaded_image(int i) const {
    const int m = i / W::kLoadedRows * kRows + W::row(memory_.lane(), i % W::kLoadedRows);
    return m < memory_.batch() ? m : 0;
  }

  DSMOOTH_HOST_DEVICE Sources load_sources(const Window& window) const {
    const PixelSource* from = window.stage.sources + window.step * kStepGranules;
    Sources sources;
    each_granule<0, kWindow>([&](int j, int q) {
      sources.of[j][q] = load_constant(from + W::granule(memory_.lane(), q) + j * kStepGranules);
    });
    return sources;
  }

  // Loads the weights of a window, and at the first step the initial values of the sums. A unit
  // that is not there is replaced by another.
  DSMOOTH_HOST_DEVICE void fetch_weights(const Window& window) {
    const CudaOp& op = memory_.ops()[window.stage.op];
    const int unit = window.unit < op.units ? window.unit : 0, steps = op.steps[kPixelPart];
    const Granule* weights = op.weights[kPixelPart] +
                             ptrdiff_t{unit * steps + window.step} * kWeightGranules +
                             W::weight(memory_.lane(), 0);
    DSMOOTH_DEVICE_UNROLL
    for (int j = 0; j < kWindow; ++j) {
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < W::kLoadedWeights; ++i)
        load_weights(held_.weights[j][i], weights + j * kWeightGranules + W::weight(0, i),
                     j < steps - window.step);
    }
    const int first = (column_ >> window.stage.level) * memory_.batch();
    const float* begin = op.begin + unit * kColumns + W::slot_column(memory_.lane(), 0);
    each_slot([&](int high, int slot) {
      const int m = image(high, slot), row = first + (m < memory_.batch() ? m : 0);
      const int column = W::slot_column(memory_.lane(), slot) - W::slot_column(memory_.lane(), 0);
      load_sums(held_.sums.of[high][slot], begin + row * op.begin_stride + column,
                window.step == 0);
    });
  }

  // Loads the rows of a window, but for what the operation before writes.
  DSMOOTH_HOST_DEVICE void fetch_rows(const Window& window, const Sources& sources) {
    fetch_steps<0, kFirst>(sources);
    if (steps_of(window) > kFirst) fetch_steps<kFirst, kWindow>(sources);
  }
  template <int kBegin, int kEnd>
  DSMOOTH_HOST_DEVICE void fetch_steps(const Sources& sources) {
    each_granule<kBegin, kEnd>([&](int j, int q) {
      const PixelSource source = sources.of[j][q];
      const RowPlace column = memory_.columns()[source.column];
      held_.near[j][q] = source.near;
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < kHigh * W::kLoadedRows; ++i) {
        const uint32_t image = static_cast<uint32_t>(loaded_image(i)) * column.stride;
        held_.rows[j][i * W::kLoadedGranules + q] =
            load_global(memory_.granule(column.offset + source.within + image));
      }
    });
  }

  // Steps behind the last one have zeros for rows.
  DSMOOTH_HOST_DEVICE void multiply(int steps, Sums& odd) {
    multiply_steps<0, kFirst>(odd);
    if (steps > kFirst) multiply_steps<kFirst, kWindow>(odd);
  }
  template <int kBegin, int kEnd>
  DSMOOTH_HOST_DEVICE void multiply_steps(Sums& odd) {
    take_near<kBegin, kEnd>();
    DSMOOTH_DEVICE_UNROLL
    for (int j = kBegin; j < kEnd; ++j) {
      DSMOOTH_DEVICE_UNROLL
      for (int high = 0; high < kHigh; ++high)
        W::multiply(held_.weights[j], held_.rows[j] + high * kFragmentGranules, held_.sums.of[high],
                    odd.of[high], memory_.lane());
    }
  }

  // The operands that the operation before has written by now.
  template <int kBegin, int kEnd>
  DSMOOTH_HOST_DEVICE void take_near() {
    const unsigned char* from = memory_.near() + (buffer_ ^ 1) * memory_.layout().near_bytes();
    each_granule<kBegin, kEnd>([&](int j, int q) {
      const int near = held_.near[j][q];
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < kHigh * W::kLoadedRows; ++i)
        load_shared(held_.rows[j][i * W::kLoadedGranules + q],
                    from + loaded_image(i) * memory_.layout().near_stride + near * kGranule,
                    near != kNone);
    });
  }

  // With the sums of odd fragments of k, where a lane has them.
  DSMOOTH_HOST_DEVICE Sums total(const Sums& odd) const {
    Sums sums = held_.sums;
    if (W::kTwoSums)
      each_slot([&](int high, int slot) {
        sums.of[high][slot].x += odd.of[high][slot].x;
        sums.of[high][slot].y += odd.of[high][slot].y;
      });
    return sums;
  }

  DSMOOTH_HOST_DEVICE Columns columns_of(const CudaOp& op) const {
    return Columns::of(memory_, op,
                       [&](int cache) { return memory_.columns()[own_column(cache)]; });
  }

  DSMOOTH_HOST_DEVICE Sums load_added(const CudaOp& op, int unit, bool whole) const {
    const Column from = columns_of(op).added;
    Sums added;
    each_slot([&](int high, int slot) {
      const int m = image(high, slot);
      added.of[high][slot] =
          sampler::load_added(op, from, m, unit * kColumns + W::slot_column(memory_.lane(), slot),
                              whole && m < memory_.batch());
    });
    return added;
  }

  // To the caches, and for the next operation to shared memory.
  template <bool kGate>
  DSMOOTH_HOST_DEVICE void finish(const CudaOp& op, int unit, const Sums& sums,
                                  const Sums& added) const {
    const Columns to = columns_of(op);
    const SharedLayout& layout = memory_.layout();
    unsigned char* const near = memory_.near() + buffer_ * layout.near_bytes();
    Sums v;
    const auto each = [&](auto f) {
      each_slot([&](int high, int slot) {
        const int m = image(high, slot);
        f(Finish<T, kGate>(op, unit * kColumns + W::slot_column(memory_.lane(), slot),
                           m < memory_.batch()),
          m, v.of[high][slot]);
      });
    };
    each_slot([&](int high, int slot) {
      v.of[high][slot] = Finish<T, kGate>::value(sums.of[high][slot], added.of[high][slot]);
    });
    each([&](const Finish<T, kGate>& f, int m, Pair value) {
      T* const own = reinterpret_cast<T*>(near + m * layout.near_stride + layout.near_raw);
      f.template raw<Global>(reinterpret_cast<float*>(to.residual_out.at(m)), value,
                             to.residual_out.there());
      f.template raw<Shared>(own, value, to.raw_out.there());
      f.template raw<Global>(reinterpret_cast<T*>(to.raw_out.at(m)), value, to.raw_out.there());
    });
    each([&](const Finish<T, kGate>& f, int m, Pair value) {
      Pair positive, negative;
      f.elus(value, positive, negative);
      T* const own = reinterpret_cast<T*>(near + m * layout.near_stride);
      T* const cache = reinterpret_cast<T*>(to.act_out.at(m));
      if (op.split) {
        f.template split<Shared>(own, positive, to.act_out.there());
        f.template split<Global>(cache, positive, to.act_out.there());
      } else {
        f.template act<Shared>(own, positive, negative, to.act_out.there());
        f.template act<Global>(cache, positive, negative, to.act_out.there());
      }
    });
  }

  // Calls f(step, granule) for what a lane loads of a row.
  template <int kBegin, int kEnd, class F>
  DSMOOTH_HOST_DEVICE static void each_granule(F f) {
    DSMOOTH_DEVICE_UNROLL
    for (int j = kBegin; j < kEnd; ++j) {
      DSMOOTH_DEVICE_UNROLL
      for (int q = 0; q < W::kLoadedGranules; ++q) f(j, q);
    }
  }
  // Calls f(fragment, slot) for every pair of sums.
  template <class F>
  DSMOOTH_HOST_DEVICE static void each_slot(F f) {
    DSMOOTH_DEVICE_UNROLL
    for (int high = 0; high < kHigh; ++high) {
      DSMOOTH_DEVICE_UNROLL
      for (int slot = 0; slot < W::kSlots; ++slot) f(high, slot);
    }
  }

  const BlockMemory<Block> memory_;
  const int column_;
  int buffer_ = 0;  // of the results of the present operation in shared memory
  Held held_{};     // finite, whatever is multiplied by zeros
};

// All operations of a pixel, by a function of their own: no register holds anything else.
template <class T, int kHigh, class Block>
DSMOOTH_HOST_DEVICE DSMOOTH_DEVICE_ONCE void draw_stages(Block& block, const PixelStage* list,
                                                         int n, int column) {
  PixelStages<T, Block, kHigh>(block, column).draw(list, n, block);
}

}  // namespace dsmooth::sampler
