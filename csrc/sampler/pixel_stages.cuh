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
template <class T, class Block, int kHigh>
class PixelStages {
 public:
  DSMOOTH_HOST_DEVICE PixelStages(const Block& block, int column)
      : memory_(block), column_(column) {}

  // Operations first .. end - 1 of a list, with a sync behind each.
  DSMOOTH_HOST_DEVICE void draw(const PixelOp* list, int n, Block& block) {
    PixelOp next = load_pixel_op(list);
    fetch_weights(next, memory_.warp(), 0);
    fetch_rows(next, 0, {kNone, kNone, 0, 0});
    for (int i = 0; i < n;) {
      const PixelOp now = next;
      if (++i < n) next = load_pixel_op(list + i);  // behind the last one, nothing that matters
      stage(now, next);
      block.sync();
    }
  }

 private:
  DSMOOTH_HOST_DEVICE void stage(PixelOp now, PixelOp next) {
    const CudaOp& op = memory_.ops()[now.op];
    const int column = column_ >> now.level;
    const int steps = op.steps[kPixelPart];
    buffer_ ^= 1;
    const Near written = {row_of(op.act_out), row_of(op.raw_out), column + 1,
                          buffer_ * memory_.layout().near_bytes()};
    Sums odd{};
    for (int unit = memory_.warp(), step = 0;;) {
      const bool mine = unit < op.units, whole = mine && step + kAhead >= steps;
      const int finished = unit;
      Residual residual;
      if (mine) {
        if (whole) residual = load_residual(op, column, unit);
        multiply(steps - step, odd);
      }
      const Sums sums = total(odd);
      step = mine && !whole ? step + kAhead : 0;
      if (step == 0) unit += Block::kWarps;
      const bool more = unit < op.units;
      const PixelOp following = {more ? now.op : next.op, more ? now.level : next.level};
      fetch_weights(following, more ? unit : memory_.warp(), step);
      if (whole) {
        op.gate ? finish<true>(op, column, finished, sums, residual, written.offset)
                : finish<false>(op, column, finished, sums, residual, written.offset);
        odd = {};
      }
      fetch_rows(following, step, choose(more, near_, written));
      if (!more) break;
    }
    near_ = written;
  }

  using W = Warp<T, Block::kWarpLanes>;
  // Steps in registers, as many as they hold. MNIST's gates have 5, its other operations 5 and 3.
  static constexpr int kAhead = kHigh == 1 ? 5 : 4, kFirst = kHigh == 1 ? 3 : 2;
  static constexpr int kFragmentGranules = W::kLoadedRows * W::kLoadedGranules;
  static constexpr int kPixelPart = static_cast<int>(Part::kPixel);

  struct Sums {
    Pair of[kHigh][W::kSlots];
  };
  // What the operation before has written at this pixel: rows and column of its caches, and where
  // in shared memory.
  struct Near {
    int act, raw, column, offset;
  };
  struct Residual {
    float of[kHigh][W::kSlots];
  };
  // The steps of a unit that are multiplied next, and its sums.
  struct Held {
    Granule weights[kAhead][W::kLoadedWeights], rows[kAhead][kHigh * kFragmentGranules];
    int near_at[kAhead][W::kLoadedGranules];  // bytes of a row into near(), or kNone
    Sums sums;
  };

  // By value: of two places in memory the compiler could keep neither in registers.
  DSMOOTH_HOST_DEVICE static Near choose(bool first, Near a, Near b) {
    return {first ? a.act : b.act, first ? a.raw : b.raw, first ? a.column : b.column,
            first ? a.offset : b.offset};
  }
  DSMOOTH_HOST_DEVICE static int row_of(int cache) {
    return cache == kNone ? kNone : cache * kRowsInReach - kRowAbove;
  }
  DSMOOTH_HOST_DEVICE int image(int high, int slot) const {
    return high * kRows + W::slot_row(memory_.lane(), slot);
  }

