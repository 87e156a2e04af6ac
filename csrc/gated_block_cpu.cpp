// The gated block over a range of images with the vectors of one instruction set. Compiled once per
// set, each time with its own DSMOOTH_ISA; see vector_math.h for what this forbids.
//
// An image goes through the whole block before the next one starts, so that everything between the
// block's inputs and outputs stays in the second-level cache.
#include "gated_block.h"

#include "gated_block_gemm.h"
#include "philox.h"

namespace dsmooth::DSMOOTH_ISA {
namespace {

DSMOOTH_INLINE int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Vectors in memory: float and double as they are, bfloat16 widened to float.
template <class M>
struct Memory {
  using T = typename M::Scalar;
  using V = typename M::V;
  static constexpr int kLanes = M::kLanes;

  // `count` lanes; the rest are 0. A full vector where the compiler can see that count = kLanes.
  DSMOOTH_INLINE static V load(const T* p, int count) {
    if (count == kLanes) return M::load(p, 1, kLanes);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      return __builtin_bit_cast(V, _mm512_maskz_loadu_ps(mask(count), p));
    }
#endif
    return M::load(p, 1, count);
  }
  DSMOOTH_INLINE static void store(V v, T* p, int count) {
    if (count == kLanes) return M::store(v, p, 1, kLanes);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      return _mm512_mask_storeu_ps(p, mask(count), __builtin_bit_cast(__m512, v));
    }
#endif
    M::store(v, p, 1, count);
  }

#if defined(__AVX512F__)
  DSMOOTH_INLINE static __mmask16 mask(int count) {
    return static_cast<__mmask16>((1u << count) - 1);
  }
  DSMOOTH_INLINE static V load(const bfloat16* p, int count) {
    const __m256i half = count == kLanes
                             ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                             : _mm256_maskz_loadu_epi16(mask(count), p);
    return __builtin_bit_cast(V, _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  DSMOOTH_INLINE static void store(V v, bfloat16* p, int count) {
#if defined(__AVX512BF16__)
    const __m256i half =
        __builtin_bit_cast(__m256i, _mm512_cvtneps_pbh(__builtin_bit_cast(__m512, v)));
#else
    const __m256i half = _mm512_cvtepi32_epi16(__builtin_bit_cast(__m512i, rounded_bits(v)));
#endif
    if (count == kLanes) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
    } else {
      _mm256_mask_storeu_epi16(p, mask(count), half);
    }
  }
#else
  DSMOOTH_INLINE static V load(const bfloat16* p, int count) {
    typename M::Bits bits{};
    for (int i = 0; i < count; ++i) bits[i] = static_cast<typename M::Word>(p[i]) << 16;
    return M::from_bits(bits);
  }
  DSMOOTH_INLINE static void store(V v, bfloat16* p, int count) {
    const typename M::Bits bits = rounded_bits(v);
    for (int i = 0; i < count; ++i) p[i] = static_cast<bfloat16>(bits[i]);
  }
#endif

  // The nearest bfloat16, ties to even, in the low halves; a NaN stays a (quiet) NaN.
  DSMOOTH_INLINE static typename M::Bits rounded_bits(V v) {
    const typename M::Bits bits = M::bits(v);
    const typename M::Bits rounded = (bits + (0x7fffu + (bits >> 16 & 1u))) >> 16;
    const typename M::Bits quiet = bits >> 16 | 0x40u;
    return (v == v) ? rounded : quiet;
  }
};

// f(first, count) for the vectors of `n` numbers. The body is compiled for full vectors apart.
template <int kLanes, class Body>
DSMOOTH_INLINE void for_vectors(int n, Body f) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
  if (i < n) f(i, n - i);
}

// The extents of a block's buffers. A padded image has the convolution's zeros around it, and
// columns of zeros on the right so that pairs of columns, from an even or from an odd one on, exist
// wherever a tap looks.
template <class D>
struct Plan {
  int64_t height, width, rows, cols;  // rows and cols: of a padded image
  int64_t pairs;                      // of columns in a padded row
  int f, f2, s2, taps, kernel_h, kernel_w;
  int64_t f_pad, f2_pad, s2_pad;        // whole vectors
  int64_t f_cells, f2_cells, s2_cells;  // cells of the channels of a pixel
  int64_t steps;                        // cells of a row of pixels summed over

