// The intrinsics of the CUDA worker: fragments in the registers of a warp, their product, and loads
// and stores for a given memory space. Each has an equivalent emulation on the host.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../../common/bfloat16.h"
#include "../../common/host_device.h"
#include "../elementary.h"

namespace dsmooth::sampler {

struct Bf16 {
  bfloat16 bits;
};

DSMOOTH_INLINE float to_float(float x) { return x; }
DSMOOTH_INLINE float to_float(Bf16 x) { return from_bfloat16(x.bits); }
DSMOOTH_INLINE void put(float* p, float x) { *p = x; }
DSMOOTH_INLINE void put(Bf16* p, float x) { p->bits = to_bfloat16(x); }

constexpr int kGranule = 16;  // bytes that one load of a lane moves
struct alignas(kGranule) Granule {
  uint32_t word[4];
};
// Two neighbouring columns.
struct alignas(8) Pair {
  float x, y;
};

// A product is formed in fragments of 16 columns by 8 rows. The weights are the left operand, the
// larger side of mma.sync m16n8k16. A step is 4 granules of k: 32 operands in bfloat16, 16 in
// float32. Lane 4r + q of 32 loads granule q of row r and two granules of weights, and holds the
// sums of columns 2r and 2r + 1 in rows 2q and 2q + 1. mma.sync expects other operands in a lane.
// But a sum may run over k in any order that rows and columns share, and in this order the operands
// of a lane are contiguous in memory.
constexpr int kRows = 8, kColumns = 16;  // of a fragment
constexpr int kStepGranules = 4;
constexpr int kWeightGranules = 2 * 32;  // of a fragment and step

// Bytes from the weights of a fragment and step to operand k of a column.
template <class T>
DSMOOTH_INLINE int weight_offset(int column, int k) {
  constexpr int kPerGranule = kGranule / static_cast<int>(sizeof(T));
  const int lane = column / 2 * 4 + k / kPerGranule, i = k % kPerGranule, odd = column % 2;
  if (sizeof(T) == sizeof(float)) return (odd * 32 + lane) * kGranule + i * 4;
  // The first mma.sync of a step uses the first half of each granule; a register of its left side
  // holds two operands of one column.
  return (i / 4 * 32 + lane) * kGranule + (i % 4 / 2 * 2 + odd) * 4 + i % 2 * 2;
}

// Operands and sums of a lane of a warp of kLanes. On the host a lane owns some of the sums, and
// loads all rows and weights of a step for them.
template <class T, int kLanes>
struct Warp {
  static constexpr int kLoadedRows = kRows, kLoadedGranules = kStepGranules;  // of each row
  static constexpr int kLoadedWeights = kWeightGranules;
  static constexpr int kSlots = kRows * kColumns / 2 / kLanes;  // pairs of sums
  static constexpr bool kTwoSums = false;
  static constexpr int kRounds = 1;

  static int row(int, int i) { return i; }
  static int granule(int, int i) { return i; }
  static int weight(int, int i) { return i; }
  static int slot_row(int lane, int slot) {
    const int i = lane + slot * kLanes;
    return i % 4 * 2 + i / 32;
  }
  static int slot_column(int lane, int slot) { return (lane + slot * kLanes) % 32 / 4 * 2; }

  // Adds weights times rows. A lane may have two sums for each output, `even` and `odd`, to be
  // added. The caller runs the kRounds of a product in order, in a loop: unrolled, the rounds of
  // float32 are thousands of instructions, which take most of the compile time.
  static void multiply(const Granule* weights, const Granule* rows, Pair* even, Pair*, int lane,
                       int /*round*/) {
    constexpr int kDepth = kStepGranules * kGranule / static_cast<int>(sizeof(T));
    for (int slot = 0; slot < kSlots; ++slot) {
      const Granule* row = rows + slot_row(lane, slot) * kStepGranules;
      const int column = slot_column(lane, slot);
      for (int k = 0; k < kDepth; ++k) {
        const float x = at(row, k * static_cast<int>(sizeof(T)));
        even[slot].x = fmaf(at(weights, weight_offset<T>(column, k)), x, even[slot].x);
        even[slot].y = fmaf(at(weights, weight_offset<T>(column + 1, k)), x, even[slot].y);
      }
    }
  }

