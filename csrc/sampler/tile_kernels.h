// The matrix product of a tile and its epilogue, for each instruction set.
//
// The functions are compiled once per instruction set and reached through a table, so that nothing
// else, and no inline function of the standard library, is compiled for a CPU that may not be
// there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "network.h"

namespace dsmooth::sampler {

// A sum over k runs over words in ascending order, in one accumulator per output.
constexpr int kMaxRows = 12;  // of a tile
constexpr int kMaxUnits = 6;

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
  float* partial;  // if not null, the sums go here (packed columns) and there is no epilogue
  ptrdiff_t partial_stride;
  Epilogue epilogue;
};

inline Job make_job(const Product& product) {
  const OpView& op = product.op();
  const MatrixView& matrix = product.matrix();
  Job job{};
  job.m = product.m();
  job.panels = matrix.panels;
  job.n_panels = matrix.n_panels;
  for (int t = 0; t < op.n_terms; ++t)
    if (product.includes(op.terms[t]))
      for (int tap = 0; tap < op.terms[t].taps; ++tap)
        job.segments[job.n_segments++] = product.segment(op.terms[t], tap);
  job.init = product.init();
  job.init_stride = product.init_stride();
  job.init_rows = product.init_rows();
  job.partial = product.partial();
  if (job.partial)
    job.partial_stride = matrix.columns;
  else
    job.epilogue = product.epilogue();
  return job;
}

struct TileKernels {
  const char* instruction_set;
  bool bf16;  // operands
  int max_units;
  int (*max_rows)(int units);
  // Rows m0 .. m0 + rows - 1 of one panel: sums to out, and the epilogue from there.
  void (*tile)(const Job& job, const Panel& panel, int m0, int rows, float* out, ptrdiff_t stride);
  void (*finish)(const Job& job, const Panel& panel, int m0, int rows, const float* sums,
                 ptrdiff_t stride);
};

// The kernels for an instruction set, or those of the best set below it that has some. AVX-512
// multiplies bfloat16 in its BF16 extension alone, so with bf16 "avx512" takes that in where the
// CPU has it. Throws as find_instruction_set does.
const TileKernels& find_tile_kernels(const std::string& instruction_set, bool bf16);

}  // namespace dsmooth::sampler
