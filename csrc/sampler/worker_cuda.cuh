// A worker that is one thread block.
//
// A Block gives it its lanes: Block::kWarps and Block::kWarpLanes, powers of two, lane(), sync()
// and shared(), the memory that they share. On the device that is a thread block (sampler_cuda.cu);
// tests play one on the host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "step.h"
#include "tile_layout.h"

namespace dsmooth::sampler {

// Products by tiles in shared memory. A tile is some rows by a panel of columns; its fragments are
// dealt to the warps. Activations and weights come in chunks of k through a ring of stages, copied
// ahead while earlier ones are multiplied. Then the sums go to shared memory, where any lane can
// finish any output: the gate needs two of them.
//
// The sum of an output runs over k in the same fragments whatever the tile, so that images do not
// depend on how many share a slice. T: float, or Bf16 with sums in float.
template <class T, class Block>
class CudaWorker {
 public:
  DSMOOTH_HOST_DEVICE CudaWorker(Block& block, const SharedLayout& layout)
      : block_(block), layout_(layout) {}

  DSMOOTH_HOST_DEVICE void matmul(const Product& product) {
    const MatrixView& matrix = product.matrix();
    const Tile& tile = layout_.tile(product.part);
    for (int p = 0; p < matrix.n_panels; ++p) {
      const Panel& panel = matrix.panels[p];
      const int columns = panel.units * kUnit / kFragment;
      int rows = tile.rows;
      while (rows / kFragment * columns > Block::kWarps * kFragmentsPerWarp) rows /= 2;
      for (int m = 0; m < product.m(); m += rows) {
        const int left = product.m() - m;
        draw_tile(product, panel, tile, m, left < rows ? left : rows);
      }
    }
  }

  template <class F>
  DSMOOTH_HOST_DEVICE void for_each(int n, F f) const {
    for (int i = block_.lane(); i < n; i += kLanes) f(i);
  }

  DSMOOTH_HOST_DEVICE void sync() {
    block_.sync();
    finishing_ = false;
  }
  DSMOOTH_HOST_DEVICE void end_row(int) { sync(); }
  DSMOOTH_HOST_DEVICE bool stop() const { return false; }

 private:
  static constexpr int kLanes = Block::kWarps * Block::kWarpLanes;
  static_assert((kLanes & (kLanes - 1)) == 0);
  static_assert(kPixelColumns / kFragment <= Block::kWarps * kFragmentsPerWarp);
  static constexpr int kPerGranule = kGranule / static_cast<int>(sizeof(T));
  static constexpr int kPerWord = static_cast<int>(sizeof(float) / sizeof(T));
  using Fragment = Sums<T, Block::kWarpLanes>;

  // The part of a product that one tile computes.
  struct Cut {
    const Product& product;
    const Panel& panel;
    const Tile& tile;
    int m, rows;   // the first row of the product, and how many
    int log_down;  // of the number of fragments below one another
    int width;     // columns

    DSMOOTH_HOST_DEVICE int down() const { return 1 << log_down; }
    DSMOOTH_HOST_DEVICE int count() const { return width / kFragment << log_down; }
    // Columns of a gate's panel: A in the first half, G in the second. In the biases and waiting
    // sums of all outputs they begin here and there.
    DSMOOTH_HOST_DEVICE int output(int column) const {
      const OpView& op = product.op();
      const bool gates = op.gate && column >= width / 2;
      return panel.channel + column + (gates ? padded_to_fragments(op.channels) - width / 2 : 0);
    }
  };

  // Asked of the block each time: through a stored pointer the compiler could not see that it is
  // shared memory, and would not use its instructions.
  DSMOOTH_HOST_DEVICE unsigned char* tiles() const { return block_.shared() + layout_.table_bytes; }
  DSMOOTH_HOST_DEVICE int warp() const { return block_.lane() / Block::kWarpLanes; }
  DSMOOTH_HOST_DEVICE int lane() const { return block_.lane() % Block::kWarpLanes; }
  DSMOOTH_HOST_DEVICE float* sums() const { return reinterpret_cast<float*>(tiles()); }
  DSMOOTH_HOST_DEVICE T* activations(const Tile& tile, int chunk) const {
    return reinterpret_cast<T*>(tiles() + tile.sums_bytes() + chunk % kStages * tile.stage_bytes());
  }
  DSMOOTH_HOST_DEVICE T* weights(const Tile& tile, int chunk) const {
    return activations(tile, chunk) + tile.rows * tile.a_stride();
  }

