// The incremental network, written once: which sums to compute at which position, in which order.
//
// A Worker runs it: lanes that share the work of a slice of the batch.
//   worker.begin_row(row)     all later calls belong to this row
//   worker.matmul(state, op, part, row, column, count)  lanes share the tiles of a product: a part
//                             of an operation at `count` columns of a row, which are those of the
//                             operation's resolution; the epilogue follows each tile. Rows of the
//                             product are the images of the first column, of the next, and so on;
//                             a sum over k runs over the terms and their taps in order
//   worker.pixel(state, row, column)  all operations at a pixel, with a sync after each
//   worker.weigh(state, row, column, temperature)  a pixel's logits become weights, with the sums
//                             of their groups, for the lane that draws the image next
//   worker.for_each(n, f)     lanes share f(0) .. f(n - 1)
//   worker.sync()             all lanes see what any lane wrote before
//   worker.end_row(images)    a sync at the end of a row, which counts it as done
//   worker.stop()             whether to return early: the same in all lanes between two syncs
//   Worker::kStops            whether it ever does: then lanes also sync within a row part
//   Worker::kMasksAndClasses  whether it has the code for masks, conditions and guidance
// Every lane runs all of `draw`. A lane is a thread on the CPU, or a thread of a block on a GPU;
// all functions here are compiled for both.
#pragma once

#include <cstdint>

#include "draw_pixel.h"
#include "program/views.h"

namespace dsmooth::sampler {

template <class Worker>
class Step {
 public:
  // The state must outlive the step. Each lane needs its own copy if the owner may prepare the next
  // slice while another lane is still returning.
  DSMOOTH_HOST_DEVICE Step(const NetworkView& network, const Slice& slice, const StateView& state,
                           Worker& worker)
      : n_(network), s_(slice), state_(state), w_(worker) {}

  // Draws rows first .. end - 1, after all rows before them; the rows of a prompt come first.
  // Returns false if it was stopped.
  DSMOOTH_HOST_DEVICE bool draw(int first, int end) {
    if (first == 0 && Worker::kMasksAndClasses && n_.n_classes > 0) project();
    if (first == 0 && n_.context != kNone && !encode()) return false;
    const int prompt = n_.rows(s_.height) - s_.height;
    for (int row = first; row < end; ++row) {
      w_.begin_row(row);
      if (!run_stream(Phase::kVertical, Part::kRow, row)) return false;
      // The contributions of the row above and of u to the horizontal stream.
      if (!run_stream(Phase::kHorizontal, Part::kRow, row)) return false;
      const float* const known = row < prompt ? s_.context : known_row(row - prompt);
      begin_row(row, known);
      w_.sync();
      if (known != nullptr) {
        if (!run_stream(Phase::kHorizontal, Part::kPixel, row)) return false;
      } else {
        for (int column = 0; column < s_.width; ++column) {
          w_.pixel(state_, row, column);
          if (Worker::kMasksAndClasses && s_.guidance != 0.0f) guide(row, column);
          if (n_.groups > 0) w_.weigh(state_, row, column, s_.temperature);
          w_.for_each(s_.batch, [&](int b) { draw_image(b, row - prompt, row, column); });
          w_.sync();
          if (w_.stop()) return false;
        }
      }
      w_.end_row(s_.batch);
      if (w_.stop()) return false;
    }
    return true;
  }

 private:
  // The images' biases: an operation's bias plus the column of its projection for the image's
  // class.
  DSMOOTH_HOST_DEVICE void project() {
    for (int i = 0; Worker::kMasksAndClasses && i < n_.n_ops; ++i) {
      const OpView& op = n_.ops[i];
      if (op.projection == nullptr) continue;
      const int columns = op.row.columns;
      w_.for_each(s_.batch * columns, [&](int j) {
        const int column = j % columns;
        const int64_t label = s_.labels[j / columns];
        float sum = op.bias[column];
        if (label >= 0 && label < n_.n_classes) sum += op.projection[label * columns + column];
        state_.image_bias(op)[j] = sum;
      });
    }
    w_.sync();
  }

  // The context's encoder: each operation over the whole image. Returns false if it was stopped.
  DSMOOTH_HOST_DEVICE bool encode() {
    w_.for_each(s_.batch * s_.height, [&](int i) {
      const int b = i / s_.height, row = i % s_.height;
      for (int c = 0; c < s_.width; ++c)
        store_pixel(n_, pixel_at(s_.context, b, row, c), address(n_.context, b, row, c));
    });
    w_.sync();
    for (int i = n_.begin(Phase::kEncoder); i < n_.end(Phase::kEncoder); ++i) {
      for (int row = 0; row < s_.height; ++row) {
        w_.begin_row(row);
        if (w_.stop()) return false;
        run(i, Part::kRow, row);
      }
      w_.sync();
    }
    return true;
  }