  explicit Plan(const GatedBlockShape& s)
      : height(s.height),
        width(s.width),
        rows(s.height + s.kernel_h - 1),
        cols(round_up(s.width + s.kernel_w - 1, 2) + 2),
        pairs(cols / 2),
        f(s.filters),
        f2(2 * s.filters),
        s2(2 * s.all_skip_channels()),
        taps(s.taps()),
        kernel_h(s.kernel_h),
        kernel_w(s.kernel_w),
        f_pad(round_up(f, D::kLanes)),
        f2_pad(round_up(f2, D::kLanes)),
        s2_pad(round_up(s2, D::kLanes)),
        f_cells(round_up(f, D::kPair) / D::kPair),
        f2_cells(f2 / D::kPair),
        s2_cells(s2 / D::kPair),
        steps(round_up(width, D::kPair) / D::kPair) {}

  // Packed weights: [tap][cell of the summed channel][output channel].
  int64_t conv_in_cells() const { return taps * f2_cells * f_pad; }
  int64_t conv_out_cells() const { return taps * f2_cells * f2_pad; }
  int64_t nin_cells() const { return s2_cells * f_pad; }
  int64_t conv_in_back_cells() const { return taps * f_cells * f2_pad; }
  int64_t nin_back_cells() const { return f_cells * s2_pad; }

  // Sums: [tap][input channel][output channel] of conv_out, conv_in and nin, then the biases.
  int64_t conv_in_sums() const { return taps * f2 * f_pad; }
  int64_t conv_out_sums() const { return taps * f2 * f2_pad; }
  int64_t nin_sums() const { return s2 * f_pad; }
  int64_t all_sums() const {
    return conv_in_sums() + conv_out_sums() + nin_sums() + f_pad + f2_pad;
  }
};

// Memory of a thread, taken piece by piece.
struct Scratch {
  char* next;
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next);
    // One vector of slack: the last one of a row may be read beyond its end.
    next += round_up(count * static_cast<int64_t>(sizeof(T)) + 64, 64);
    return piece;
  }
};

template <class D>
constexpr size_t kElement = sizeof(typename D::Element);

template <class D, class T>
struct Block {
  using M = typename D::M;
  using Mem = Memory<M>;
  using V = typename D::V;
  using Scalar = typename D::Scalar;
  using Element = typename D::Element;
  using Cell = typename D::Cell;
  static constexpr int kLanes = D::kLanes;
  static constexpr int kMaxTaps = 64;

  // ---- weights -------------------------------------------------------------------------------

  // packed[tap][n / pair][m] from weight[...], an element at m * stride_m + n * stride_n + tap.
  static void pack(const Scalar* weight, int64_t stride_m, int m_count, int64_t stride_n,
                   int n_count, int taps, bool flip, Cell* packed) {
    const int64_t m_pad = round_up(m_count, kLanes);
    const int64_t cells = round_up(n_count, D::kPair) / D::kPair;
    for (int tap = 0; tap < taps; ++tap) {
      const Scalar* source = weight + (flip ? taps - 1 - tap : tap);
      for (int64_t cell = 0; cell < cells; ++cell, packed += m_pad) {
        for (int64_t m = 0; m < m_pad; ++m) packed[m] = 0;
        const Scalar* at = source + cell * D::kPair * stride_n;
        if constexpr (D::kPair == 1) {
          for (int m = 0; m < m_count; ++m) packed[m] = at[m * stride_m];
        } else {
          auto* element = reinterpret_cast<Element*>(packed);
          for (int half = 0; half < D::kPair && cell * D::kPair + half < n_count; ++half) {
            for (int m = 0; m < m_count; ++m) {
              element[D::kPair * m + half] = round_to_element(at[m * stride_m + half * stride_n]);
            }
          }
        }
      }
    }
  }

  // The nearest bfloat16, ties to even.
  DSMOOTH_INLINE static Element round_to_element(Scalar value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    const uint32_t rounded = (bits + (0x7fffu + (bits >> 16 & 1u))) >> 16;
    return static_cast<Element>(value == value ? rounded : (bits >> 16 | 0x40u));
  }

  static size_t packed_bytes(const GatedBlockShape& shape) {
    const Plan<D> plan(shape);
    return static_cast<size_t>(plan.conv_out_cells() +
                               std_max(plan.conv_in_cells(), plan.conv_in_back_cells()) +
                               std_max(plan.nin_cells(), plan.nin_back_cells())) *
               sizeof(Cell) +
           64;
  }