  DSMOOTH_HOST_DEVICE void draw_tile(const Product& product, const Panel& panel, const Tile& tile,
                                     int m, int rows) {
    Cut cut{product, panel, tile, m, rows, 0, panel.units * kUnit};
    while (cut.down() * kFragment < rows) ++cut.log_down;
    const int depth = product.matrix().depth;
    const int chunks = (depth + tile.depth - 1) / tile.depth;
    const int stride = tile.sums_stride(cut.width);

    // The tile before may still be read from the same memory.
    if (finishing_) sync();
    for (int c = 0; c < kStages - 1; ++c) copy_chunk(cut, c, depth);
    begin_sums(cut);
    Fragment own[kFragmentsPerWarp];
    wait_for_copies<kStages - 2>();
    block_.sync();
    each_fragment(cut, own, [&](Fragment& f, int row, int column) {
      f.load(sums() + row * stride + column, stride, lane());
    });
    for (int c = 0;;) {
      // Into the stage of chunk c - 1, which all have left.
      copy_chunk(cut, c + kStages - 1, depth);
      multiply(cut, own, c, depth);
      if (++c == chunks) break;
      wait_for_copies<kStages - 2>();
      block_.sync();
    }
    each_fragment(cut, own, [&](Fragment& f, int row, int column) {
      f.store(sums() + row * stride + column, stride, lane());
    });
    block_.sync();
    product.partial() ? keep_sums(cut) : finish(cut);
    finishing_ = true;
  }

  // Calls f(fragment, row, column) for the fragments of this warp, with their places in the tile.
  template <class F>
  DSMOOTH_HOST_DEVICE void each_fragment(const Cut& cut, Fragment* own, F f) const {
    DSMOOTH_DEVICE_UNROLL
    for (int i = 0; i < kFragmentsPerWarp; ++i) {
      const int index = warp() + i * Block::kWarps;
      if (index < cut.count())
        f(own[i], (index & (cut.down() - 1)) * kFragment, (index >> cut.log_down) * kFragment);
    }
  }

  DSMOOTH_HOST_DEVICE void multiply(const Cut& cut, Fragment* own, int chunk, int depth) const {
    const Tile& tile = cut.tile;
    const T *a = activations(tile, chunk), *b = weights(tile, chunk);
    const int a_stride = tile.a_stride(), b_stride = tile.b_stride(cut.width);
    const int left = depth - chunk * tile.depth, n = left < tile.depth ? left : tile.depth;
    for (int k = 0; k < n; k += kFragment)
      each_fragment(cut, own, [&](Fragment& f, int row, int column) {
        f.add_product(a + row * a_stride + k, a_stride, b + k * b_stride + column, b_stride,
                      lane());
      });
  }

  // Begins to copy a chunk of k, and ends a group of copies even if there is none.
  DSMOOTH_HOST_DEVICE void copy_chunk(const Cut& cut, int chunk, int depth) const {
    const int k = chunk * cut.tile.depth, left = depth - k;
    if (left > 0) {
      copy_activations(cut, chunk, k, left < cut.tile.depth ? left : cut.tile.depth);
      copy_weights(cut, chunk, k, left < cut.tile.depth ? left : cut.tile.depth);
    }
    commit_copies();
  }

  DSMOOTH_HOST_DEVICE void copy_activations(const Cut& cut, int chunk, int k, int n) const {
    // Neighbouring lanes take neighbouring granules of a row.
    const int granules = cut.tile.depth / kPerGranule;
    const int across = granules < kLanes ? granules : kLanes;
    const int a_stride = cut.tile.a_stride();
    T* to = activations(cut.tile, chunk);
    for (int g = block_.lane() % across; g < n / kPerGranule; g += across) {
      ptrdiff_t stride = 0;
      const T* from = operand(cut.product, k + g * kPerGranule, stride);
      for (int row = block_.lane() / across; row < cut.down() * kFragment; row += kLanes / across) {
        const bool there = from && row < cut.rows;
        const T* granule = there ? from + (cut.m + row) * stride : to;  // not read if not there
        copy_async(to + row * a_stride + g * kPerGranule, granule, there);
      }
    }
  }

