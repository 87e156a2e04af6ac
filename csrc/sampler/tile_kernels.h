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
constexpr int kMaxSegments = 16;  // runs of consecutive words that a sum is made of

struct Segment {
  const float* a;  // words of the first row
  ptrdiff_t stride;
  int k;
};

// Destinations of results: row m of a pointer p begins at p + m * stride; null means nowhere.
struct Epilogue {
  bool gate;
  bool split;    // act holds kSplitParts operands, [0, channels) each, whose sum is elu(v)
  int channels;  // of the result; else act holds elu(v) in [0, channels), elu(-v) behind
  const float* residual_in;
  const float* add;
  float* residual_out;
  void* act_out;
  void* raw_out;
  ptrdiff_t residual_in_stride, add_stride, residual_out_stride;
  ptrdiff_t act_stride, raw_stride;  // in operands
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
  float* partial;  // if not null, the sums go here (packed columns) and there is no epilogue
  ptrdiff_t partial_stride;
  Epilogue epilogue;
};

inline Job make_job(const Product& p) {
  const StateView& state = *p.state;
  const NetworkView& network = *state.network;
  const OpView& op = network.ops[p.index];
  const MatrixView& matrix = op.matrix(p.part);
  Job job{};
  job.m = p.count * state.batch;
  job.panels = matrix.panels;
  job.n_panels = matrix.n_panels;
  for (int t = 0; t < op.n_terms; ++t) {
    const TermSpec& term = op.terms[t];
    if (op.phase == Phase::kHorizontal && term.row_part != (p.part == Part::kRow)) continue;
    const CacheView& cache = network.caches[term.cache];
    const int down = op.level - cache.level;
    const auto in_cache = [&](int at) { return down > 0 ? at << 1 : down < 0 ? at >> 1 : at; };
    for (int tap = 0; tap < term.taps; ++tap)
      job.segments[job.n_segments++] = {
          state.at(term.cache, in_cache(p.row) + term.drow, in_cache(p.column) + term.dcol + tap),
          cache.stride, cache.words};
  }
  // The sums begin with those that waited, with the biases of the images, or with one bias.
  if (op.two_parts() && p.part == Part::kPixel) {
    job.init = state.partial(p.index, p.column);
    job.init_stride = op.row.columns;
    job.init_rows = job.m;
  } else if (op.projection != nullptr) {
    job.init = state.image_bias(op);
    job.init_stride = op.row.columns;
    job.init_rows = state.batch;
  } else {
    job.init = op.bias;
    job.init_rows = 1;
  }
  if (op.two_parts() && p.part == Part::kRow) {
    job.partial = state.partial(p.index, p.column);
    job.partial_stride = matrix.columns;
    return job;
  }
  const auto at = [&](int cache) {
    return cache == kNone ? nullptr : state.at(cache, p.row, p.column);
  };
  const auto stride = [&](int cache) {
    return ptrdiff_t{cache == kNone ? 0 : network.caches[cache].stride};
  };
  const int operands = network.bf16 ? 2 : 1;
  job.epilogue = {op.gate,
                  op.split,
                  op.channels,
                  at(op.residual_in),
                  at(op.add),
                  at(op.residual_out),
                  at(op.act_out),
                  at(op.raw_out),
                  stride(op.residual_in),
                  stride(op.add),
                  stride(op.residual_out),
                  stride(op.act_out) * operands,
                  stride(op.raw_out) * operands};
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
