// A PixelCNN++ as data: its caches, and its operations in order, with their weights. Python builds
// it from the module (dsmooth/sampling/program.py, which explains each field).
#pragma once

#include <vector>

#include "../../common/mixture.h"

namespace dsmooth::sampler {

constexpr int kNone = -1;
constexpr int kResolutions = 3;  // full, half and quarter resolution
constexpr int kAddends = 3;      // operands whose sum a split value is

enum class Phase { kEncoder, kVertical, kHorizontal, kHead };

struct Cache {
  int resolution;
  int channels;
  int rows;  // of the ring; 0: the whole image
  bool operand;
};

// Plain fields, which Term, Op and Program share with their views (views.h).
struct TermSpec {
  int cache;
  int drow, dcol;
  int taps;
  bool row_part;
  int channels;  // of the cache, from its first on; an even number
};

struct OpSpec {
  Phase phase;
  int resolution;
  int row_parity, column_parity;
  bool gate;
  bool split;  // act_out gets elu alone, in kAddends operands
  int residual_in, add, residual_out, act_out, raw_out;
};

struct ProgramSpec {
  int image_channels;
  int image_addends;  // operands whose sum a pixel is
  int n_mix;
  Likelihood likelihood;
  float smoothing_scale;       // kGaussian alone
  bool conditioned;            // decides the stream of the noise
  int image, context, params;  // caches
  int condition_size = 0;      // length of the vector that each image is conditioned on
  int features = 0;            // of each colour's byte; they follow the pixel in the image's cache
  bool image_again = false;    // pixels of the image, not of a prompt, stand there a second time
};

struct Term : TermSpec {
  std::vector<float> weight;  // (n, taps, channels)
};

struct Op : OpSpec {
  int n;                    // outputs of the matrix product: twice the channels of a gate's result
  std::vector<float> bias;  // (n)
  std::vector<Term> terms;
  std::vector<float> projection;  // (n, condition_size) or empty; its product with an image's
                                  // vector is a bias of that image

  int channels() const { return gate ? n / 2 : n; }
  // Channels of the cache of act_out, an even number.
  int act_channels() const {
    const int used = (split ? kAddends : 2) * channels();
    return used + used % 2;
  }
};

struct Program : ProgramSpec {
  std::vector<int> atoms;  // bytes, kDiscretized alone
  std::vector<Cache> caches;
  std::vector<Op> ops;
  std::vector<float> feature_table;  // (kBytes, features)

  // Channels of a pixel in a cache of images: the colours' addends and a one, an even number.
  int pixel_channels() const { return (image_channels * image_addends + 2) / 2 * 2; }
  // The same with the channels that the modelled image alone has.
  int seen_channels() const {
    return pixel_channels() * (image_again ? 2 : 1) + image_channels * features;
  }
  // Parameters of a pixel's mixture.
  int n_params() const {
    return (image_channels == 1 ? 3 : 10) * n_mix + static_cast<int>(atoms.size());
  }
};

// The program with its operations in the order of their phases. Throws std::invalid_argument: it
// names the argument if the mixture contradicts itself. It names the operation if an index, a size
// or a tap is out of range, if an operation reads a value before it is written, or if a weight is
// not finite.
Program checked(Program program);

}  // namespace dsmooth::sampler