 private:
  static float at(const Granule* granules, int byte) {
    T value;
    memcpy(&value, reinterpret_cast<const char*>(granules) + byte, sizeof value);
    return to_float(value);
  }
};

#if defined(__CUDACC__)
// The lanes of a real warp.
struct WarpLanes {
  static constexpr int kLoadedRows = 1, kLoadedGranules = 1, kLoadedWeights = 2, kSlots = 2;
  __device__ static int row(int lane, int) { return lane / 4; }
  __device__ static int granule(int lane, int) { return lane % 4; }
  __device__ static int weight(int lane, int i) { return i * 32 + lane; }
  __device__ static int slot_row(int lane, int slot) { return lane % 4 * 2 + slot; }
  __device__ static int slot_column(int lane, int) { return lane / 4 * 2; }
};

template <>
struct Warp<Bf16, 32> : WarpLanes {
  static constexpr bool kTwoSums = true;  // half as long a chain of products
  static constexpr int kRounds = 1;

  __device__ static void multiply(const Granule* weights, const Granule* row, Pair* even, Pair* odd,
                                  int, int /*round*/) {
    add_product(weights[0], row->word[0], row->word[1], even);
    add_product(weights[1], row->word[2], row->word[3], odd);
  }

 private:
  __device__ static void add_product(const Granule& a, uint32_t b0, uint32_t b1, Pair* sums) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0].x), "+f"(sums[1].x), "+f"(sums[0].y), "+f"(sums[1].y)
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));
  }
};

// In float32 the lanes exchange their operands, and add in the order of k, with one rounding each.
template <>
struct Warp<float, 32> : WarpLanes {
  static constexpr bool kTwoSums = false;
  static constexpr int kRounds = kStepGranules;

  __device__ static void multiply(const Granule* weights, const Granule* row, Pair* even, Pair*,
                                  int lane, int round) {
    DSMOOTH_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float x = of(weights[0].word[i], lane / 4 * 4 + round);
      const float y = of(weights[1].word[i], lane / 4 * 4 + round);
      DSMOOTH_DEVICE_UNROLL
      for (int slot = 0; slot < kSlots; ++slot) {
        const float value = of(row->word[i], slot_row(lane, slot) * 4 + round);
        even[slot].x = fmaf(x, value, even[slot].x);
        even[slot].y = fmaf(y, value, even[slot].y);
      }
    }
  }

 private:
  __device__ static float of(uint32_t word, int lane) {
    return __uint_as_float(__shfl_sync(0xffffffffu, word, lane));
  }
};
#endif

// Tells the compiler that x is the same in all lanes of a warp.
DSMOOTH_INLINE int same_in_warp(int x) {
#if defined(__CUDA_ARCH__)
  return __shfl_sync(0xffffffffu, x, 0);
#else
  return x;
#endif
}

// Asserts on the host the alignment that a load or store of the device needs.
template <class To>
DSMOOTH_INLINE void check_aligned([[maybe_unused]] const void* p) {
#if !defined(__CUDA_ARCH__)
  assert(reinterpret_cast<uintptr_t>(p) % sizeof(To) == 0);
#endif
}

// Loads and stores that clobber memory are not moved across a barrier; on the host they load when
// called. They do nothing unless `there`, by a predicate: a branch costs more than it saves.
#if defined(__CUDA_ARCH__)
#define DSMOOTH_IF_THERE(argument, code) \
  "{ .reg .pred %%there; setp.ne.b32 %%there, %" #argument ", 0; @%%there " code "; }"
// Loads a granule at an address `from` of the instruction's memory.
#define DSMOOTH_LOAD(instruction, to, address, from, there, ...)                        \
  asm volatile(DSMOOTH_IF_THERE(5, instruction ".v4.b32 {%0, %1, %2, %3}, [%4]")        \
               : "+r"(to.word[0]), "+r"(to.word[1]), "+r"(to.word[2]), "+r"(to.word[3]) \
               : address(from), "r"(int{there})__VA_ARGS__)
