// The checks of borrowed tensors, and typed views over them. Every error of shape, dtype, device or
// memory is born here.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "borrowed.h"

namespace dsmooth {

[[noreturn]] inline void refuse(const std::string& name, const std::string& expected,
                                const std::string& got) {
  throw std::invalid_argument(name + " must " + expected + ", got " + got);
}

// Throws std::invalid_argument, which names the tensor, unless it is given with this shape (kAny
// where an extent may be anything), type and device, and has memory, aligned to its elements.
inline void check_tensor(const char* name, const Borrowed& t, std::span<const int64_t> shape,
                         ElementType type, Device device = {}) {
  if (!t.given) refuse(name, "be a tensor", "None");
  bool fits = t.n_dims == static_cast<int>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = t.shape[i] >= 0 && (shape[i] == kAny || shape[i] == t.shape[i]);
  }
  if (!fits) {
    const int n_dims = static_cast<int>(shape.size());
    refuse(name, "have shape " + to_string(shape.data(), n_dims), to_string(t.shape, t.n_dims));
  }
  if (!(t.type == type)) refuse(name, "be " + to_string(type), to_string(t.type));
  if (!(t.device == device)) refuse(name, "be on " + to_string(device), to_string(t.device));
  if (is_empty(t)) return;
  if (t.data == nullptr) refuse(name, "have memory", "a tensor without");
  if (reinterpret_cast<uintptr_t>(t.data) % bytes_of(type) != 0) {
    refuse(name, "be aligned to its elements", "a tensor that is not");
  }
}

template <class T>
constexpr ElementType type_of() {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double> ||
                std::is_same_v<T, uint8_t>);
  if (std::is_same_v<T, uint8_t>) return kUint8Type;
  return std::is_same_v<T, float> ? kFloat32Type : kFloat64Type;
}

// Checked view of N dimensions: `data[i * stride[0] + j * stride[1] + ...]`.
template <class T, int N>
struct View {
  T* data = nullptr;
  std::array<int64_t, N> shape{};
  std::array<int64_t, N> stride{};

  View() = default;
  // Throws as check_tensor does.
  View(const char* name, const Borrowed& tensor, const std::array<int64_t, N>& expected,
       Device device = {}) {
    check_tensor(name, tensor, expected, type_of<std::remove_const_t<T>>(), device);
    data = static_cast<T*>(tensor.data);
    std::copy_n(tensor.shape, N, shape.begin());
    std::copy_n(tensor.strides, N, stride.begin());
  }
};

// A view whose elements follow one another.
template <class T, int N>
View<T, N> contiguous_view(const char* name, const Borrowed& tensor,
                           const std::array<int64_t, N>& expected, Device device = {}) {
  const View<T, N> view(name, tensor, expected, device);
  if (!is_contiguous(tensor)) {
    refuse(name, "be contiguous", "strides " + to_string(tensor.strides, N));
  }
  return view;
}

// A checked tensor of a call.
struct Lent {
  const char* name;
  const Borrowed* tensor;
  bool written;
};

// Throws std::invalid_argument unless what is written lies apart: each element in memory of its
// own, and all of them outside the memory from another tensor's first element to its last.
inline void check_apart(std::span<const Lent> tensors) {
  constexpr size_t kMost = 64;
  std::array<MemoryRange, kMost> ranges;
  if (tensors.size() > kMost) throw std::logic_error("too many tensors in a call");
  for (size_t i = 0; i < tensors.size(); ++i) ranges[i] = range_of(*tensors[i].tensor);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].written) continue;
    if (repeats_elements(*tensors[i].tensor)) {
      refuse(tensors[i].name, "have an element's memory for each",
             "strides " + to_string(tensors[i].tensor->strides, tensors[i].tensor->n_dims));
    }
    for (size_t j = 0; j < tensors.size(); ++j) {
      if (j != i && ranges[i].meets(ranges[j])) {
        refuse(tensors[i].name, "have memory of its own",
               std::string("that of ") + tensors[j].name);
      }
    }
  }
}

}  // namespace dsmooth
