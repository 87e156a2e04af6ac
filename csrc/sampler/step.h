// The incremental network, written once: which sums to form at which position, in which order.
//
// A Worker carries it out: lanes that share the work of a slice of the batch.
//   worker.matmul(job)        lanes share the tiles of a product; the epilogue follows each tile
//   worker.for_each(n, f)     lanes share f(0) .. f(n - 1)
//   worker.sync()             what any lane wrote before is there for all lanes after
//   worker.end_row(images)    a sync at the end of a row, which counts it as done
//   worker.stop()             the same answer in all lanes between two syncs: leave early
// Every lane runs the whole of `draw`. A lane is a thread on the CPU, a thread of the block on a
// GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "draw_pixel.h"
#include "plan.h"

namespace dsmooth::sampler {

// One slice: images first_index .. of a stream of noise, canvas and context in memory of the
// caller.
struct Slice {
  int batch;
  int height, width;
  uint64_t seed;
  uint64_t first_index;
  float temperature;
  const float* context;  // (batch, C, H, W) or null
  float* out;            // (batch, C, H, W)
};

template <class Worker>
class Step {
 public:
  Step(const Plan& plan, const Slice& slice, State& state, Worker& worker)
      : plan_(plan), p_(plan.program), s_(slice), state_(state), w_(worker) {}

  // Draws the slice; false if it was stopped.
  bool draw() {
    if (p_.context != kNone) encode();
    const int prompt = p_.stacked() ? s_.height : 0;
    for (int row = 0; row < prompt + s_.height; ++row) {
      vertical_row(row);
      horizontal_row_part(row);
      begin_row(row, row < prompt);
      w_.sync();
      if (row < prompt) {
        horizontal_row(row);
        if (w_.stop()) return false;
      } else {
        for (int column = 0; column < s_.width; ++column) {
          pixel(row, column);
          w_.for_each(s_.batch, [&](int b) { draw_image(b, row - prompt, row, column); });
          w_.sync();
          if (w_.stop()) return false;
        }
      }
      w_.end_row(s_.batch);
    }
    return true;
  }

 private:
  // The context's encoder: operation after operation over the whole image.
  void encode() {
    w_.for_each(s_.batch * s_.height, [&](int i) {
      const int b = i / s_.height, row = i % s_.height;
      for (int c = 0; c < s_.width; ++c) put_pixel(p_.context, b, row, c, context_at(b, row, c));
    });
    w_.sync();
    for (size_t i = 0; i < p_.ops.size(); ++i) {
      if (p_.ops[i].pass != Pass::kEncoder) continue;
      for (int row = 0; row < s_.height; ++row) run(i, Part::kRow, row, 0, s_.width);
      w_.sync();
    }
  }

  void vertical_row(int row) {
    for (size_t i = 0; i < p_.ops.size(); ++i) {
      const Op& op = p_.ops[i];
      if (op.pass != Pass::kVertical || !active_row(op, row)) continue;
      run(i, Part::kRow, row >> op.level, 0, state_.width(op.level));
      w_.sync();
    }
  }

  // All that the row above and u give to the horizontal stream. Nothing here reads what is written
  // here, so the lanes need not meet.
  void horizontal_row_part(int row) {
    for (size_t i = 0; i < p_.ops.size(); ++i) {
      const Op& op = p_.ops[i];
      if (op.pass == Pass::kHorizontal && active_row(op, row) && !plan_.ops[i].row.panels.empty())
        run(i, Part::kRow, row >> op.level, 0, state_.width(op.level));
    }
  }

  // The horizontal stream over a row of known pixels.
  void horizontal_row(int row) {
    for (size_t i = 0; i < p_.ops.size(); ++i) {
      const Op& op = p_.ops[i];
      if (op.pass != Pass::kHorizontal || !active_row(op, row)) continue;
      run(i, Part::kPixel, row >> op.level, 0, state_.width(op.level));
      w_.sync();
    }
  }

  // The horizontal stream at one pixel, and the parameters of its mixture.
  void pixel(int row, int column) {
    for (size_t i = 0; i < p_.ops.size(); ++i) {
      const Op& op = p_.ops[i];
      if (op.pass < Pass::kHorizontal || !active_row(op, row) || !active_column(op, column))
        continue;
      run(i, Part::kPixel, row >> op.level, column >> op.level, 1);
      w_.sync();
    }
  }

  // Layers of lower resolution run at every second (fourth) row and column: there their inputs are
  // complete, and nothing reads them earlier.
  static bool active(int level, int parity, int at) {
    if (at & ((1 << level) - 1)) return false;
    return parity == kNone || ((at >> level) & 1) == parity;
  }
  static bool active_row(const Op& op, int row) { return active(op.level, op.row_parity, row); }
  static bool active_column(const Op& op, int column) {
    return active(op.level, op.column_parity, column);
  }

