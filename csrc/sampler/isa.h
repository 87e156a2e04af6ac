// What an instruction set offers the sampler: the matrix product of a tile and what follows it.
//
// The functions are compiled once per instruction set and reached through a table, so that nothing
// else, and no inline function of the standard library, is compiled for a CPU that may not be
// there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dsmooth::sampler {

// Activations and weights are counted in 32-bit words: one float, or a pair of bfloat16 (channels
// 2i and 2i + 1). A sum over k runs over words in ascending order, in one accumulator per output.
constexpr int kUnit = 8;          // outputs; panels are so many units wide
constexpr int kMaxSegments = 16;  // runs of consecutive words that a sum is made of
constexpr int kMaxRows = 12;      // of a tile
constexpr int kMaxUnits = 6;

struct Segment {
  const float* a;  // words of the first row
  ptrdiff_t stride;
  int k;
};

// Some output columns of a packed matrix: b[k][units * kUnit] words. In the matrix of a gate, the
// first half of the columns are A, the second half G, of the same channels.
struct Panel {
  const float* b;
  int units;
  int column;   // of the packed matrix
  int channel;  // of the result
  int channels;
};

// Where results go: row m of a pointer p begins at p + m * stride; null means nowhere.
struct Epilogue {
  bool gate;
  int channels;  // of the result; act holds elu(v) in [0, channels), elu(-v) behind
  const float* residual_in;
  const float* add;
  float* residual_out;
  void* act_out;
  void* raw_out;
  ptrdiff_t residual_in_stride, add_stride, residual_out_stride;
  ptrdiff_t act_stride, raw_stride;  // in operands
};

// out[m] = epilogue(init[m] + sum over segments a[m] b), for m rows.
struct Job {
  int m;
  int n_segments;
  Segment segments[kMaxSegments];
  const Panel* panels;
  int n_panels;
  const float* init;  // packed columns
  ptrdiff_t init_stride;
  float* partial;  // if not null, the sums go here (packed columns) and there is no epilogue
  ptrdiff_t partial_stride;
  Epilogue epilogue;
};

struct Isa {
  const char* name;
  bool bf16;  // operands
  int max_units;
  int (*max_rows)(int units);
  // Rows m0 .. m0 + rows - 1 of one panel: sums to out, and the epilogue from there.
  void (*tile)(const Job& job, const Panel& panel, int m0, int rows, float* out, ptrdiff_t stride);
  void (*finish)(const Job& job, const Panel& panel, int m0, int rows, const float* sums,
                 ptrdiff_t stride);
};

// Tables by instruction set; null if the compiler lacks it.
const Isa* isa_generic(bool bf16);
const Isa* isa_avx2(bool bf16);
const Isa* isa_avx512();
const Isa* isa_avx512_bf16();

// Names of those that run here, the best last.
std::vector<std::string> instruction_sets(bool bf16);

// By name ("generic", "avx2", "avx512"), or the best one that runs here for "auto".
// Throws std::invalid_argument for an unknown name, std::runtime_error for one that cannot run.
const Isa& find_isa(const std::string& name, bool bf16);

}  // namespace dsmooth::sampler
