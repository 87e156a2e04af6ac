// Work split over threads: the OpenMP threads that PyTorch brought, else std::thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace dsmooth {

// Calls body(part) for each of [0, parts), on a thread each. body must not throw.
template <class Body>
void parallel_for(int64_t parts, const Body& body) {
  if (parts == 1) return body(0);
#if defined(_OPENMP)
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) body(part);
#else
  std::vector<std::thread> others;
  int64_t given = 1;
  try {
    for (; given < parts; ++given) others.emplace_back(body, given);
  } catch (const std::system_error&) {  // there are no more threads
  }
  body(0);
  for (int64_t part = given; part < parts; ++part) body(part);
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
  parallel_for(std::clamp<int64_t>(threads, 1, std::max<int64_t>(count, 1)), work);
}

}  // namespace dsmooth
