// The few intrinsics of the CUDA worker, each with an emulation that does the same on the host:
// products of 16 x 16 fragments by a warp, and asynchronous copies into shared memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../common/bfloat16.h"
#include "../common/host_device.h"
#include "elementary.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <mma.h>
#endif

namespace dsmooth::sampler {

constexpr int kFragment = 16;  // rows, columns and k of a fragment
constexpr int kGranule = 16;   // bytes that one copy moves

struct Bf16 {
  bfloat16 bits;
};

DSMOOTH_INLINE float to_float(float x) { return x; }
DSMOOTH_INLINE float to_float(Bf16 x) { return from_bfloat16(x.bits); }
DSMOOTH_INLINE void put(float* p, float x) { *p = x; }
DSMOOTH_INLINE void put(Bf16* p, float x) { p->bits = to_bfloat16(x); }

// 16 x 16 sums in the registers of a warp. Here every lane owns some of them and adds over k in
// ascending order, one rounding per product: the path of float32, and of the host.
template <class T, int kWarpLanes>
class Sums {
 public:
  DSMOOTH_HOST_DEVICE void load(const float* from, int stride, int lane) {
    each(lane, [&](float& x, int row, int column) { x = from[row * stride + column]; });
  }
  DSMOOTH_HOST_DEVICE void store(float* to, int stride, int lane) {
    each(lane, [&](float& x, int row, int column) { to[row * stride + column] = x; });
  }
  // Adds a times b: both 16 x 16, their rows a_stride and b_stride apart.
  DSMOOTH_HOST_DEVICE void add_product(const T* a, int a_stride, const T* b, int b_stride,
                                       int lane) {
    for (int k = 0; k < kFragment; ++k)
      each(lane, [&](float& x, int row, int column) {
        x = fmaf(to_float(a[row * a_stride + k]), to_float(b[k * b_stride + column]), x);
      });
  }

 private:
  static constexpr int kRows = kWarpLanes > kFragment ? 1 : kFragment / kWarpLanes;
  static constexpr int kColumns = kFragment * kFragment / kWarpLanes / kRows;
  static constexpr int kLanesPerRow = kFragment / kColumns;

  template <class F>
  DSMOOTH_HOST_DEVICE void each(int lane, F f) {
    const int row = lane / kLanesPerRow * kRows, column = lane % kLanesPerRow * kColumns;
    DSMOOTH_DEVICE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      DSMOOTH_DEVICE_UNROLL
      for (int j = 0; j < kColumns; ++j) f(x_[i * kColumns + j], row + i, column + j);
    }
  }

  float x_[kRows * kColumns] = {};
};

#if defined(__CUDACC__)
__device__ inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// On tensor cores. All pointers are aligned to 32 bytes and strides to 16 (tile_layout.h).
template <>
class Sums<Bf16, 32> {
 public:
  __device__ void load(const float* from, int stride, int) {
    nvcuda::wmma::load_matrix_sync(sums_, from, static_cast<unsigned>(stride),
                                   nvcuda::wmma::mem_row_major);
  }
  __device__ void store(float* to, int stride, int) {
    nvcuda::wmma::store_matrix_sync(to, sums_, static_cast<unsigned>(stride),
                                    nvcuda::wmma::mem_row_major);
  }
  // nvcc takes the pointers of wmma::load_matrix_sync for generic ones in bfloat16, though not in
  // float; these are its instructions for shared memory. They stay between the barriers, as
  // volatile ones do; that they read what only copy_async writes, the compiler need not know.
  __device__ void add_product(const Bf16* a, int a_stride, const Bf16* b, int b_stride, int) {
    namespace wmma = nvcuda::wmma;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> left;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::row_major> right;
    static_assert(sizeof left == 4 * sizeof(unsigned) && sizeof right == sizeof left);
    unsigned* l = reinterpret_cast<unsigned*>(&left);
    unsigned* r = reinterpret_cast<unsigned*>(&right);
    asm volatile("wmma.load.a.sync.aligned.row.m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(l[0]), "=r"(l[1]), "=r"(l[2]), "=r"(l[3])
                 : "r"(shared_address(a)), "r"(a_stride));
    asm volatile("wmma.load.b.sync.aligned.row.m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(b)), "r"(b_stride));
    wmma::mma_sync(sums_, left, right, sums_);
  }

 private:
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sums_;
};
#endif

// Copies a granule into shared memory, or writes zeros if not `there`. The bytes are there for the
// lane itself after a wait, for others after a sync behind it.
DSMOOTH_INLINE void copy_async(void* shared, const void* from, bool there) {
#if defined(__CUDA_ARCH__)
  const int bytes = there ? kGranule : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(from), "r"(bytes)
               : "memory");
#else
  if (there)
    memcpy(shared, from, kGranule);
  else
    memset(shared, 0, kGranule);
#endif
}

// Ends a group of copies.
DSMOOTH_INLINE void commit_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kPending of this lane's groups are on their way.
template <int kPending>
DSMOOTH_INLINE void wait_for_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace dsmooth::sampler
