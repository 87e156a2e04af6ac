// What follows the sums of a product: the gate, the residual, concat_elu, and where they go.
#pragma once

#include <cmath>
#include <cstddef>

#include "block_memory.cuh"
#include "elementary.h"

namespace dsmooth::sampler {

// How a lane writes a pair of values: into global memory, or into shared memory.
struct ToGlobal {
  template <class T>
  DSMOOTH_HOST_DEVICE static void pair(T* to, Pair v) {
    store_pair(to, v);
  }
  template <class T>
  DSMOOTH_HOST_DEVICE static void one(T* to, float v) {
    store_one(to, v);
  }
};
struct ToShared {
  template <class T>
  DSMOOTH_HOST_DEVICE static void pair(T* to, Pair v) {
    put_pair(to, v);
  }
  template <class T>
  DSMOOTH_HOST_DEVICE static void one(T* to, float v) {
    put(to, v);
  }
};

// Where an operation's results go at one column: image 0, and bytes from one image to the next.
struct Results {
  unsigned char *residual_in, *add, *residual_out, *act_out, *raw_out;  // null: nowhere
  uint32_t residual_stride, add_stride, out_stride, act_stride, raw_stride;

  template <class Block>
  DSMOOTH_HOST_DEVICE static Results of(const BlockMemory<Block>& memory, const CudaOp& op,
                                        int column) {
    const auto at = [&](int cache, uint32_t& stride) -> unsigned char* {
      if (cache == kNone) return nullptr;
      stride = memory.rows()[cache * kRowsInReach - kRowAbove].stride * kGranule;
      return memory.at_column(cache, column);
    };
    Results r{};
    r.residual_in = at(op.residual_in, r.residual_stride);
    r.add = at(op.add, r.add_stride);
    r.residual_out = at(op.residual_out, r.out_stride);
    r.act_out = at(op.act_out, r.act_stride);
    r.raw_out = at(op.raw_out, r.raw_stride);
    return r;
  }

  // A gate gives one channel.
  template <bool kGate>
  DSMOOTH_HOST_DEVICE Pair with_add(Pair v, int m, int channel) const {
    const float* from = at(add, add_stride, m, channel);
    if (kGate) return {v.x + load_one(from), 0.0f};
    const Pair added = load_pair(from);
    return {v.x + added.x, v.y + added.y};
  }

  DSMOOTH_HOST_DEVICE static float* at(unsigned char* p, uint32_t stride, int m, int channel) {
    return reinterpret_cast<float*>(p + static_cast<uint32_t>(m) * stride) + channel;
  }
};

// What a pair of sums gives: two channels, of which the second may lie beyond the last one; in a
// gate one channel, in .x alone.
template <class T, bool kGate>
class Finish {
 public:
  // column: of the first sum.
  DSMOOTH_HOST_DEVICE Finish(const CudaOp& op, int column)
      : channels_(op.channels), split_(op.split), channel_(kGate ? column / 2 : column) {}

  DSMOOTH_HOST_DEVICE bool there() const { return channel_ < channels_; }
  DSMOOTH_HOST_DEVICE int channel() const { return channel_; }

  // residual: of a gate.
  DSMOOTH_HOST_DEVICE static Pair value(Pair sums, float residual) {
    if (kGate) return {fmaf(sums.x, scalar::sigmoid(sums.y), residual), 0.0f};
    return sums;
  }

  // to: channel 0 of an image.
  template <class To, class U>
  DSMOOTH_HOST_DEVICE void raw(U* to, Pair v) const {
    write<To>(to + channel_, v);
  }

  // One of elu(x) and elu(-x) is |x|, the other e^-|x| - 1.
  DSMOOTH_HOST_DEVICE static void elus(Pair v, Pair& positive, Pair& negative) {
    const auto elu = [](float x, float& up, float& down) {
      const float small = scalar::expm1_negative(-fabsf(x));
      up = x > 0 ? x : small;
      down = x > 0 ? small : 0.0f - x;
    };
    elu(v.x, positive.x, negative.x);
    if (!kGate) elu(v.y, positive.y, negative.y);
  }
  // Both of them; or elu(x) alone, in kSplitParts operands whose sum it is.
  template <class To>
  DSMOOTH_HOST_DEVICE void act(T* to, Pair positive, Pair negative) const {
    if (!split_) {
      write<To>(to + channel_, positive);
      write<To>(to + channels_ + channel_, negative);
      return;
    }
    Pair rest = positive;
    DSMOOTH_DEVICE_ROLL
    for (int part = 0; part < kSplitParts; ++part, to += channels_) {
      write<To>(to + channel_, rest);
      rest.x -= rounded(rest.x);
      if (!kGate) rest.y -= rounded(rest.y);
    }
  }

 private:
  DSMOOTH_HOST_DEVICE static float rounded(float x) {
    T value;
    put(&value, x);
    return to_float(value);
  }
  // Pairs are aligned only where the number of channels is even.
  template <class To, class U>
  DSMOOTH_HOST_DEVICE void write(U* to, Pair v) const {
    if (!kGate && channels_ % 2 == 0) return To::pair(to, v);
    To::one(to, v.x);
    if (!kGate && channel_ + 1 < channels_) To::one(to + 1, v.y);
  }

  const int channels_;
  const bool split_;
  const int channel_;
};

}  // namespace dsmooth::sampler
