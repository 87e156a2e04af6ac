// Denormal numbers of a thread.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#endif

namespace dsmooth {

// While one lives, operations of its thread take denormal numbers for 0 and give 0 instead of them.
// elu' of a deep negative is one, so a trained network's gradients have some percent of them.
// Intel's processors are so slow at them that a training step took 1.65 times as long.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // FTZ and DAZ
  ~FlushDenormals() { _mm_setcsr(before_); }
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    write(before_ | uint64_t{1} << 24);  // FZ
  }
  ~FlushDenormals() { write(before_); }
#else
  FlushDenormals() {}  // so that a variable of it is used
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__SSE2__)
  unsigned before_;
#elif defined(__aarch64__)
  static void write(uint64_t fpcr) { asm volatile("msr fpcr, %0" : : "r"(fpcr)); }
  uint64_t before_;
#endif
};

}  // namespace dsmooth
