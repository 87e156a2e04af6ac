// A program made ready to run on one instruction set: packed matrices, and where each lies.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "isa.h"
#include "program.h"

namespace dsmooth::sampler {

// Zeroed memory, aligned to a cache line.
class Words {
 public:
  Words() = default;
  explicit Words(size_t count);
  float* data() const { return data_.get(); }
  size_t size() const { return count_; }
  void clear();

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float, Free> data_;
  size_t count_ = 0;
};

// The matrix of the terms of one part of an operation, cut into panels.
struct Matrix {
  std::vector<Panel> panels;
  int columns = 0;  // a multiple of kUnit, at least the outputs
  Words words;
};

enum class Part { kRow, kPixel };

struct PlannedOp {
  Matrix row, pixel;  // no panels where there are no terms
  Words bias;         // packed columns
  bool resamples;     // reads another level, or writes every second column
};

// Immutable once made; shared by all workers and calls.
struct Plan {
  Plan(Program program, const Isa& isa);

  int words(const Cache& cache) const {
    return cache.operand && isa.bf16 ? cache.channels / 2 : cache.channels;
  }

  Program program;
  const Isa& isa;
  std::vector<PlannedOp> ops;
};

// The caches of a slice of `batch` images of height x width.
//
// Within a row of a cache, columns follow one another and within a column images do, so the matrix
// product over the images of a column, or over all of a row, reads memory in order. One column of
// zeros on either side is the padding of the convolutions; rows above the image are zero likewise.
class State {
 public:
  State(const Plan& plan, int batch, int height, int width);

  void clear(int batch);  // for the next slice, of at most the first batch size
  int batch() const { return batch_; }
  int width(int level) const { return width_ >> level; }
  // Words of image 0 at a position of a cache; rows count from -1 up to the height inclusive.
  float* at(int cache, int row, int column) const;
  float* partial(size_t op, int column) const;
  size_t bytes() const;

 private:
  const Plan& plan_;
  int batch_, height_, width_;
  std::vector<Words> caches_, partials_;
};

// Bytes of the caches of one image.
size_t bytes_per_image(const Plan& plan, int height, int width);

}  // namespace dsmooth::sampler
