// The products of the gated resnet in the matrix registers of AMX. Must be compiled for AMX.
#pragma once

#include "../common/amx.h"
#include "../common/gemm.h"

namespace dsmooth::DSMOOTH_ISA {
namespace {

// Products whose rows and columns are multiples of 16. They own the register configuration during
// their lifetime: other code of the thread, such as oneDNN's, uses its own.
class MatrixTiles {
  using Args = TileArgs<MatrixDot>;
  static constexpr int kRowOperands = amx::kSums, kColumnOperands = kRowOperands + 2;

 public:
  MatrixTiles() = default;
  MatrixTiles(const MatrixTiles&) = delete;
  MatrixTiles& operator=(const MatrixTiles&) = delete;
  ~MatrixTiles() { amx::release_registers(); }

  // Like run_tiles, with a_step = 1.
  void run(const Args& product, int64_t rows, int64_t columns) {
    int64_t pieces = (product.inner + amx::kWords - 1) / amx::kWords;
    while (product.inner % pieces != 0) ++pieces;  // never reads past the end of a row
    const auto words = static_cast<int>(product.inner / pieces);
    if (words != words_) amx::shape_registers(amx::kRows, words, kColumnOperands);
    words_ = words;
    // Four sums at once hide the latency of each.
    for (int64_t n = 0; n < columns;) {
      const bool wide = columns - n >= 2 * amx::kColumns;
      for (int64_t m = 0; m < rows;) {
        const int64_t left = (rows - m) / amx::kRows;
        if (wide)
          m += left >= 2 ? tile<2, 2>(product, m, n) : tile<1, 2>(product, m, n);
        else
          m += left >= 4   ? tile<4, 1>(product, m, n)
               : left >= 2 ? tile<2, 1>(product, m, n)
                           : tile<1, 1>(product, m, n);
      }
      n += (wide ? 2 : 1) * amx::kColumns;
    }
  }

 private:
  // Sums in M by N registers, starting at row m0 and column n0. Returns the number of rows.
  template <int M, int N>
  int64_t tile(const Args& t, int64_t m0, int64_t n0) const {
    const int64_t a_row = t.a_row, b_step = t.b_step, out_row = t.out_row, words = words_;
    float* const out = t.out + m0 * out_row + n0;
    const auto sums = [&](int i) {
      return out + i / N * amx::kRows * out_row + i % N * amx::kColumns;
    };
    amx::unroll<M * N>([&]<int i> {
      if (t.add)
        amx::load<i>(sums(i), out_row);
      else
        amx::zero<i>();
    });
    for (int64_t o = 0; o < t.outer; ++o) {
      const uint32_t* a = t.a + m0 * a_row + o * t.a_outer;
      const uint32_t* b = t.b + n0 + o * t.b_outer;
      for (int64_t k = t.inner; k > 0; k -= words, a += words, b += words * b_step) {
        amx::unroll<N>(
            [&]<int n> { amx::load<kColumnOperands + n>(b + n * amx::kColumns, b_step); });
        amx::unroll<M>([&]<int m> {
          amx::load<kRowOperands + m % 2>(a + m * amx::kRows * a_row, a_row);
          amx::unroll<N>([&]<int n> {
            amx::multiply_add<m * N + n, kRowOperands + m % 2, kColumnOperands + n>();
          });
        });
      }
    }
    amx::unroll<M * N>([&]<int i> { amx::store<i>(sums(i), out_row); });
    return M * amx::kRows;
  }

  int words_ = 0;  // of the current configuration; 0 if other code set it
};

// out[c][q] = the pair of pixels 2q and 2q + 1 of channel c, in blocks of 16 by 16 cells.
inline void transpose_pairs(const bfloat16* in, int64_t stride, int64_t blocks, int channels,
                            uint32_t* out, int64_t out_row) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t block = 0; block < blocks; ++block, in += 32 * stride, out += 16) {
    for (int c = 0; c < channels; c += 16) {
      __m512i v[16];
      for (int q = 0; q < 16; ++q) {
        const auto widened = [&](const bfloat16* p) {
          return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        };
        const bfloat16* first = in + 2 * q * stride + c;
        v[q] = _mm512_or_si512(widened(first), _mm512_slli_epi32(widened(first + stride), 16));
      }
      // Swaps bit s of a vector's number with that of a lane's.
#pragma GCC unroll 4
      for (int s = 1; s < 16; s *= 2) {
        const __m512i bit = _mm512_set1_epi32(s);
        const __mmask16 has = _mm512_test_epi32_mask(lanes, bit);
        const __m512i low = _mm512_mask_add_epi32(lanes, has, lanes, _mm512_set1_epi32(16 - s));
        const __m512i high =
            _mm512_mask_add_epi32(_mm512_add_epi32(lanes, bit), has, lanes, _mm512_set1_epi32(16));
#pragma GCC unroll 16
        for (int q = 0; q < 16; ++q) {
          if ((q & s) != 0) continue;
          const __m512i a = v[q], b = v[q + s];
          v[q] = _mm512_permutex2var_epi32(a, low, b);
          v[q + s] = _mm512_permutex2var_epi32(a, high, b);
        }
      }
      for (int q = 0; q < 16; ++q) _mm512_storeu_si512(out + (c + q) * out_row, v[q]);
    }
  }
}

}  // namespace
}  // namespace dsmooth::DSMOOTH_ISA