  // Where the first row has operand k of a product's sum, in padded terms; null in the padding.
  DSMOOTH_HOST_DEVICE static const T* operand(const Product& product, int k, ptrdiff_t& stride) {
    const OpView& op = product.op();
    for (int t = 0; t < op.n_terms; ++t) {
      const TermView& term = op.terms[t];
      if (!product.includes(term)) continue;
      const int channels = product.state->network->caches[term.cache].words * kPerWord;
      const int padded = padded_to_fragments(channels);
      if (k < term.taps * padded) {
        if (k % padded >= channels) return nullptr;
        const Segment segment = product.segment(term, k / padded);
        stride = segment.stride * kPerWord;
        return reinterpret_cast<const T*>(segment.a) + k % padded;
      }
      k -= term.taps * padded;
    }
    return nullptr;
  }

  DSMOOTH_HOST_DEVICE void copy_weights(const Cut& cut, int chunk, int k, int n) const {
    const int across = cut.width / kPerGranule;
    const int b_stride = cut.tile.b_stride(cut.width);
    const T* from = reinterpret_cast<const T*>(cut.panel.b) + ptrdiff_t{k} * cut.width;
    T* to = weights(cut.tile, chunk);
    for (int i = block_.lane(); i < n * across; i += kLanes)
      copy_async(to + i / across * b_stride + i % across * kPerGranule, from + i * kPerGranule,
                 true);
  }

  // Calls f(row, i) for i < n in each row of the tile, a warp a row.
  template <class F>
  DSMOOTH_HOST_DEVICE void each_in_rows(int rows, int n, F f) const {
    for (int row = warp(); row < rows; row += Block::kWarps)
      for (int i = lane(); i < n; i += Block::kWarpLanes) f(row, i);
  }

  // Puts there what the sums begin with; zeros in rows that no image has.
  DSMOOTH_HOST_DEVICE void begin_sums(const Cut& cut) const {
    const float* init = cut.product.init();
    const ptrdiff_t init_stride = cut.product.init_stride();
    const int stride = cut.tile.sums_stride(cut.width);
    each_in_rows(cut.down() * kFragment, cut.width, [&](int row, int column) {
      sums()[row * stride + column] =
          row < cut.rows ? init[(cut.m + row) * init_stride + cut.output(column)] : 0.0f;
    });
  }

  DSMOOTH_HOST_DEVICE void keep_sums(const Cut& cut) const {
    float* partial = cut.product.partial();
    const int columns = cut.product.matrix().columns;
    const int stride = cut.tile.sums_stride(cut.width);
    each_in_rows(cut.rows, cut.width, [&](int row, int column) {
      partial[ptrdiff_t{cut.m + row} * columns + cut.output(column)] =
          sums()[row * stride + column];
    });
  }

  DSMOOTH_HOST_DEVICE void finish(const Cut& cut) const {
    const Epilogue e = cut.product.epilogue();
    const int stride = cut.tile.sums_stride(cut.width);
    each_in_rows(cut.rows, cut.panel.channels, [&](int row, int i) {
      const float* sum = sums() + row * stride + i;
      const ptrdiff_t m = cut.m + row;
      const int channel = cut.panel.channel + i;
      float v = sum[0];
      if (e.gate)
        v = fmaf(v, scalar::sigmoid(sum[cut.width / 2]),
                 e.residual_in[m * e.residual_in_stride + channel]);
      if (e.add) v += e.add[m * e.add_stride + channel];
      if (e.residual_out) e.residual_out[m * e.residual_out_stride + channel] = v;
      if (e.raw_out) put(static_cast<T*>(e.raw_out) + m * e.raw_stride + channel, v);
      if (e.act_out) {
        // One of elu(v) and elu(-v) is |v|, the other e^-|v| - 1.
        const float small = scalar::expm1_negative(-fabsf(v));
        T* act = static_cast<T*>(e.act_out) + m * e.act_stride + channel;
        if (e.split) {
          float rest = v > 0 ? v : small;
          for (int part = 0; part < kSplitParts; ++part, act += e.channels) {
            T rounded;
            put(&rounded, rest);
            *act = rounded;
            rest -= to_float(rounded);
          }
        } else {
          put(act, v > 0 ? v : small);
          put(act + e.channels, v > 0 ? small : 0.0f - v);
        }
      }
    });
  }

  Block& block_;
  const SharedLayout& layout_;
  bool finishing_ = false;  // lanes may still read the sums of the last tile
};

}  // namespace dsmooth::sampler