  // Loads the weights of a unit from step `step` on. Behind the last step it loads that one again,
  // which costs no more than a branch and parts no loads; where there is no such unit, another.
  DSMOOTH_HOST_DEVICE void fetch_weights(PixelOp p, int unit, int step) {
    const CudaOp& op = memory_.ops()[p.op];
    const int steps = op.steps[kPixelPart], left = steps - step - 1;
    if (unit >= op.units) unit = 0;
    const Granule* weights = op.weights[kPixelPart] +
                             ptrdiff_t{unit * steps + step} * kWeightGranules +
                             W::weight(memory_.lane(), 0);
    DSMOOTH_DEVICE_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      const int k = (j < left ? j : left) * kWeightGranules;
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < W::kLoadedWeights; ++i)
        held_.weights[j][i] = load_weights(weights + k + W::weight(0, i));
    }
    if (step == 0) begin_sums(p.op, column_ >> p.level, unit);
  }

  // Loads what they are multiplied by, but for what the operation before writes: zeros behind the
  // last step.
  DSMOOTH_HOST_DEVICE void fetch_rows(PixelOp p, int step, Near near) {
    const CudaOp& op = memory_.ops()[p.op];
    const int left = op.steps[kPixelPart] - step - 1;
    const Source* sources = op.sources[kPixelPart] + step * kStepGranules;
    DSMOOTH_DEVICE_UNROLL
    for (int j = 0; j < kAhead; ++j)
      fetch_step(j, j <= left, sources + (j < left ? j : left) * kStepGranules, column_ >> p.level,
                 near);
  }

  DSMOOTH_HOST_DEVICE void fetch_step(int j, bool there, const Source* sources, int column,
                                      Near near) {
    DSMOOTH_DEVICE_UNROLL
    for (int q = 0; q < W::kLoadedGranules; ++q) {
      const Source source = load_source(sources + W::granule(memory_.lane(), q));
      const RowPlace row = memory_.rows()[source.row];
      const int from = source.in_cache(column);
      const bool act = source.row == near.act, raw = source.row == near.raw;
      const bool is_near = there && (act || raw) && from == near.column;
      held_.near_at[j][q] = is_near ? near.offset + (raw ? memory_.layout().near_raw : 0) +
                                          static_cast<int>(source.within) * kGranule
                                    : kNone;
      const uint32_t image = static_cast<uint32_t>(from * memory_.batch());
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < kHigh * W::kLoadedRows; ++i) {
        const int m = loaded_image(i);
        const uint32_t at =
            row.offset + source.within + (image + static_cast<uint32_t>(m)) * row.stride;
        held_.rows[j][i * W::kLoadedGranules + q] =
            load_global(memory_.granule(there && !is_near && m < memory_.batch() ? at : 0));
      }
    }
  }
  DSMOOTH_HOST_DEVICE int loaded_image(int i) const {
    return i / W::kLoadedRows * kRows + W::row(memory_.lane(), i % W::kLoadedRows);
  }

  DSMOOTH_HOST_DEVICE void begin_sums(int index, int column, int unit) {
    int stride;
    const float* init = memory_.init(index, Part::kPixel, column, stride) + unit * kColumns;
    each_slot([&](int high, int slot) {
      const int m = image(high, slot);
      held_.sums.of[high][slot] = load_pair(init + (m < memory_.batch() ? m : 0) * stride +
                                            W::slot_column(memory_.lane(), slot));
    });
  }

  // Steps behind the last one add zeros: no branch parts the products, but for one.
  DSMOOTH_HOST_DEVICE void multiply(int n, Sums& odd) {
    take_near();
    multiply_steps<0, kFirst>(odd);
    if (n > kFirst) multiply_steps<kFirst, kAhead>(odd);
  }
  template <int kBegin, int kEnd>
  DSMOOTH_HOST_DEVICE void multiply_steps(Sums& odd) {
    DSMOOTH_DEVICE_UNROLL
    for (int j = kBegin; j < kEnd; ++j) {
      DSMOOTH_DEVICE_UNROLL
      for (int high = 0; high < kHigh; ++high)
        W::multiply(held_.weights[j], held_.rows[j] + high * kFragmentGranules, held_.sums.of[high],
                    odd.of[high], memory_.lane());
    }
  }

  // The operands that the operation before has written by now.
  DSMOOTH_HOST_DEVICE void take_near() {
    DSMOOTH_DEVICE_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      DSMOOTH_DEVICE_UNROLL
      for (int q = 0; q < W::kLoadedGranules; ++q) {
        const unsigned char* from = memory_.near() + held_.near_at[j][q];
        DSMOOTH_DEVICE_UNROLL
        for (int i = 0; i < kHigh * W::kLoadedRows; ++i) {
          const int m = loaded_image(i);
          if (held_.near_at[j][q] != kNone && m < memory_.batch())
            held_.rows[j][i * W::kLoadedGranules + q] =
                *reinterpret_cast<const Granule*>(from + m * memory_.layout().near_stride);
        }
      }
    }
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

  // What a gate adds to.
  DSMOOTH_HOST_DEVICE Residual load_residual(const CudaOp& op, int column, int unit) const {
    Residual residual{};
    if (!op.gate) return residual;
    const RowPlace row = memory_.rows()[row_of(op.residual_in)];
    each_slot([&](int high, int slot) {
      const int m = image(high, slot);
      const Finish<T, true> gate(op, unit * kColumns + W::slot_column(memory_.lane(), slot));
      const uint32_t at = static_cast<uint32_t>((column + 1) * memory_.batch() + m);
      const bool there = m < memory_.batch() && gate.there();
      residual.of[high][slot] = load_one(reinterpret_cast<const float*>(memory_.granule(
                                             there ? row.offset + at * row.stride : 0)) +
                                         (there ? gate.channel() : 0));
    });
    return residual;
  }

  template <bool kGate>
  DSMOOTH_HOST_DEVICE void finish(const CudaOp& op, int column, int unit, const Sums& sums,
                                  const Residual& residual, int near) const {
    const Results results = Results::of(memory_, op, opaque(column));
    each_slot([&](int high, int slot) {
      const int m = image(high, slot);
      const Finish<T, kGate> finish(op, unit * kColumns + W::slot_column(memory_.lane(), slot));
      if (m >= memory_.batch() || !finish.there()) return;
      Pair v = finish.value(sums.of[high][slot], residual.of[high][slot]);
      if (results.add) v = results.template with_add<kGate>(v, m, finish.channel());
      store(finish, results, m, v, near);
    });
  }

  // To the caches, and for the next operation to shared memory.
  template <bool kGate>
  DSMOOTH_HOST_DEVICE void store(const Finish<T, kGate>& finish, const Results& to, int m, Pair v,
                                 int near) const {
    const SharedLayout& layout = memory_.layout();
    unsigned char* own = memory_.near() + near + m * layout.near_stride;
    if (to.residual_out)
      finish.template raw<ToGlobal>(Results::at(to.residual_out, to.out_stride, m, 0), v);
    if (to.raw_out) {
      finish.template raw<ToShared>(reinterpret_cast<T*>(own + layout.near_raw), v);
      finish.template raw<ToGlobal>(
          reinterpret_cast<T*>(Results::at(to.raw_out, to.raw_stride, m, 0)), v);
    }
    if (to.act_out) {
      Pair positive, negative;
      finish.elus(v, positive, negative);
      finish.template act<ToShared>(reinterpret_cast<T*>(own), positive, negative);
      finish.template act<ToGlobal>(
          reinterpret_cast<T*>(Results::at(to.act_out, to.act_stride, m, 0)), positive, negative);
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
  int buffer_ = 0;  // of results in shared memory
  Near near_{kNone, kNone, 0, 0};
  Held held_;
};

// All operations of a pixel, by a function of their own: no register holds anything else.
template <class T, int kHigh, class Block>
DSMOOTH_HOST_DEVICE DSMOOTH_DEVICE_ONCE void draw_stages(Block& block, const PixelOp* list, int n,
                                                         int column) {
  PixelStages<T, Block, kHigh>(block, column).draw(list, n, block);
}

}  // namespace dsmooth::sampler
