// Parallel loops on the threads of the process's OpenMP runtime, else on std::thread; and the cache
// line, which threads do not share.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

// The function that GCC calls for `#pragma omp parallel`; the runtimes of GNU, LLVM and Intel
// export it. Nothing is linked: the loader finds it in the runtime that PyTorch has loaded, so both
// share its threads. Without such a runtime the pointer is null.
#if defined(__linux__)
extern "C" {
[[gnu::weak]] void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags);
[[gnu::weak]] int omp_get_thread_num();
[[gnu::weak]] int omp_get_num_threads();
}
#endif

namespace dsmooth {

struct alignas(64) Line {  // of a cache
  char bytes[64];
};

inline size_t lines_of(size_t bytes) { return (bytes + sizeof(Line) - 1) / sizeof(Line); }

inline bool has_openmp() {
#if defined(__linux__)
  return GOMP_parallel != nullptr && omp_get_thread_num != nullptr &&
         omp_get_num_threads != nullptr;
#else
  return false;
#endif
}

// During its lifetime, operations of its thread treat denormal inputs and results as 0. elu' of a
// large negative number is denormal, so a few percent of a trained network's gradients are. Intel's
// processors compute them so slowly that a training step took 1.65 times as long.
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
  FlushDenormals() {}  // avoids a warning about unused variables
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

// Calls work(share) for each share in [0, shares), each on its own thread, without denormal
// numbers. work must not throw.
template <class Work>
void parallel_for(int64_t shares, const Work& work) {
  auto run_shares = [&](int64_t step, int64_t first) {
    const FlushDenormals flush;
    for (int64_t share = first; share < shares; share += step) work(share);
  };
  if (shares == 1) return run_shares(1, 0);
#if defined(__linux__)
  if (has_openmp()) {
    // The runtime may give fewer threads than shares.
    const auto on_thread = [](void* data) {
      (*static_cast<decltype(run_shares)*>(data))(omp_get_num_threads(), omp_get_thread_num());
    };
    return GOMP_parallel(on_thread, &run_shares, static_cast<unsigned>(shares), 0);
  }
#endif
  std::vector<std::thread> threads;
  int64_t started = 1;
  try {
    for (; started < shares; ++started) threads.emplace_back(run_shares, shares, started);
  } catch (const std::exception&) {  // too few threads or too little memory
  }
  run_shares(shares, 0);
  for (; started < shares; ++started) run_shares(shares, started);
  for (std::thread& thread : threads) thread.join();
}

// Calls body(item, worker) for every item in [0, count), on the first free worker in [0, workers).
// Each worker processes one item at a time.
template <class Body>
void parallel_for_each(int64_t count, int64_t workers, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_for(workers, [&](int64_t worker) {
    for (int64_t item = next++; item < count; item = next++) body(item, worker);
  });
}

}  // namespace dsmooth
