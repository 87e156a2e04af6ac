// The epilogue of a product: the gate, the residual, concat_elu, and the stores.
#pragma once

#include <cmath>

#include "../elementary.h"
#include "block_memory.cuh"

namespace dsmooth::sampler {

// A column of a cache: where image 0 begins, and bytes from one image to the next.
struct Column {
  unsigned char* begin;
  uint32_t stride;  // 0: no destination

  DSMOOTH_HOST_DEVICE bool there() const { return stride != 0; }
  DSMOOTH_HOST_DEVICE unsigned char* at(int m) const {
    return begin + uint64_t{static_cast<uint32_t>(m)} * stride;
  }
};

// The summand of an operation at one column, and its results.
struct Columns {
  Column added, residual_out, act_out, raw_out;

  // find(cache): the address of the column.
  template <class Block, class F>
  DSMOOTH_HOST_DEVICE static Columns of(const BlockMemory<Block>& memory, const CudaOp& op,
                                        F find) {
    const auto column = [&](int cache) {
      const RowAddress found = find(cache);
      return Column{memory.granule(found.offset), found.stride * kGranule};
    };
    return {column(op.added), column(op.residual_out), column(op.act_out), column(op.raw_out)};
  }
};

// Moves the two sums one by one: a product's registers do not hold them as pairs, so the compiler
// would copy moved pairs at every step.
DSMOOTH_INLINE void load_sums(Pair& to, const float* from, bool there) {
  load_one(to.x, from, there);
  load_one(to.y, from + 1, there);
}
template <class Space>
DSMOOTH_INLINE void store_sums(float* to, Pair sums, bool there) {
  Space::store(to, bits_of(to, sums.x), there);
  Space::store(to + 1, bits_of(to, sums.y), there);
}

// The summands of the pair of sums at `column`; zeros if there are none.
DSMOOTH_INLINE Pair load_added(const CudaOp& op, const Column& from, int m, int column,
                               bool there) {
  Pair added{};
  const int channel = op.gate ? column / 2 : column;
  there = there && from.there() && channel < op.channels;
  const float* at = reinterpret_cast<const float*>(from.at(m)) + channel;
  load_one(added.x, at, there);
  load_one(added.y, at + 1, there && !op.gate);
  return added;
}

// elu and sigmoid of an epilogue, as on the CPU.
template <class T>
struct Curves : Scalar {};

// With the device's exponential, whose relative error is 2^-22. The rounding of a sum of products
// of bfloat16 is as large.
struct ShortCurves {
  DSMOOTH_INLINE static float expm1_negative(float x) { return exponential(x) - 1.0f; }
  DSMOOTH_INLINE static float sigmoid(float x) { return reciprocal(1.0f + exponential(-x)); }

 private:
  DSMOOTH_INLINE static float exponential(float x) {
    x *= 0x1.715476p+0f;
#if defined(__CUDA_ARCH__)
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
#else
    return static_cast<float>(std::exp2(static_cast<double>(x)));
#endif
  }
  DSMOOTH_INLINE static float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
    asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
#else
    return static_cast<float>(1.0 / static_cast<double>(x));
#endif
  }
};
#if defined(__CUDACC__)
template <>
struct Curves<Bf16> : ShortCurves {};
#endif

// Results of a pair of sums: one channel of a gate, only in .x, or two channels, the second zero if
// it is beyond the last one. kOdd: the number of channels is odd, so elu(-v) does not begin at a
// pair.
enum class Results { kGate, kPairs, kOdd };

template <class T, Results kResults>
class Finish {
 public:
  // column: of the first sum; there: whether the image exists.
  DSMOOTH_HOST_DEVICE Finish(const CudaOp& op, int column, bool there)
      : channels_(op.channels),
        channel_(kGate ? column / 2 : column),
        there_(there && channel_ < channels_) {}

  DSMOOTH_HOST_DEVICE static Pair value(Pair sums, Pair added) {
    if (kGate) return {fmaf(sums.x, Curves<T>::sigmoid(sums.y), added.x), 0.0f};
    return {sums.x + added.x, sums.y + added.y};
  }

  // image: channel 0 of an image. An image is padded to whole pairs.
  template <class Space, class U>
  DSMOOTH_HOST_DEVICE void raw(U* image, Pair v, bool wanted) const {
    if (kGate)
      Space::store(image + channel_, bits_of(image, v.x), there_ && wanted);
    else
      Space::store(image + channel_, bits_of(image, v), there_ && wanted);
  }

  // elu(v) and elu(-v).
  template <class Space>
  DSMOOTH_HOST_DEVICE void act(T* image, Pair positive, Pair negative, bool wanted) const {
    activation<Space>(image + channel_, positive, there_ && wanted);
    activation<Space>(image + channels_ + channel_, negative, there_ && wanted);
  }
  // Only elu(v), in kAddends operands.
  template <class Space>
  DSMOOTH_HOST_DEVICE void split(T* image, Pair positive, bool wanted) const {
    DSMOOTH_DEVICE_UNROLL
    for (int addend = 0; addend < kAddends; ++addend, image += channels_) {
      activation<Space>(image + channel_, positive, there_ && wanted);
      positive.x -= rounded(positive.x);
      if (!kGate) positive.y -= rounded(positive.y);
    }
  }

  // One of elu(x) and elu(-x) is |x|, the other e^-|x| - 1.
  template <class C>
  DSMOOTH_HOST_DEVICE static void elus(Pair v, Pair& positive, Pair& negative) {
    const auto elu = [](float x, float& up, float& down) {
      const float small = C::expm1_negative(-fabsf(x));
      up = x > 0 ? x : small;
      down = x > 0 ? small : 0.0f - x;
    };
    elu(v.x, positive.x, negative.x);
    if (!kGate) elu(v.y, positive.y, negative.y);
  }

 private:
  static constexpr bool kGate = kResults == Results::kGate;

  DSMOOTH_HOST_DEVICE static float rounded(float x) {
    T value;
    put(&value, x);
    return to_float(value);
  }
  template <class Space>
  DSMOOTH_HOST_DEVICE void activation(T* to, Pair v, bool there) const {
    if (kResults == Results::kPairs) return Space::store(to, bits_of(to, v), there);
    Space::store(to, bits_of(to, v.x), there);
    if (!kGate) Space::store(to + 1, bits_of(to, v.y), there && channel_ + 1 < channels_);
  }

  const int channels_, channel_;
  const bool there_;
};

}  // namespace dsmooth::sampler
