// Operands whose emulation on the host computes as the device does: in the order of mma.sync, and
// with its exponential. That of Bf16 computes as the CPU, to the bit.
#pragma once

#include "../../../csrc/sampler/cuda/finish.cuh"

namespace dsmooth::sampler {

struct DeviceBf16 : Bf16 {};

template <>
struct Curves<DeviceBf16> : ShortCurves {};

template <int kLanes>
struct Warp<DeviceBf16, kLanes> : Warp<Bf16, kLanes> {
  using Emulated = Warp<Bf16, kLanes>;
  static constexpr bool kTwoSums = true;

  static void multiply(const Granule* weights, const Granule* rows, Pair* even, Pair* odd, int lane,
                       int /*part*/) {
    for (int slot = 0; slot < Emulated::kSlots; ++slot) {
      const Granule* row = rows + Emulated::slot_row(lane, slot) * kStepGranules;
      const int column = Emulated::slot_column(lane, slot);
      for (int half = 0; half < 2; ++half) {
        Pair& sums = (half == 0 ? even : odd)[slot];
        add_products(sums.x, weights, column, row, half);
        add_products(sums.y, weights, column + 1, row, half);
      }
    }
  }

 private:
  // A product of the first or second halves of all granules: its sum is rounded once.
  static void add_products(float& sum, const Granule* weights, int column, const Granule* row,
                           int half) {
    double exact = sum;
    for (int i = 0; i < 16; ++i) {
      const int k = i / 4 * 8 + half * 4 + i % 4;
      exact += at(weights, weight_offset<Bf16>(column, k)) * at(row, 2 * k);
    }
    sum = static_cast<float>(exact);
  }
  static double at(const Granule* granules, int byte) {
    Bf16 value;
    memcpy(&value, reinterpret_cast<const char*>(granules) + byte, sizeof value);
    return to_float(value);
  }
};

}  // namespace dsmooth::sampler
