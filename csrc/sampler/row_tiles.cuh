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
        steps_(op_.steps[static_cast<int>(part)]),
        sources_(op_.sources[static_cast<int>(part)]) {
    DSMOOTH_DEVICE_UNROLL
    for (int wide = 0; wide < kWide; ++wide)
      weights_of_[wide] = op_.weights[static_cast<int>(part)] + W::weight(memory_.lane(), 0) +
                          ptrdiff_t{(unit + (wide < n ? wide : 0)) * steps_} * kWeightGranules;
  }

  DSMOOTH_HOST_DEVICE void draw() {
    begin();
    DSMOOTH_DEVICE_UNROLL
    for (int j = 0; j < kAhead; ++j) load(j, j < steps_ ? j : 0, true);
    int s = 0;
    DSMOOTH_DEVICE_ROLL
    for (; s + kAhead <= steps_; s += kAhead) {
      DSMOOTH_DEVICE_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        multiply(j);
        load(j, s + j + kAhead, s + j + kAhead < steps_);
      }
    }
    static_assert(kAhead == 2);
    if (s < steps_) multiply(0);
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
  // From the tile's first column.
  DSMOOTH_HOST_DEVICE int slot_column(int wide, int slot) const {
    return W::slot_column(memory_.lane(), slot) + wide * kColumns;
  }

  DSMOOTH_HOST_DEVICE void begin() {
    int stride;
    const float* init = memory_.init(index_, part_, column_, stride) + unit_ * kColumns;
    each([&](int high, int wide, int slot) {
      const int m = slot_row(high, slot);
      load_sums(sums_[high][wide][slot],
                init + (m < m_all_ ? m : 0) * stride + slot_column(wide < n_ ? wide : 0, slot),
                true);
    });
  }

  // Loads step s if it is there. A unit or row that is not there is replaced by another, whose
  // results go nowhere.
  DSMOOTH_HOST_DEVICE void load(int j, int s, bool there) {
    DSMOOTH_DEVICE_UNROLL
    for (int wide = 0; wide < kWide; ++wide) {
      const Granule* from = weights_of_[wide] + ptrdiff_t{s} * kWeightGranules;
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < W::kLoadedWeights; ++i)
        load_weights(weights_[j][wide][i], from + W::weight(0, i), there);
    }
    DSMOOTH_DEVICE_UNROLL
    for (int q = 0; q < W::kLoadedGranules; ++q) {
      const int k = (there ? s : 0) * kStepGranules + W::granule(memory_.lane(), q);
      const Source source = load_constant(sources_ + k);
      const RowPlace row = memory_.rows()[source.row];
      const uint32_t first =
          row.offset + source.within +
          static_cast<uint32_t>(source.in_cache(column_) * memory_.batch()) * row.stride;
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < kHigh * W::kLoadedRows; ++i) {
        const int m = m0_ + i / W::kLoadedRows * kRows + W::row(memory_.lane(), i % W::kLoadedRows);
        const uint32_t at = first + static_cast<uint32_t>(m < m_all_ ? m : 0) * row.stride;
        load_global(rows_[j][i * W::kLoadedGranules + q], memory_.granule(at), there);
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
    float* partial = memory_.partial(index_, column_) + unit_ * kColumns;
    const int columns = op_.columns();
    each([&](int high, int wide, int slot) {
      const int m = slot_row(high, slot);
      store_sums<Global>(partial + m * columns + slot_column(wide, slot), sums_[high][wide][slot],
                         m < m_all_ && wide < n_);
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
      store_sums<Shared>(&scratch[place(high, wide, slot)].x, sums_[high][wide][slot], true);
    });
    const Columns to =
        Columns::of(memory_, op_, [&](int cache) { return memory_.column_of(cache, column_); });
    for (int wide = 0; wide < n_; ++wide)
      for (int high = 0; high < kHigh; high += kGroup) {
        Pair v[kGroup * W::kSlots];  // loads first
        const auto column = [&](int i) {
          return unit_ * kColumns + slot_column(wide, i % W::kSlots);
        };
        each_in_group(
            [&](int i, int m, int at) {
              v[i] = load_added(op_, to.added, m, column(i), m < m_all_);
              v[i] = Finish<T, kGate>::value(scratch[place(at, wide, i % W::kSlots)], v[i]);
            },
            high);
        each_in_group(
            [&](int i, int m, int) {
              store(to, m, Finish<T, kGate>(op_, column(i), m < m_all_), v[i]);
            },
            high);
      }
  }

  static constexpr int kGroup = 2;  // fragments
  template <class F>
  DSMOOTH_HOST_DEVICE void each_in_group(F f, int high) const {
    DSMOOTH_DEVICE_UNROLL
    for (int i = 0; i < kGroup * W::kSlots; ++i) {
      const int at = high + i / W::kSlots;
      f(i, slot_row(at, i % W::kSlots), at);
    }
  }

  template <bool kGate>
  DSMOOTH_HOST_DEVICE void store(const Columns& to, int m, const Finish<T, kGate>& finish,
                                 Pair v) const {
    finish.template raw<Global>(reinterpret_cast<float*>(to.residual_out.at(m)), v,
                                to.residual_out.there());
    finish.template raw<Global>(reinterpret_cast<T*>(to.raw_out.at(m)), v, to.raw_out.there());
    Pair positive, negative;
    finish.elus(v, positive, negative);
    T* const act = reinterpret_cast<T*>(to.act_out.at(m));
    if (op_.split)
      finish.template split<Global>(act, positive, to.act_out.there());
    else
      finish.template act<Global>(act, positive, negative, to.act_out.there());
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
  const Source* const sources_;
  const Granule* weights_of_[kWide];
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
