// Row parts of the CUDA worker: products with as many rows as a row of pixels has images.
#pragma once

#include <cstddef>
#include <cstdint>

#include "finish.cuh"

namespace dsmooth::sampler {

// A tile is drawn by one warp: kHigh fragments of rows by up to kWide units of columns. It loads
// operands from memory into the registers where they are multiplied (docs/sampler.md).
//
// A turn is kTurn steps of k. Its loads are issued together, before the products of the previous
// turn, which hide them. Their addresses come from sources that were loaded a step earlier.
template <class T, class Block, int kHigh>
class RowTile {
 public:
  // m_all: rows of the product; the tile starts at row m0. unit: the tile's first unit, of n.
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
        from_(op_.sources[static_cast<int>(part)]) {
    DSMOOTH_DEVICE_UNROLL
    for (int wide = 0; wide < kWide; ++wide)
      weights_of_[wide] = op_.weights[static_cast<int>(part)] + W::weight(memory_.lane(), 0) +
                          ptrdiff_t{(unit + (wide < n ? wide : 0)) * steps_} * kWeightGranules;
  }

  DSMOOTH_HOST_DEVICE void draw() {
    begin();
    load_sources(0);
    find(1);
    DSMOOTH_DEVICE_UNROLL
    for (int j = 0; j < kTurn; ++j) load(j, j < steps_ ? j : 0, true);
    int s = 0;
    DSMOOTH_DEVICE_ROLL
    for (; s + 2 * kTurn <= steps_; s += 2 * kTurn) {
      DSMOOTH_DEVICE_UNROLL
      for (int turn = 0; turn < 2; ++turn) {
        DSMOOTH_DEVICE_UNROLL
        for (int j = 0; j < kTurn; ++j) {
          const int next = s + (turn + 1) * kTurn + j;
          load((1 - turn) * kTurn + j, next, turn == 0 || next < steps_);
        }
        DSMOOTH_DEVICE_UNROLL
        for (int j = 0; j < kTurn; ++j) multiply(turn * kTurn + j);
      }
    }
    // Writes every register that is read below; otherwise it would stay live between calls.
    static_assert(kTurn <= 2);
    const int left = steps_ - s;
    if (kTurn > 1 && left > kTurn) {
      load(kTurn, s + kTurn, true);
      DSMOOTH_DEVICE_UNROLL
      for (int j = 0; j <= kTurn; ++j) multiply(j);
    } else {
      DSMOOTH_DEVICE_UNROLL
      for (int j = 0; j < kTurn; ++j)
        if (j < left) multiply(j);
    }
    if (part_ == Part::kRow && op_.two_parts) return keep();
    op_.gate        ? finish<Results::kGate>()
    : op_.is_even() ? finish<Results::kPairs>()
                    : finish<Results::kOdd>();
  }

 private:
  using W = Warp<T, Block::kWarpLanes>;
  // Steps of a turn, whose products must hide a load. Registers hold two turns.
  static constexpr int kTurn = kHigh == kTall ? 1 : 2;
  static constexpr int kFragmentGranules = W::kLoadedRows * W::kLoadedGranules;

  DSMOOTH_HOST_DEVICE int slot_row(int high, int slot) const {
    return m0_ + high * kRows + W::slot_row(memory_.lane(), slot);
  }
  // From the tile's first column.
  DSMOOTH_HOST_DEVICE int slot_column(int wide, int slot) const {
    return W::slot_column(memory_.lane(), slot) + wide * kColumns;
  }

  DSMOOTH_HOST_DEVICE void begin() {
    const bool is_pixel = part_ == Part::kPixel;
    const int stride = is_pixel ? op_.begin_stride : op_.projected ? op_.columns() : 0;
    const float* init =
        (is_pixel ? op_.begin + ptrdiff_t{column_ * memory_.batch()} * stride : op_.bias) +
        unit_ * kColumns;
    each([&](int high, int wide, int slot) {
      const int m = slot_row(high, slot);
      load_sums(sums_[high][wide][slot],
                init + (m < m_all_ ? m : 0) * stride + slot_column(wide < n_ ? wide : 0, slot),
                true);
    });
  }

  // A missing step is replaced by the first one.
  DSMOOTH_HOST_DEVICE void load_sources(int s) {
    DSMOOTH_DEVICE_UNROLL
    for (int q = 0; q < W::kLoadedGranules; ++q)
      sources_[q] = load_constant(from_ + (s < steps_ ? s : 0) * kStepGranules +
                                  W::granule(memory_.lane(), q));
  }

  // Finds the rows of a step by its sources, and loads the rows of the next one, step s.
  DSMOOTH_HOST_DEVICE void find(int s) {
    DSMOOTH_DEVICE_UNROLL
    for (int q = 0; q < W::kLoadedGranules; ++q) {
      const RowAddress row = memory_.rows()[sources_[q].row];
      const int column = sources_[q].in_cache(column_) * memory_.batch();
      found_[q] = {row.offset + sources_[q].within + static_cast<uint32_t>(column) * row.stride,
                   row.stride};
    }
    load_sources(s);
  }

