// Views: a program, its state and a slice of images as plain data, which the step reads on host and
// device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../common/host_device.h"
#include "../../common/likelihood.h"

namespace dsmooth::sampler {

constexpr int kNone = -1;
constexpr int kResolutions = 3;  // full, half and quarter resolution
constexpr int kAddends = 3;      // operands that sum to a split value

enum class Phase { kEncoder, kVertical, kHorizontal, kHead };

// Fields that a term, an operation and a program (program.h) share with their views.
struct TermSpec {
  int cache;
  int drow, dcol;
  int taps;
  bool row_part;
  int channels;  // the first channels of the cache; an even number
};

struct OpSpec {
  Phase phase;
  int resolution;
  int row_parity, column_parity;
  bool gate;
  bool split;  // act_out gets only elu(v), in kAddends operands
  int residual_in, add, residual_out, act_out, raw_out;
};

struct ProgramSpec {
  int image_channels;
  int image_addends;  // operands that sum to a pixel
  int n_mix;
  int n_atoms;  // kBytes or 0; 0 except for grey images and kDiscretized
  Likelihood likelihood;
  float smoothing_scale;       // only for kGaussian
  bool conditioned;            // selects the stream of the noise
  int image, context, params;  // caches
  int n_classes = 0;
  int features = 0;          // per colour's byte, after the pixel in the image's cache
  bool image_again = false;  // the cache holds the image's pixels twice, a prompt's once
};

// Activations and weights are counted in 32-bit words: one float, or a pair of bfloat16 (channels
// 2i and 2i + 1).
constexpr int kUnit = 8;  // outputs; panels are whole units wide

enum class Part { kRow, kPixel };

// Some output columns of a packed matrix. In the matrix of a gate, the first half of the columns
// are A, the second half G, of the same channels. Panels 2i and 2i + 1 may be interleaved: at
// each k, first the columns of one, then of the other.
struct Panel {
  const float* b;
  int step;   // words from one k to the next
  int piece;  // words of k, at most kMaxPiece, that divide every segment
  int units;
  int column;   // of the packed matrix
  int channel;  // of the result
  int channels;
};

struct MatrixView {
  const Panel* panels;
  int n_panels;
  int columns;
};

struct OpView : OpSpec {
  bool by_column;  // one column at a time: reads another resolution, writes every second column,
                   // or, on a device, starts from image biases
  int channels;    // of the result
  int n_terms;
  const TermSpec* terms;
  MatrixView row, pixel;
  const float* bias;                  // packed columns
  const float* projection = nullptr;  // (n_classes, packed columns) or null
  int image_bias = 0;                 // image bias columns of the operations before it

  DSMOOTH_HOST_DEVICE const MatrixView& matrix(Part part) const {
    return part == Part::kRow ? row : pixel;
  }
  // Layers of lower resolution run at every second (fourth) row and column. There, their inputs are
  // complete, and nothing reads them earlier.
  DSMOOTH_HOST_DEVICE bool runs_at_row(int row) const { return runs(row_parity, row); }
  DSMOOTH_HOST_DEVICE bool runs_at_column(int column) const { return runs(column_parity, column); }
  // Whether partial sums are stored between the row part and the pixel part.
  DSMOOTH_HOST_DEVICE bool two_parts() const {
    return phase == Phase::kHorizontal && row.n_panels > 0;
  }

 private:
  DSMOOTH_HOST_DEVICE bool runs(int parity, int at) const {
    if (at & ((1 << resolution) - 1)) return false;
    return parity == kNone || ((at >> resolution) & 1) == parity;
  }
};

struct CacheView {
  int resolution;
  int rows;    // of the ring; 0: the whole image
  int words;   // of an image at a position
  int stride;  // from one image to the next; words beyond `words` stay zero

  DSMOOTH_HOST_DEVICE int rows_of(int height) const {
    return rows ? rows : (height >> resolution) + 2;
  }
  DSMOOTH_HOST_DEVICE size_t words_per_image(int height, int width) const {
    return static_cast<size_t>(rows_of(height)) * ((width >> resolution) + 2) * stride;
  }
};

// The operations that run at a pixel depend on the parities of row and column at each resolution.
constexpr int kPixelPeriod = 1 << kResolutions;

struct NetworkView : ProgramSpec {
  int n_params;
  int groups;         // of components (components.h); 0 if they are processed one by one
  int pixel_words;    // of a pixel in a cache of images, without the modelled image's own channels
  int feature_words;  // of a colour's byte
  const float* features;  // (kBytes, feature_words)
  bool bf16;              // operands
  int n_caches, n_ops;
  const CacheView* caches;
  const OpView* ops;      // by phase
  int first_of_phase[5];  // operations first_of_phase[p] .. first_of_phase[p + 1] - 1
  // The operations of the horizontal stream and the head, in order, for each row and column modulo
  // kPixelPeriod: first_at_pixel[i] .. first_at_pixel[i + 1] - 1 of at_pixel.
  const int16_t* at_pixel;
  int first_at_pixel[kPixelPeriod * kPixelPeriod + 1];
  int image_bias_columns = 0;  // of all operations with a projection

