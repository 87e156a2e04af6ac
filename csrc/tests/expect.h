// Reports invariants that do not hold.
#pragma once

#include <cstdio>
#include <exception>
#include <string>

namespace dsmooth {

inline int failures = 0;

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

// Whether f throws, with this message if one is given.
template <class F>
bool throws(F f, const std::string& message = "") {
  try {
    f();
  } catch (const std::exception& error) {
    return message.empty() || error.what() == message;
  }
  return false;
}

// The exit status of a test.
inline int report() {
  std::printf(failures ? "%d failures\n" : "all invariants hold\n", failures);
  return failures != 0;
}

}  // namespace dsmooth