  // Loads step s, whose rows were found, if it exists, and finds the rows of the next step. A
  // missing unit or row is replaced by the first one, and its results are not stored.
  DSMOOTH_HOST_DEVICE void load(int j, int s, bool there) {
    DSMOOTH_DEVICE_UNROLL
    for (int q = 0; q < W::kLoadedGranules; ++q) {
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < kHigh * W::kLoadedRows; ++i) {
        const int m = m0_ + i / W::kLoadedRows * kRows + W::row(memory_.lane(), i % W::kLoadedRows);
        const uint32_t row = static_cast<uint32_t>(m < m_all_ ? m : 0) * found_[q].stride;
        load_global(rows_[j][i * W::kLoadedGranules + q], memory_.granule(found_[q].offset + row),
                    there);
      }
    }
    DSMOOTH_DEVICE_UNROLL
    for (int wide = 0; wide < kWide; ++wide) {
      const Granule* from = weights_of_[wide] + ptrdiff_t{s} * kWeightGranules;
      DSMOOTH_DEVICE_UNROLL
      for (int i = 0; i < W::kLoadedWeights; ++i)
        load_weights(weights_[j][wide][i], from + W::weight(0, i), there);
    }
    find(s + 2);
  }

  DSMOOTH_HOST_DEVICE void multiply(int j) {
    DSMOOTH_DEVICE_ROLL
    for (int round = 0; round < W::kRounds; ++round) {
      DSMOOTH_DEVICE_UNROLL
      for (int high = 0; high < kHigh; ++high) {
        DSMOOTH_DEVICE_UNROLL
        for (int wide = 0; wide < kWide; ++wide)
          W::multiply(weights_[j][wide], rows_[j] + high * kFragmentGranules, sums_[high][wide],
                      sums_[high][wide], memory_.lane(), round);
      }
    }
  }

  DSMOOTH_HOST_DEVICE void keep() {
    const size_t image = static_cast<size_t>(column_ * memory_.batch());
    const int columns = op_.columns();
    float* partial =
        memory_.partials()[index_] + image * static_cast<size_t>(columns) + unit_ * kColumns;
    each([&](int high, int wide, int slot) {
      const int m = slot_row(high, slot);
      store_sums<Global>(partial + m * columns + slot_column(wide, slot), sums_[high][wide][slot],
                         m < m_all_ && wide < n_);
    });
  }

  // Uses the lane's own memory, so that the code of an output exists only once.
  template <Results kResults>
  DSMOOTH_HOST_DEVICE void finish() {
    using F = Finish<T, kResults>;
    Pair* scratch = memory_.scratch();
    const auto index = [](int high, int wide, int slot) {
      return ((high * kWide + wide) * W::kSlots + slot) * BlockMemory<Block>::kLanes;
    };
    each([&](int high, int wide, int slot) {
      store_sums<Shared>(&scratch[index(high, wide, slot)].x, sums_[high][wide][slot], true);
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
              v[i] = F::value(scratch[index(at, wide, i % W::kSlots)], v[i]);
            },
            high);
        const auto store_all = [&]<bool kIsSplit>() {
          const auto store_one = [&](int i, int m, int) {
            store<kIsSplit>(to, m, F(op_, column(i), m < m_all_), v[i]);
          };
          each_in_group(store_one, high);
        };
        op_.split ? store_all.template operator()<true>() : store_all.template operator()<false>();
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

  template <bool kIsSplit, class F>
  DSMOOTH_HOST_DEVICE void store(const Columns& to, int m, const F& finish, Pair v) const {
    finish.template raw<Global>(reinterpret_cast<float*>(to.residual_out.at(m)), v,
                                to.residual_out.there());
    finish.template raw<Global>(reinterpret_cast<T*>(to.raw_out.at(m)), v, to.raw_out.there());
    Pair positive, negative;
    T* const act = reinterpret_cast<T*>(to.act_out.at(m));
    if constexpr (kIsSplit) {
      F::template elus<Scalar>(v, positive, negative);
      finish.template split<Global>(act, positive, to.act_out.there());
    } else {
      F::template elus<Curves<T>>(v, positive, negative);
      finish.template act<Global>(act, positive, negative, to.act_out.there());
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
  const Source* const from_;
  const Granule* weights_of_[kWide];
  Source sources_[W::kLoadedGranules];
  RowAddress found_[W::kLoadedGranules];  // of image 0
  Granule weights_[2 * kTurn][kWide][W::kLoadedWeights];
  Granule rows_[2 * kTurn][kHigh * kFragmentGranules];
  Pair sums_[kHigh][kWide][W::kSlots];
};

// Computes a product of `count` columns. Tiles are assigned to the warps in turn, starting at warp
// `turn`; returns the next warp, so that products without a sync between them share the warps.
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