  // Index in at_pixel of the first of the n operations at a pixel.
  DSMOOTH_HOST_DEVICE int ops_at(int row, int column, int& n) const {
    const int list = row % kPixelPeriod * kPixelPeriod + column % kPixelPeriod;
    n = first_at_pixel[list + 1] - first_at_pixel[list];
    return first_at_pixel[list];
  }
  // Rows to draw for an image, including a prompt above it.
  DSMOOTH_HOST_DEVICE int rows(int height) const {
    return conditioned && context == kNone ? 2 * height : height;
  }
  DSMOOTH_HOST_DEVICE int begin(Phase phase) const {
    return first_of_phase[static_cast<int>(phase)];
  }
  DSMOOTH_HOST_DEVICE int end(Phase phase) const {
    return first_of_phase[static_cast<int>(phase) + 1];
  }
  // Words of one image's partial sums between the parts of an operation.
  DSMOOTH_HOST_DEVICE size_t partial_words(const OpView& op, int width) const {
    if (!op.two_parts()) return 0;
    return static_cast<size_t>(width >> op.resolution) * op.row.columns;
  }
};

// The caches of a slice.
//
// A row of a cache consists of columns, and a column of images. So a product over the images of a
// column, or over a whole row, reads memory in order. One column of zeros on either side is the
// padding of the convolutions; rows above the image are also zero.
struct StateView {
  const NetworkView* network;
  float* const* caches;
  float* const* partials;  // by operation
  int batch, height, width;
  float* image_biases = nullptr;  // operation by operation

  DSMOOTH_HOST_DEVICE int width_at(int resolution) const { return width >> resolution; }

  // Words of image 0 at a position of a cache; rows count from -2 (of rings of 3) or -1 up to the
  // height inclusive.
  DSMOOTH_HOST_DEVICE float* at(int cache, int row, int column) const {
    const CacheView& c = network->caches[cache];
    const int rows = c.rows_of(height);
    const int slot = (row + 1 + rows) % rows;
    const ptrdiff_t position =
        static_cast<ptrdiff_t>(slot) * (width_at(c.resolution) + 2) + column + 1;
    return caches[cache] + position * batch * c.stride;
  }
  // The images' biases of an operation with a projection: a row of packed columns per image.
  DSMOOTH_HOST_DEVICE float* image_bias(const OpView& op) const {
    return image_biases + ptrdiff_t{op.image_bias} * batch;
  }
  DSMOOTH_HOST_DEVICE float* partial(int op, int column) const {
    return partials[op] + static_cast<ptrdiff_t>(column) * batch * network->ops[op].row.columns;
  }
};

// Images first_index .. of a stream of noise, in the caller's memory. `out` holds the known pixels,
// which are kept; the others are drawn.
struct Slice {
  int batch;
  int height, width;
  uint64_t seed;
  uint64_t first_index;
  float temperature;
  const float* context;             // (batch, C, H, W) or null
  float* out;                       // (batch, C, H, W)
  const uint8_t* mask = nullptr;    // (batch, H, W), not 0 where a pixel is known; null: none is
  const int64_t* labels = nullptr;  // (batch), classes; any other number is none; or null
  // If nonzero, image 2i + 1 is a copy of image 2i with another label. Their parameters p and q
  // become q + (1 + guidance)(p - q), and one pixel is drawn for both (math.md section 8).
  float guidance = 0.0f;

  // Images of the batch that are drawn as one.
  DSMOOTH_HOST_DEVICE int passes() const { return guidance != 0.0f ? 2 : 1; }

  // The first image of slice i of the `slices` of n images.
  DSMOOTH_HOST_DEVICE int64_t begin(int64_t n, int64_t i, int64_t slices) const {
    return n / passes() * i / slices * passes();
  }
  // Images first .. end - 1.
  DSMOOTH_HOST_DEVICE Slice images(const NetworkView& network, int64_t first, int64_t end) const {
    const int64_t plane = int64_t{height} * width, pixels = network.image_channels * plane;
    Slice slice = *this;
    slice.batch = static_cast<int>(end - first);
    slice.first_index += static_cast<uint64_t>(first / passes());
    slice.context = context ? context + first * pixels : nullptr;
    slice.out += first * pixels;
    if (mask != nullptr) slice.mask += first * plane;
    if (labels != nullptr) slice.labels += first;
    return slice;
  }
};

// A batch in `slices` of at most `largest` images, which `workers` process in turn.
struct Partition {
  int64_t slices;
  int largest;
  int workers;
};

// Words of area i of a workspace for `images` images. The areas are the caches, then the partial
// sums of each operation, then the image biases.
DSMOOTH_HOST_DEVICE inline size_t workspace_words(const NetworkView& network, int i, int images,
                                                  int height, int width) {
  const size_t words = i < network.n_caches ? network.caches[i].words_per_image(height, width)
                       : i < network.n_caches + network.n_ops
                           ? network.partial_words(network.ops[i - network.n_caches], width)
                           : static_cast<size_t>(network.image_bias_columns);
  return (words * images + 31) / 32 * 32;
}

}  // namespace dsmooth::sampler
