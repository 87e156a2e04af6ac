// Row parts of the CUDA worker: products with as many rows as a row of pixels has images.
#pragma once

#include <cstddef>
#include <cstdint>

#include "finish.cuh"

namespace dsmooth::sampler {

// A tile is drawn by one warp: kHigh fragments of rows by up to kWide units of columns. It loads
// operands from memory into the registers where they are multiplied, some steps ahead; what several
// warps load comes from the first cache. No warp waits for another.
template <class T, class Block, int kHigh>
class RowTile {
 public:
  // m_all: rows of the product, of which the tile's begin with m0. unit: its first, of n.
  DSMOOTH_HOST_DEVICE RowTile(const Block& block, int index, Part part, int column, int m_all,
                              int m0, int unit, int n)
      : memory_(block),
        op_(memory_.ops()[index]),
        index_(index),
        part_(part),
        column_(column),
        m_all_(m_all),
        m0_(m0),
        unit_(unit),
        n_(n),
        steps_(op_.steps[static_cast<int>(part)]) {}

  DSMOOTH_HOST_DEVICE void draw() {
    begin();
    DSMOOTH_DEVICE_UNROLL
    for (int j = 0; j < kAhead; ++j)
      if (j < steps_) load(j, j);
    for (int s = 0; s < steps_; s += kAhead) {
      DSMOOTH_DEVICE_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        if (s + j < steps_) multiply(j);
        if (s + j + kAhead < steps_) load(j, s + j + kAhead);
      }
    }
    if (part_ == Part::kRow && op_.two_parts) return keep();
    op_.gate ? finish<true>() : finish<false>();
  }

 private:
  using W = Warp<T, Block::kWarpLanes>;
  static constexpr int kAhead = 2;
  static constexpr int kFragmentGranules = W::kLoadedRows * W::kLoadedGranules;

  DSMOOTH_HOST_DEVICE int slot_row(int high, int slot) const {
    return m0_ + high * kRows + W::slot_row(memory_.lane(), slot);
  }
  DSMOOTH_HOST_DEVICE int slot_column(int wide, int slot) const {
    return (unit_ + wide) * kColumns + W::slot_column(memory_.lane(), slot);
  }

  DSMOOTH_HOST_DEVICE void begin() {
    int stride;
    const float* init = memory_.init(index_, part_, column_, stride);
    each([&](int high, int wide, int slot) {
      const int m = slot_row(high, slot);
      const int there = m < m_all_ ? m : 0, unit = wide < n_ ? wide : 0;
      sums_[high][wide][slot] =
          load_pair(init + ptrdiff_t{there} * stride + slot_column(unit, slot));
    });
  }

