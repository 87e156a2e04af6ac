// A PixelCNN++ as data: what is cached, which operations run where, with which weights. Built in
// Python from the module (dsmooth/sampling/program.py, where each field is explained), checked
// here.
#pragma once

#include <vector>

namespace dsmooth::sampler {

constexpr int kNone = -1;
constexpr int kLevels = 3;  // full, half and quarter resolution

enum class Pass { kEncoder, kVertical, kHorizontal, kHead };

struct Cache {
  int level;
  int channels;
  int rows;  // of the ring; 0: the whole image
  bool operand;
};

struct Term {
  int cache;
  int drow, dcol;
  int taps;
  int channels;
  bool row_part;
  std::vector<float> weight;  // (n, taps, channels)
};

struct Op {
  Pass pass;
  int level;
  int row_parity, column_parity;
  bool gate;
  int n;  // outputs of the matrix product: twice the channels of the result for a gate
  int residual_in, add, residual_out, act_out, raw_out;
  std::vector<float> bias;  // (n)
  std::vector<Term> terms;

  int channels() const { return gate ? n / 2 : n; }
};

struct Program {
  int image_channels;
  int image_parts;  // a pixel enters as a sum of so many operands
  int n_mix;
  bool discretized;
  bool conditioned;            // decides the stage of the noise
  int image, context, params;  // caches
  std::vector<Cache> caches;
  std::vector<Op> ops;

  bool stacked() const { return conditioned && context == kNone; }
};

// Throws std::invalid_argument naming the operation if an index, a size or a tap is out of range,
// if an operation reads what is not there yet, or if a weight is not finite.
void check(const Program& program);

}  // namespace dsmooth::sampler
