// Pixel parts of the CUDA worker: products with the images of a slice for rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "finish.cuh"

namespace dsmooth::sampler {

// A warp takes a unit of output columns, loads its weights into the registers where they are
// multiplied, and finishes the sums there. kHigh: fragments of 8 images. docs/sampler.md says why.
//
// After the products of a window, the weights, rows and summands of the next window are loaded, all
// at once, and the sources of the window after that. Nothing reads them before the next products.
// Rows that this operation writes come from shared memory. A summand was written by an earlier
// operation (sampler.cpp).
template <class T, class Block, int kHigh>
class PixelStages {
 public:
  DSMOOTH_HOST_DEVICE PixelStages(const Block& block, const PixelStage* list, int n, int column)
      : memory_(block), list_(list), n_(n), column_(column) {}

  // Runs the operations of the list, with a sync after each.
  DSMOOTH_HOST_DEVICE void draw(Block& block) {
    if (n_ == 0) return;
    Window now{stage_at(0), 0, memory_.warp(), 0};
    Sources sources = load_sources(now);
    fetch(now, addresses_of(now), sources);
    Window next = window_after(now, stage_at(1));
    sources = load_sources(next);
    PixelStage third = stage_at(next.index + 1);
    Sums odd{};
    for (;;) {
      const CudaOp& op = memory_.ops()[now.stage.op];
      const int steps = op.steps[kPixelPart] - now.step;
      const bool mine = now.unit < op.units, whole = mine && steps <= kWindow;
      const Addresses addresses = addresses_of(next);
      const Window after = window_after(next, third);
      Sums values{};
      if (mine) multiply(steps, odd);
      if (whole)
        values = op.gate ? values_of<Results::kGate>(odd) : values_of<Results::kPairs>(odd);
      fetch(next, addresses, sources);
      sources = load_sources(after);
      third = stage_at(after.index + 1);
      if (whole) {
        op.gate        ? store<Results::kGate>(op, now.unit, values)
        : op.is_even() ? store<Results::kPairs>(op, now.unit, values)
                       : store<Results::kOdd>(op, now.unit, values);
        odd = {};
      }
      if (next.index != now.index) {
        block.sync();
        buffer_ ^= 1;
        if (next.index == n_) return;
      }
      now = next;
      next = after;
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
    int index;       // of the stage in the list; the window is unused if it is n_ or more
    int unit, step;  // the first ones
  };
  struct Sources {
    PixelSource of[kWindow][W::kLoadedGranules];
  };
  // Addresses of a window's operands, except its rows.
  struct Addresses {
    int unit, steps;    // remaining in the unit; 0 if the unit does not exist
    bool begins, ends;  // the sums of the unit
    const Granule* weights;
    Column added;
  };
  // The operands of the next window, and the sums of its unit.
  struct Held {
    Granule weights[kWindow][W::kLoadedWeights], rows[kWindow][kHigh * kFragmentGranules];
    int near[kWindow][W::kLoadedGranules];  // where granules come from shared memory, or kNone
    Sums sums, added;
  };

  DSMOOTH_HOST_DEVICE PixelStage stage_at(int index) const {
    return load_constant(list_ + (index < n_ ? index : n_ - 1));
  }
  // The window after another; `stage` is the one after that window's stage.
  DSMOOTH_HOST_DEVICE Window window_after(const Window& window, const PixelStage& stage) const {
    const CudaOp& op = memory_.ops()[window.stage.op];
    const bool same_unit = window.unit < op.units && op.steps[kPixelPart] - window.step > kWindow;
    const int unit = same_unit ? window.unit : window.unit + Block::kWarps;
    if (unit < op.units)
      return {window.stage, window.index, unit, same_unit ? window.step + kWindow : 0};
    return {stage, window.index + 1, memory_.warp(), 0};
  }

  DSMOOTH_HOST_DEVICE int image(int high, int slot) const {
    return high * kRows + W::slot_row(memory_.lane(), slot);
  }
  // A missing image is replaced by image 0, and its results are not stored.
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

  DSMOOTH_HOST_DEVICE Addresses addresses_of(const Window& window) const {
    const CudaOp& op = memory_.ops()[window.stage.op];
    const bool mine = window.unit < op.units;
    const int unit = mine ? window.unit : 0, steps = op.steps[kPixelPart];
    const int left = mine ? steps - window.step : 0;
    return {unit,
            left,
            mine && window.step == 0,
            mine && left <= kWindow,
            op.weights[kPixelPart] + ptrdiff_t{unit * steps + window.step} * kWeightGranules +
                W::weight(memory_.lane(), 0),
            columns_of(op).added};
  }

  // Loads the operands of a window, except the rows that the previous operation writes. The first
  // step also loads the initial values of the sums, the last one their summands.
  DSMOOTH_HOST_DEVICE void fetch(const Window& window, const Addresses& addresses,
                                 const Sources& sources) {
    DSMOOTH_DEVICE_UNROLL
    for (int j = 0; j < kWindow; ++j) {
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < W::kLoadedWeights; ++i)
        load_weights(held_.weights[j][i], addresses.weights + j * kWeightGranules + W::weight(0, i),
                     j < addresses.steps);
    }
    fetch_rows<0, kFirst>(sources, addresses.steps > 0);
    fetch_rows<kFirst, kWindow>(sources, addresses.steps > kFirst);
    const CudaOp& op = memory_.ops()[window.stage.op];
    const int first = (column_ >> window.stage.resolution) * memory_.batch();
    each_slot([&](int high, int slot) {
      const int m = image(high, slot), row = first + (m < memory_.batch() ? m : 0);
      const int column = addresses.unit * kColumns + W::slot_column(memory_.lane(), slot);
      load_sums(held_.sums.of[high][slot], op.begin + (row * op.begin_stride + column),
                addresses.begins);
      held_.added.of[high][slot] =
          load_added(op, addresses.added, m, column, addresses.ends && m < memory_.batch());
    });
  }
  template <int kBegin, int kEnd>
  DSMOOTH_HOST_DEVICE void fetch_rows(const Sources& sources, bool there) {
    each_granule<kBegin, kEnd>([&](int j, int q) {
      const PixelSource source = sources.of[j][q];
      const RowAddress column = memory_.columns()[source.column()];
      held_.near[j][q] = source.near();
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < kHigh * W::kLoadedRows; ++i) {
        const uint32_t image = static_cast<uint32_t>(loaded_image(i)) * column.stride;
        load_global(held_.rows[j][i * W::kLoadedGranules + q],
                    memory_.granule(column.offset + source.within + image), there);
      }
    });
  }

