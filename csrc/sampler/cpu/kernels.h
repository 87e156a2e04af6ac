// The arithmetic of CpuWorker: a tile of a matrix product, its epilogue, and the weights of a
// pixel's components, as a table of functions for each instruction set.
//
// The functions are compiled once per instruction set and called through a table. Nothing else is
// compiled for instructions that the CPU may lack, in particular no inline function of the standard
// library.
#pragma once

#include <cstddef>
#include <string>

#include "../program/views.h"

namespace dsmooth::sampler {

// A sum over k runs over words in ascending order, in one accumulator per output; with AMX over
// pieces of kMaxPiece words or fewer.
constexpr int kMaxSums = 1024;    // of a tile
constexpr int kMaxPiece = 16;     // words of k that AMX multiplies at once
constexpr int kMaxSegments = 16;  // runs of consecutive words in a sum

struct Segment {
  const float* a;  // words of the first row
  ptrdiff_t stride;
  int k;
};

// Row m of memory begins at begin + m * stride; null means no memory.
struct StridedRows {
  float* begin = nullptr;
  ptrdiff_t stride = 0;  // in words

  DSMOOTH_INLINE float* row(int m) const { return begin + m * stride; }
};

// Summands and destinations of results.
struct Epilogue {
  bool gate = false;
  bool split = false;  // act_out has kAddends operands, [0, channels) each, whose sum is elu(v)
  int channels = 0;    // of the result; without split, act_out has elu(v), then elu(-v)
  StridedRows residual_in, add, residual_out, act_out, raw_out;
};

// out[m] = epilogue(init[m % init_rows] + sum over segments a[m] b), for m rows.
struct Job {
  int m;
  int n_segments;
  Segment segments[kMaxSegments];
  const Panel* panels;
  int n_panels;
  const float* init;  // packed columns
  ptrdiff_t init_stride;
  int init_rows;
  StridedRows partial;  // if non-null, receives the sums (packed columns), without an epilogue
  Epilogue epilogue;
};

struct CpuKernels {
  const char* instruction_set;
  bool bf16;                   // operands
  int lanes;                   // of a vector of `finish`
  int max_units;               // of a panel
  int unit_step;               // a panel's units are a multiple of it
  int slice;                   // best number of images per worker, if there are few weights
  int (*max_rows)(int units);  // of a tile
  // Writes the sums of rows m0 .. m0 + rows - 1 to out, for `units` units from the first column of
  // a panel: that panel, or the pair that starts with it.
  void (*tile)(const Job& job, const Panel& first, int units, int m0, int rows, float* out,
               ptrdiff_t stride);
  // The epilogue of the sums of one panel.
  void (*finish)(const Job& job, const Panel& panel, int m0, int rows, const float* sums,
                 ptrdiff_t stride);
  // Replaces n logits by weights and returns the sum of each group, like weigh_group
  // (components.h).
  void (*weigh)(float* logits, int n, float* sums, float temperature);
};

// The kernels for an instruction set, or for the best set below it that has kernels. AVX-512
// multiplies bfloat16 only in its BF16 extension, so with bf16 "avx512" includes that extension if
// the CPU has it. Throws as find_instruction_set does.
const CpuKernels& find_cpu_kernels(const std::string& instruction_set, bool bf16);

}  // namespace dsmooth::sampler