  DSMOOTH_INLINE static int64_t std_max(int64_t a, int64_t b) { return a > b ? a : b; }

  static void pack_forward(const GatedBlockShape& shape, const GatedWeights& w, void* packed) {
    const Plan<D> plan(shape);
    const int64_t per_output = static_cast<int64_t>(plan.f2) * plan.taps;
    Cell* cells = static_cast<Cell*>(packed);
    pack(static_cast<const Scalar*>(w.conv_out), per_output, plan.f2, plan.taps, plan.f2, plan.taps,
         false, cells);
    cells += plan.conv_out_cells();
    pack(static_cast<const Scalar*>(w.conv_in), per_output, plan.f, plan.taps, plan.f2, plan.taps,
         false, cells);
    cells += plan.conv_in_cells();
    if (plan.s2 > 0) {
      pack(static_cast<const Scalar*>(w.nin), plan.s2, plan.f, 1, plan.s2, 1, false, cells);
    }
  }

  static void pack_backward(const GatedBlockShape& shape, const GatedWeights& w, void* packed) {
    const Plan<D> plan(shape);
    const int64_t per_output = static_cast<int64_t>(plan.f2) * plan.taps;
    Cell* cells = static_cast<Cell*>(packed);
    pack(static_cast<const Scalar*>(w.conv_out), plan.taps, plan.f2, per_output, plan.f2, plan.taps,
         true, cells);
    cells += plan.conv_out_cells();
    pack(static_cast<const Scalar*>(w.conv_in), plan.taps, plan.f2, per_output, plan.f, plan.taps,
         true, cells);
    cells += plan.conv_in_back_cells();
    if (plan.s2 > 0) {
      pack(static_cast<const Scalar*>(w.nin), 1, plan.s2, plan.s2, plan.f, 1, true, cells);
    }
  }

  // ---- passes over a row of pixels -------------------------------------------------------------

  // m = exp(-|v|) - 1: elu(v) = v > 0 ? v : m, elu(-v) = v > 0 ? m : -v.
  DSMOOTH_INLINE static V minus_abs_expm1(V v) { return M::exp_pair(-M::abs(v)).expm1; }

  // `keep`: the factor of each element of concat_elu, or null. Zero drops it, whatever it is.
  DSMOOTH_INLINE static V kept(V v, const Scalar* keep, int count) {
    if (keep == nullptr) return v;
    const V factor = Mem::load(keep, count);
    return M::select(factor != 0, v * factor, V{});
  }

  // concat_elu of `channels` channels, those of -v `negative` channels after those of v.
  static void write_concat_elu(const T* in, int64_t pixels, int channels, Element* out,
                               int64_t stride, int64_t negative, const Scalar* keep) {
    for (int64_t p = 0; p < pixels; ++p) {
      for_vectors<kLanes>(channels, [&](int c, int count) DSMOOTH_LAMBDA_INLINE {
        const V v = Mem::load(in + c, count);
        const V m = minus_abs_expm1(v);
        const Scalar* keep_at = keep == nullptr ? nullptr : keep + c;
        const Scalar* keep_negative = keep == nullptr ? nullptr : keep + negative + c;
        Mem::store(kept(M::select(v > 0, v, m), keep_at, count), out + c, count);
        Mem::store(kept(M::select(v > 0, m, -v), keep_negative, count), out + negative + c, count);
      });
      in += channels;
      out += stride;
      if (keep != nullptr) keep += stride;
    }
  }

  // The gradient of v from that of concat_elu(v): d elu(v)/dv = v > 0 ? 1 : exp(v).
  DSMOOTH_INLINE static V concat_elu_gradient(V v, V positive, V negative) {
    const V e = M::exp_pair(-M::abs(v)).e;
    return M::select(v > 0, positive - negative * e, positive * e - negative);
  }

