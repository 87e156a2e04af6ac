// A PixelCNN++ as data: its caches, and its operations in order, with their weights. Python builds
// it from the module (dsmooth/sampling/program.py, which explains each field).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../../common/bfloat16.h"
#include "views.h"

namespace dsmooth::sampler {

struct Cache {
  int resolution;
  int channels;
  int rows;  // of the ring; 0: the whole image
  bool operand;
};

struct Term : TermSpec {
  std::vector<float> weight;  // (n, taps, channels)
};

struct Op : OpSpec {
  int n;                    // outputs of the matrix product: twice the channels of a gate's result
  std::vector<float> bias;  // (n)
  std::vector<Term> terms;
  std::vector<float> projection;  // (n, n_classes) or empty; the column of an image's class is a
                                  // bias of that image

  int channels() const { return gate ? n / 2 : n; }
  // Channels of the cache of act_out, an even number.
  int act_channels() const {
    const int used = (split ? kAddends : 2) * channels();
    return used + used % 2;
  }
};

struct Program : ProgramSpec {
  std::vector<Cache> caches;
  std::vector<Op> ops;
  std::vector<float> feature_table;  // (kBytes, features)

  // Channels of a pixel in a cache of images: the colours' addends and a one, an even number.
  int pixel_channels() const { return (image_channels * image_addends + 2) / 2 * 2; }
  // The same with the channels that only the modelled image has.
  int seen_channels() const {
    return pixel_channels() * (image_again ? 2 : 1) + image_channels * features;
  }
  // Parameters of a pixel's mixture.
  int n_params() const { return (image_channels == 1 ? 3 : 10) * n_mix + n_atoms; }
};

// The program with its operations sorted by phase. Throws std::invalid_argument, naming the
// operation, if an index, a size or a tap is out of range.
Program checked(Program program);

// The views of a program, without its matrices. Pointers go to the vectors and survive a move.
struct Skeleton {
  std::vector<CacheView> caches;
  std::vector<TermSpec> terms;
  std::vector<OpView> ops;
  std::vector<int16_t> at_pixel;
  std::vector<float> features;  // as in NetworkView
  NetworkView network{};

  Skeleton() = default;
  // The program's operations must be sorted by phase. The words of an image are padded
  // to a multiple of `stride_words`.
  Skeleton(const Program& program, bool bf16, int stride_words);
  Skeleton(Skeleton&&) = default;
  Skeleton& operator=(Skeleton&&) = default;

  // Packs the projection of an operation that has its matrices.
  void add_projection(size_t op, const float* projection);
};

// Writes operand i of an array of words. Inline, since packing calls it for every weight.
inline void put_operand(float* words, size_t i, float value, bool bf16) {
  if (!bf16) {
    words[i] = value;
    return;
  }
  const bfloat16 half = to_bfloat16(value);
  std::memcpy(reinterpret_cast<char*>(words) + i * sizeof half, &half, sizeof half);
}

// The terms of one part of an operation; outside the horizontal stream there is only one part.
std::vector<const Term*> terms_of(const Op& op, Part part);

// The fewest slices, of at most `most` images, that keep every worker busy. `passes` images, which
// are drawn as one, are in the same slice.
Partition partition_among(int64_t n, int64_t workers, int64_t most, int passes);

// Throws std::invalid_argument unless the size is valid.
void check_size(int64_t height, int64_t width);

// Bytes of one image's caches and partial sums. Throws as check_size does.
size_t bytes_per_image(const NetworkView& network, int height, int width);

}  // namespace dsmooth::sampler