#endif

DSMOOTH_INLINE void load_global(Granule& to, const void* from, bool there) {
#if defined(__CUDA_ARCH__)
  DSMOOTH_LOAD("ld.global", to, "l", from, there, : "memory");
#else
  if (!there) return;
  check_aligned<Granule>(from);
  memcpy(&to, from, sizeof to);
#endif
}

// Loads memory that no kernel writes; L1 evicts it before the activations.
DSMOOTH_INLINE void load_weights(Granule& to, const Granule* from, bool there) {
#if defined(__CUDA_ARCH__)
  DSMOOTH_LOAD("ld.global.nc.L1::evict_first", to, "l", from, there);
#else
  load_global(to, from, there);
#endif
}

DSMOOTH_INLINE void load_shared(Granule& to, const unsigned char* from, bool there) {
#if defined(__CUDA_ARCH__)
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(from));
  DSMOOTH_LOAD("ld.shared", to, "r", at, there, : "memory");
#else
  load_global(to, from, there);
#endif
}

DSMOOTH_INLINE void load_one(float& to, const float* from, bool there) {
#if defined(__CUDA_ARCH__)
  asm volatile(DSMOOTH_IF_THERE(2, "ld.global.f32 %0, [%1]")
               : "+f"(to)
               : "l"(from), "r"(int{there})
               : "memory");
#else
  if (there) to = *from;
#endif
}

// The stored bits of a value or of two neighbours.
DSMOOTH_INLINE uint32_t bits_of(const float*, float v) { return __builtin_bit_cast(uint32_t, v); }
DSMOOTH_INLINE uint64_t bits_of(const float*, Pair v) { return __builtin_bit_cast(uint64_t, v); }
DSMOOTH_INLINE uint16_t bits_of(const Bf16*, float v) { return to_bfloat16(v); }
DSMOOTH_INLINE uint32_t bits_of(const Bf16*, Pair v) {
  uint32_t word;
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(v.y), "f"(v.x));
#else
  word = uint32_t{to_bfloat16(v.x)} | uint32_t{to_bfloat16(v.y)} << 16;
#endif
  return word;
}

#if defined(__CUDA_ARCH__)
// Stores `bits`, of 8, 4 or 2 bytes, at an address `to` of this memory.
#define DSMOOTH_STORE(memory, address, to, bits, there)                                     \
  if constexpr (sizeof(bits) == 8)                                                          \
    asm volatile(DSMOOTH_IF_THERE(2, "st." memory ".b64 [%0], %1")::address(to), "l"(bits), \
                 "r"(int{there})                                                            \
                 : "memory");                                                               \
  else if constexpr (sizeof(bits) == 4)                                                     \
    asm volatile(DSMOOTH_IF_THERE(2, "st." memory ".b32 [%0], %1")::address(to), "r"(bits), \
                 "r"(int{there})                                                            \
                 : "memory");                                                               \
  else                                                                                      \
    asm volatile(DSMOOTH_IF_THERE(2, "st." memory ".b16 [%0], %1")::address(to), "h"(bits), \
                 "r"(int{there})                                                            \
                 : "memory")
#endif

// Memory spaces of a lane's stores.
struct Global {
  template <class Bits>
  DSMOOTH_INLINE static void store(void* to, Bits bits, bool there) {
#if defined(__CUDA_ARCH__)
    DSMOOTH_STORE("global", "l", to, bits, there);
#else
    if (!there) return;
    check_aligned<Bits>(to);
    memcpy(to, &bits, sizeof bits);
#endif
  }
};
struct Shared {
  template <class Bits>
  DSMOOTH_INLINE static void store(void* to, Bits bits, bool there) {
#if defined(__CUDA_ARCH__)
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    DSMOOTH_STORE("shared", "r", at, bits, there);
#else
    Global::store(to, bits, there);
#endif
  }
};

}  // namespace dsmooth::sampler