  // After the last step, rows are zeros.
  DSMOOTH_HOST_DEVICE void multiply(int steps, Sums& odd) {
    multiply_steps<0, kFirst>(odd);
    if (steps > kFirst) multiply_steps<kFirst, kWindow>(odd);
  }
  template <int kBegin, int kEnd>
  DSMOOTH_HOST_DEVICE void multiply_steps(Sums& odd) {
    take_near<kBegin, kEnd>();
    DSMOOTH_DEVICE_UNROLL
    for (int j = kBegin; j < kEnd; ++j) {
      DSMOOTH_DEVICE_ROLL
      for (int round = 0; round < W::kRounds; ++round) {
        DSMOOTH_DEVICE_UNROLL
        for (int high = 0; high < kHigh; ++high)
          W::multiply(held_.weights[j], held_.rows[j] + high * kFragmentGranules,
                      held_.sums.of[high], odd.of[high], memory_.lane(), round);
      }
    }
  }

  // Loads the operands that the previous operation has written.
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

  // The results of the held sums, plus the sums of odd fragments of k if a lane has them.
  template <Results kResults>
  DSMOOTH_HOST_DEVICE Sums values_of(const Sums& odd) const {
    Sums values;
    each_slot([&](int high, int slot) {
      Pair sums = held_.sums.of[high][slot];
      if (W::kTwoSums) {
        sums.x += odd.of[high][slot].x;
        sums.y += odd.of[high][slot].y;
      }
      values.of[high][slot] = Finish<T, kResults>::value(sums, held_.added.of[high][slot]);
    });
    return values;
  }

  DSMOOTH_HOST_DEVICE Columns columns_of(const CudaOp& op) const {
    return Columns::of(memory_, op,
                       [&](int cache) { return memory_.columns()[own_column(cache)]; });
  }

  // Stores to the caches and, for the next operation, to shared memory.
  template <Results kResults>
  DSMOOTH_HOST_DEVICE void store(const CudaOp& op, int unit, const Sums& values) const {
    using F = Finish<T, kResults>;
    const Columns to = columns_of(op);
    const SharedLayout& layout = memory_.layout();
    unsigned char* const near = memory_.near() + buffer_ * layout.near_bytes();
    const auto each = [&](auto f) {
      each_slot([&](int high, int slot) {
        const int m = image(high, slot);
        f(F(op, unit * kColumns + W::slot_column(memory_.lane(), slot), m < memory_.batch()), m,
          values.of[high][slot]);
      });
    };
    each([&](const F& f, int m, Pair value) {
      T* const own = reinterpret_cast<T*>(near + m * layout.near_stride + layout.near_raw);
      f.template raw<Global>(reinterpret_cast<float*>(to.residual_out.at(m)), value,
                             to.residual_out.there());
      f.template raw<Shared>(own, value, to.raw_out.there());
      f.template raw<Global>(reinterpret_cast<T*>(to.raw_out.at(m)), value, to.raw_out.there());
    });
    Pair positive, negative;
    const auto own = [&](int m) { return reinterpret_cast<T*>(near + m * layout.near_stride); };
    const auto cache = [&](int m) { return reinterpret_cast<T*>(to.act_out.at(m)); };
    if (op.split)
      each([&](const F& f, int m, Pair value) {
        F::template elus<Scalar>(value, positive, negative);
        f.template split<Shared>(own(m), positive, to.act_out.there());
        f.template split<Global>(cache(m), positive, to.act_out.there());
      });
    else
      each([&](const F& f, int m, Pair value) {
        F::template elus<Curves<T>>(value, positive, negative);
        f.template act<Shared>(own(m), positive, negative, to.act_out.there());
        f.template act<Global>(cache(m), positive, negative, to.act_out.there());
      });
  }

  // Calls f(step, granule) for each granule of a row that a lane loads.
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
  const PixelStage* const list_;
  const int n_, column_;
  int buffer_ = 0;  // of the current operation's results in shared memory
  Held held_{};     // always finite, since zeros multiply it
};

// All operations of a pixel, in a separate function so that registers hold nothing else.
template <class T, int kHigh, class Block>
DSMOOTH_HOST_DEVICE DSMOOTH_DEVICE_ONCE void draw_stages(Block& block, const PixelStage* list,
                                                         int n, int column) {
  PixelStages<T, Block, kHigh>(block, list, n, column).draw(block);
}

}  // namespace dsmooth::sampler
