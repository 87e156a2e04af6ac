// Input bytes as choices, for the fuzz targets. A target is a function
// LLVMFuzzerTestOneInput, linked with libFuzzer where the compiler has it, else with fuzz_main.cpp;
// a seed is a short input that fuzz_seeds() of the target gives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <vector>

namespace dsmooth {

// Reads bytes; behind the last there are zeros.
class Choices {
 public:
  Choices(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  bool done() const { return at_ == end_; }
  uint8_t byte() { return at_ == end_ ? 0 : *at_++; }
  // 0 .. count - 1.
  size_t below(size_t count) { return byte() % count; }
  bool one_in(size_t count) { return below(count) == count - 1; }
  template <class T, size_t N>
  T one_of(const T (&values)[N]) {
    return values[below(N)];
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

// Ends the process where a law does not hold, as the sanitizers do.
inline void must(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s\n", what);
  std::abort();
}

}  // namespace dsmooth

using FuzzInput = std::vector<uint8_t>;
std::vector<FuzzInput> fuzz_seeds();
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
