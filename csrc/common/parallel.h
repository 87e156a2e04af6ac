// A range split over threads: the OpenMP threads that PyTorch brought, else std::thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace dsmooth {

// Calls body(first, last) for equal parts of [0, count), one part a thread. `threads` is an upper
// limit. body must not throw.
template <class Body>
void parallel_for(int64_t count, int threads, const Body& body) {
  const int64_t parts = std::clamp<int64_t>(threads, 1, std::max<int64_t>(count, 1));
  const auto run_part = [&](int64_t part) {
    body(count * part / parts, count * (part + 1) / parts);
  };
  if (parts == 1) {
    run_part(0);
    return;
  }
#if defined(_OPENMP)
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) run_part(part);
#else
  std::vector<std::thread> others;
  int64_t given = 1;
  try {
    for (; given < parts; ++given) others.emplace_back(run_part, given);
  } catch (const std::system_error&) {  // there are no more threads
  }
  run_part(0);
  for (int64_t part = given; part < parts; ++part) run_part(part);
  for (std::thread& other : others) other.join();
#endif
}

// Calls body(item, worker) for every item of [0, count), each on the worker that is free first;
// workers are numbered from 0 to before `threads`, and one works on one item at a time.
template <class Body>
void parallel_for_each(int64_t count, int threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t worker) {
    for (int64_t item = next++; item < count; item = next++) body(item, worker);
  };
  const int workers =
      static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(count, 1)));
  parallel_for(workers, workers, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) work(worker);
  });
}

}  // namespace dsmooth