  // Columns first .. first + count - 1 of a row, in the coordinates of the operation's level.
  void run(size_t i, Part part, int row, int first, int count) {
    const Op& op = p_.ops[i];
    if (!plan_.ops[i].resamples || count == 1) return w_.matmul(job(i, part, row, first, count));
    for (int column = first; column < first + count; ++column)
      if (op.column_parity == kNone || (column & 1) == op.column_parity)
        w_.matmul(job(i, part, row, column, 1));
  }

  Job job(size_t i, Part part, int row, int column, int count) const {
    const Op& op = p_.ops[i];
    const PlannedOp& planned = plan_.ops[i];
    const bool two_parts = op.pass == Pass::kHorizontal && !planned.row.panels.empty();
    const Matrix& matrix = part == Part::kRow ? planned.row : planned.pixel;
    Job job{};
    job.m = count * s_.batch;
    job.panels = matrix.panels.data();
    job.n_panels = static_cast<int>(matrix.panels.size());
    for (const Term& term : op.terms)
      if (op.pass != Pass::kHorizontal || term.row_part == (part == Part::kRow))
        add_segments(job, op, term, row, column);
    job.init = planned.bias.data();
    if (two_parts) {
      float* partial = state_.partial(i, column);
      if (part == Part::kRow) {
        job.partial = partial;
        job.partial_stride = matrix.columns;
        return job;
      }
      job.init = partial;
      job.init_stride = matrix.columns;
    }
    job.epilogue = epilogue(op, row, column);
    return job;
  }

  void add_segments(Job& job, const Op& op, const Term& term, int row, int column) const {
    const Cache& cache = p_.caches[static_cast<size_t>(term.cache)];
    const int down = op.level - cache.level;
    const auto resampled = [down](int x) { return down > 0 ? x << 1 : down < 0 ? x >> 1 : x; };
    const int words = plan_.words(cache);
    for (int tap = 0; tap < term.taps; ++tap)
      job.segments[job.n_segments++] = {
          state_.at(term.cache, resampled(row) + term.drow, resampled(column) + term.dcol + tap),
          words, words};
  }

  Epilogue epilogue(const Op& op, int row, int column) const {
    const auto at = [&](int cache) {
      return cache == kNone ? nullptr : state_.at(cache, row, column);
    };
    const auto stride = [&](int cache) -> ptrdiff_t {
      return cache == kNone ? 0 : p_.caches[static_cast<size_t>(cache)].channels;
    };
    return {op.gate,
            op.channels(),
            at(op.residual_in),
            at(op.add),
            at(op.residual_out),
            at(op.act_out),
            at(op.raw_out),
            stride(op.residual_in),
            stride(op.add),
            stride(op.residual_out),
            stride(op.act_out),
            stride(op.raw_out)};
  }

  // Ones tell the image from its padding; they may stand before the pixels do, since no pixel to
  // the right is read. A prompt's row is known as a whole.
  void begin_row(int row, bool known) {
    w_.for_each(s_.batch, [&](int b) {
      for (int column = 0; column < s_.width; ++column)
        put_pixel(p_.image, b, row, column, known ? context_at(b, row, column) : Pixel{});
    });
  }

  Pixel context_at(int b, int row, int column) const {
    Pixel pixel{};
    for (int c = 0; c < p_.image_channels; ++c) {
      const int64_t plane = int64_t{b} * p_.image_channels + c;
      pixel.value[c] = s_.context[(plane * s_.height + row) * s_.width + column];
    }
    return pixel;
  }

  void put_pixel(int cache, int b, int row, int column, const Pixel& pixel) {
    const int words = plan_.words(p_.caches[static_cast<size_t>(cache)]);
    store_pixel(p_, plan_.isa.bf16, pixel, state_.at(cache, row, column) + int64_t{b} * words);
  }

  // image_row counts from the top of the image, canvas_row from that of the prompt.
  void draw_image(int b, int image_row, int canvas_row, int column) {
    const int n_params = p_.caches[static_cast<size_t>(p_.params)].channels;
    const float* params = state_.at(p_.params, canvas_row, column) + int64_t{b} * n_params;
    const uint32_t position = static_cast<uint32_t>(image_row * s_.width + column);
    const Pixel pixel = draw_pixel(p_, params, s_.seed, s_.first_index + static_cast<uint64_t>(b),
                                   position, s_.temperature);
    put_pixel(p_.image, b, canvas_row, column, pixel);
    for (int c = 0; c < p_.image_channels; ++c) {
      const int64_t plane = int64_t{b} * p_.image_channels + c;
      s_.out[(plane * s_.height + image_row) * s_.width + column] = pixel.value[c];
    }
  }

  const Plan& plan_;
  const Program& p_;
  const Slice s_;  // a copy: the caller may prepare the next while another lane still leaves
  State& state_;
  Worker& w_;
};

}  // namespace dsmooth::sampler