  DSMOOTH_HOST_DEVICE void load(int j, int s) {
    DSMOOTH_DEVICE_UNROLL
    for (int wide = 0; wide < kWide; ++wide) {
      const Granule* from =
          op_.weights[static_cast<int>(part_)] + W::weight(memory_.lane(), 0) +
          ptrdiff_t{(unit_ + (wide < n_ ? wide : 0)) * steps_ + s} * kWeightGranules;
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < W::kLoadedWeights; ++i)
        weights_[j][wide][i] = load_weights(from + W::weight(0, i));
    }
    DSMOOTH_DEVICE_UNROLL
    for (int q = 0; q < W::kLoadedGranules; ++q) {
      const int k = s * kStepGranules + W::granule(memory_.lane(), q);
      const Source source = load_source(op_.sources[static_cast<int>(part_)] + k);
      const RowPlace row = memory_.rows()[source.row];
      const uint32_t first = static_cast<uint32_t>(source.in_cache(column_) * memory_.batch());
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < kHigh * W::kLoadedRows; ++i) {
        const int m = m0_ + i / W::kLoadedRows * kRows + W::row(memory_.lane(), i % W::kLoadedRows);
        const uint32_t at =
            row.offset + source.within + (first + static_cast<uint32_t>(m)) * row.stride;
        rows_[j][i * W::kLoadedGranules + q] = load_global(memory_.granule(m < m_all_ ? at : 0));
      }
    }
  }

  DSMOOTH_HOST_DEVICE void multiply(int j) {
    DSMOOTH_DEVICE_UNROLL
    for (int high = 0; high < kHigh; ++high) {
      DSMOOTH_DEVICE_UNROLL
      for (int wide = 0; wide < kWide; ++wide)
        W::multiply(weights_[j][wide], rows_[j] + high * kFragmentGranules, sums_[high][wide],
                    sums_[high][wide], memory_.lane());
    }
  }

  DSMOOTH_HOST_DEVICE void keep() {
    float* partial = memory_.partial(index_, column_);
    const int columns = op_.columns();
    each([&](int high, int wide, int slot) {
      const int m = slot_row(high, slot);
      if (m < m_all_ && wide < n_)
        store_pair(partial + ptrdiff_t{m} * columns + slot_column(wide, slot),
                   sums_[high][wide][slot]);
    });
  }

  // Through memory of the lane's own, so that the code of an output need not be there for each.
  template <bool kGate>
  DSMOOTH_HOST_DEVICE void finish() {
    Pair* scratch = memory_.scratch();
    const auto place = [](int high, int wide, int slot) {
      return ((high * kWide + wide) * W::kSlots + slot) * BlockMemory<Block>::kLanes;
    };
    each([&](int high, int wide, int slot) {
      scratch[place(high, wide, slot)] = sums_[high][wide][slot];
    });
    const Results to = Results::of(memory_, op_, column_);
    for (int wide = 0; wide < n_; ++wide)
      for (int high = 0; high < kHigh; high += kGroup) {
        // Loads first.
        float residual[kGroup * W::kSlots] = {};
        if (kGate)
          each_in_group<kGate>(high, wide, [&](int i, int m, const Finish<T, kGate>& f, int) {
            residual[i] = load_one(Results::at(to.residual_in, to.residual_stride, m, f.channel()));
          });
        each_in_group<kGate>(high, wide, [&](int i, int m, const Finish<T, kGate>& f, int at) {
          Pair v = f.value(scratch[place(at, wide, i % W::kSlots)], residual[i]);
          if (to.add) v = to.template with_add<kGate>(v, m, f.channel());
          store(to, m, f, v);
        });
      }
  }

  static constexpr int kGroup = 2;  // fragments
  template <bool kGate, class F>
  DSMOOTH_HOST_DEVICE void each_in_group(int high, int wide, F f) const {
    DSMOOTH_DEVICE_UNROLL
    for (int i = 0; i < kGroup * W::kSlots; ++i) {
      const int at = high + i / W::kSlots, m = slot_row(at, i % W::kSlots);
      const Finish<T, kGate> finish(op_, slot_column(wide, i % W::kSlots));
      if (m < m_all_ && finish.there()) f(i, m, finish, at);
    }
  }

  template <bool kGate>
  DSMOOTH_HOST_DEVICE void store(const Results& to, int m, const Finish<T, kGate>& finish,
                                 Pair v) const {
    if (to.residual_out)
      finish.template raw<ToGlobal>(Results::at(to.residual_out, to.out_stride, m, 0), v);
    if (to.raw_out)
      finish.template raw<ToGlobal>(
          reinterpret_cast<T*>(Results::at(to.raw_out, to.raw_stride, m, 0)), v);
    if (to.act_out) {
      Pair positive, negative;
      finish.elus(v, positive, negative);
      finish.template act<ToGlobal>(
          reinterpret_cast<T*>(Results::at(to.act_out, to.act_stride, m, 0)), positive, negative);
    }
  }

  // Calls f(fragment of rows, unit, slot) for every pair of sums.
  template <class F>
  DSMOOTH_HOST_DEVICE static void each(F f) {
    DSMOOTH_DEVICE_UNROLL
    for (int high = 0; high < kHigh; ++high) {
      DSMOOTH_DEVICE_UNROLL
      for (int wide = 0; wide < kWide; ++wide) {
        DSMOOTH_DEVICE_UNROLL
        for (int slot = 0; slot < W::kSlots; ++slot) f(high, wide, slot);
      }
    }
  }

  const BlockMemory<Block> memory_;
  const CudaOp& op_;
  const int index_;
  const Part part_;
  const int column_, m_all_, m0_, unit_, n_, steps_;
  Granule weights_[kAhead][kWide][W::kLoadedWeights];
  Granule rows_[kAhead][kHigh * kFragmentGranules];
  Pair sums_[kHigh][kWide][W::kSlots];
};

// Draws a product of `count` columns. Tiles are dealt to the warps from warp `turn` on; returns
// whose turn it is after that, so that products without a sync between them share the warps.
template <class T, class Block>
DSMOOTH_HOST_DEVICE DSMOOTH_DEVICE_ONCE int draw_rows(Block block, int index, Part part, int column,
                                                      int count, int turn) {
  const BlockMemory<Block> memory(block);
  const CudaOp& op = memory.ops()[index];
  const int m = count * memory.batch(), across = op.tiles_across;
  const auto down = [m](int high) { return (m + high * kRows - 1) / (high * kRows); };
  const bool tall = memory.layout().tall && down(kTall) * across >= Block::kWarps;
  const int n = down(tall ? kTall : kLow) * across;
  for (int i = (memory.warp() - turn) & (Block::kWarps - 1); i < n; i += Block::kWarps) {
    const int unit = i % across * op.units_per_tile, left = op.units - unit;
    const int units = left < op.units_per_tile ? left : op.units_per_tile;
    const int m0 = i / across * (tall ? kTall : kLow) * kRows;
    if (tall)
      RowTile<T, Block, kTall>(block, index, part, column, m, m0, unit, units).draw();
    else
      RowTile<T, Block, kLow>(block, index, part, column, m, m0, unit, units).draw();
  }
  return (turn + n) & (Block::kWarps - 1);
}

}  // namespace dsmooth::sampler