  // words of a row's elements -> factors; `first` is the number of its first element.
  static void write_keep(const GatedDropout& dropout, int64_t first, int64_t count, Scalar* keep) {
    constexpr int kBlocks = 16;
    const auto key0 = static_cast<uint32_t>(dropout.seed);
    const auto key1 = static_cast<uint32_t>(dropout.seed >> 32);
    const auto scale = static_cast<Scalar>(dropout.scale);
    uint32_t word[4][kBlocks];
    for (int64_t counter = first / 4; 4 * counter < first + count; counter += kBlocks) {
      for (int i = 0; i < kBlocks; ++i) {
        const auto block = static_cast<uint64_t>(counter + i);
        const PhiloxBlock drawn = philox4x32_10(
            {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), dropout.layer,
              kDropoutStage}},
            key0, key1);
        for (int j = 0; j < 4; ++j) word[j][i] = drawn.word[j];
      }
      const int64_t base = 4 * counter - first;
      for (int i = 0; i < kBlocks; ++i) {
        for (int j = 0; j < 4; ++j) {
          const int64_t at = base + 4 * i + j;
          if (at >= 0 && at < count) {
            keep[at] = (word[j][i] >> 9) >= dropout.keep_from ? scale : Scalar{0};
          }
        }
      }
    }
  }

  // Neighbouring columns of a row into cells: out[q][c] = (in[2q + odd][c], in[2q + odd + 1][c]).
  static void interleave_columns(const Element* in, int64_t stride, int64_t pairs, int channels,
                                 Cell* out, int64_t out_stride) {
    if constexpr (D::kPair == 2) {
      for (int64_t q = 0; q < pairs; ++q, in += 2 * stride, out += out_stride) {
        for (int c = 0; c < channels; ++c) {
          out[c] = static_cast<Cell>(in[c]) | static_cast<Cell>(in[stride + c]) << 16;
        }
      }
    }
  }

  // ---- products --------------------------------------------------------------------------------

  // out[c][n] (+)= the convolution at the row whose first tap lies at `in`. Pixels of `in` are
  // `cells` cells.
  template <bool kAdd>
  static void convolve_row(const Cell* in, int64_t cells, const int64_t* offsets, int taps,
                           const Cell* packed, int64_t n_pad, int64_t width, Scalar* out) {
    TileArgs<D> t;
    t.a = in;
    t.a_row = cells;
    t.a_step = 1;
    t.a_offsets = offsets;
    t.b = packed;
    t.b_step = n_pad;
    t.b_outer = cells * n_pad;
    t.outer = taps;
    t.inner = cells;
    t.out = out;
    t.out_row = n_pad;
    run_tiles<D, false, kAdd>(t, width, static_cast<int>(n_pad / kLanes));
  }

  // Both sides of a weight gradient: rows of cells that hold neighbouring columns.
  struct Rows {
    const Cell* start;
    int64_t row, step;  // in cells
  };

  // sums[k][n] += sum over `height` rows and their pixels of a[pixel][k] b[pixel][n].
  static void add_weight_gradient(const Rows& a, const Rows& b, int64_t height, int64_t steps,
                                  int k, int64_t n_pad, Scalar* sums) {
    constexpr int64_t kMostRowsAtOnce = 16;
    int64_t offsets[kMostRowsAtOnce];
    for (int64_t r = 0; r < kMostRowsAtOnce; ++r) offsets[r] = r * a.row;
    TileArgs<D> t;
    t.a = a.start;
    t.a_row = 1;
    t.a_step = a.step;
    t.a_offsets = offsets;
    t.b = b.start;
    t.b_step = b.step;
    t.b_outer = b.row;
    t.outer = height;
    t.inner = steps;
    t.out = sums;
    t.out_row = n_pad;
    run_tiles<D, true, true>(t, k, static_cast<int>(n_pad / kLanes));
  }

  // Images of one thread, one after the other.
  struct Images {
    const GatedBlockShape& shape;
    Plan<D> plan;
    int64_t pixels;
    int64_t offsets[kMaxTaps];
    int64_t no_offset[1] = {0};

    explicit Images(const GatedBlockShape& s, int64_t cells)
        : shape(s), plan(s), pixels(s.height * s.width) {
      (void)cells;
    }
    void set_offsets(int64_t* target, int64_t cells) const {
      for (int i = 0; i < plan.kernel_h; ++i) {
        for (int j = 0; j < plan.kernel_w; ++j) {
          target[i * plan.kernel_w + j] = (i * plan.cols + j) * cells;
        }
      }
    }
  };
};

}  // namespace
}  // namespace dsmooth::DSMOOTH_ISA