  // Extrapolates a pixel's parameters from the pass without a class. That pass's log-scales
  // are clamped at the minimum; lower ones in the other pass still give lower results.
  DSMOOTH_HOST_DEVICE void guide(int row, int column) {
    const int weights = n_.n_mix + n_.n_atoms, per_colour = n_.image_channels == 1 ? 2 : 3;
    w_.for_each(s_.batch / 2 * n_.n_params, [&](int i) {
      const int parameter = i % n_.n_params, slot = (parameter - weights) / n_.n_mix % per_colour;
      float* const at = address(n_.params, i / n_.n_params * 2, row, column) + parameter;
      float without = at[n_.caches[n_.params].stride];
      if (parameter >= weights && slot == 1 && without < kMinLogScale) without = kMinLogScale;
      *at = without + (1.0f + s_.guidance) * (*at - without);
    });
    w_.sync();
  }

  // A stream's operations over a row of pixels; returns false if it was stopped. In the row part of
  // the horizontal stream no operation reads the output of another, so it needs no sync.
  DSMOOTH_HOST_DEVICE bool run_stream(Phase phase, Part part, int row) {
    for (int i = n_.begin(phase); i < n_.end(phase); ++i) {
      const OpView& op = n_.ops[i];
      if (!op.runs_at_row(row) || op.matrix(part).n_panels == 0) continue;
      run(i, part, row);
      if (Worker::kStops || phase != Phase::kHorizontal || part != Part::kRow) w_.sync();
      if (w_.stop()) return false;
    }
    return true;
  }

  // A part of an operation over a row of pixels.
  DSMOOTH_HOST_DEVICE void run(int i, Part part, int row) {
    const OpView& op = n_.ops[i];
    const int width = state_.width_at(op.resolution), at_once = op.by_column ? 1 : width;
    for (int column = 0; column < width; column += at_once)
      if (at_once == width || op.column_parity == kNone || (column & 1) == op.column_parity)
        w_.matmul(state_, i, part, row >> op.resolution, column, at_once);
  }

  // The output images if every pixel of a row is known, else null.
  DSMOOTH_HOST_DEVICE const float* known_row(int image_row) const {
    for (int i = 0; i < s_.batch * s_.width; ++i)
      if (!is_known(i % s_.batch, image_row, i / s_.batch)) return nullptr;
    return s_.out;
  }

  DSMOOTH_HOST_DEVICE bool is_known(int b, int image_row, int column) const {
    return Worker::kMasksAndClasses && s_.mask != nullptr &&
           s_.mask[(int64_t{b} * s_.height + image_row) * s_.width + column] != 0;
  }

  // Writes the pixels of a row, or zeros if `known` is null, and the channel of ones that
  // distinguishes the image from its padding. No pixel to the right is read, so ones may be written
  // before pixels.
  DSMOOTH_HOST_DEVICE void begin_row(int row, const float* known) {
    const int image_row = row % s_.height;
    const bool is_known = known == s_.out;
    w_.for_each(s_.batch * s_.width, [&](int i) {
      const int b = i % s_.batch, column = i / s_.batch;
      const Pixel pixel = known ? pixel_at(known, b, image_row, column) : Pixel{};
      float* const to = address(n_.image, b, row, column);
      store_pixel(n_, pixel, to);
      store_image_channels(n_, pixel, is_known, to + n_.pixel_words);
    });
  }

  DSMOOTH_HOST_DEVICE Pixel pixel_at(const float* images, int b, int row, int column) const {
    Pixel pixel{};
    for (int c = 0; c < n_.image_channels; ++c) {
      const int64_t plane = int64_t{b} * n_.image_channels + c;
      pixel.value[c] = images[(plane * s_.height + row) * s_.width + column];
    }
    return pixel;
  }

  DSMOOTH_HOST_DEVICE float* address(int cache, int b, int row, int column) const {
    return state_.at(cache, row, column) + int64_t{b} * n_.caches[cache].stride;
  }

  // image_row counts from the top of the image, canvas_row from the top of the prompt.
  DSMOOTH_HOST_DEVICE void draw_image(int b, int image_row, int canvas_row, int column) {
    const int passes = Worker::kMasksAndClasses ? s_.passes() : 1;
    if (b % passes != 0) return;
    const float* params = address(n_.params, b, canvas_row, column);
    const uint32_t position = static_cast<uint32_t>(image_row * s_.width + column);
    const Pixel pixel =
        is_known(b, image_row, column)
            ? pixel_at(s_.out, b, image_row, column)
            : draw_pixel(n_, params, s_.seed, s_.first_index + static_cast<uint64_t>(b / passes),
                         position, s_.temperature);
    for (int copy = b; copy < b + passes; ++copy) {
      float* const to = address(n_.image, copy, canvas_row, column);
      store_pixel(n_, pixel, to);
      store_image_channels(n_, pixel, true, to + n_.pixel_words);
      for (int c = 0; c < n_.image_channels; ++c) {
        const int64_t plane = int64_t{copy} * n_.image_channels + c;
        s_.out[(plane * s_.height + image_row) * s_.width + column] = pixel.value[c];
      }
    }
  }

  const NetworkView& n_;
  const Slice s_;
  const StateView& state_;
  Worker& w_;
};

}  // namespace dsmooth::sampler
