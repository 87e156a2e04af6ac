// Descriptions of borrowed tensors for the duration of a call, and their checks. All errors of
// shape, dtype, device and memory are raised here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace dsmooth {

// The type of an element, as in DLPack.
struct ElementType {
  enum Code : uint8_t { kInt = 0, kUnsigned = 1, kFloat = 2, kBFloat = 4, kComplex = 5, kBool = 6 };
  uint8_t code = kFloat;
  uint8_t bits = 32;
  uint16_t lanes = 1;

  bool operator==(const ElementType&) const = default;
};

inline constexpr ElementType kFloat32Type{ElementType::kFloat, 32};
inline constexpr ElementType kFloat64Type{ElementType::kFloat, 64};
inline constexpr ElementType kBFloat16Type{ElementType::kBFloat, 16};
inline constexpr ElementType kInt64Type{ElementType::kInt, 64};

// A DLPack device: its type, 1 for the CPU and 2 for CUDA, and its index.
struct Device {
  static constexpr int32_t kCpu = 1, kCuda = 2;
  int32_t type = kCpu;
  int32_t index = 0;

  bool operator==(const Device&) const = default;
};

struct Borrowed {
  const char* name = "";  // for errors
  bool given = false;     // else the tensor is absent
  void* data = nullptr;
  ElementType type;
  Device device;
  int n_dims = 0;
  const int64_t* shape = nullptr;
  const int64_t* strides = nullptr;  // in elements
};

inline std::string to_string(ElementType type) {
  constexpr const char* kNames[] = {"int", "uint", "float", nullptr, "bfloat", "complex", "bool"};
  if (type.code > ElementType::kBool || kNames[type.code] == nullptr)
    return "an element of DLPack type " + std::to_string(type.code);
  return kNames[type.code] + (type.code == ElementType::kBool ? "" : std::to_string(type.bits));
}

inline std::string to_string(Device device) {
  if (device.type == Device::kCpu) return "cpu";
  return (device.type == Device::kCuda
              ? "cuda:"
              : "DLPack device type " + std::to_string(device.type) + ":") +
         std::to_string(device.index);
}

// An extent of any size.
inline constexpr int64_t kAny = std::numeric_limits<int64_t>::min();

// Formatted like a Python tuple, with * for kAny.
inline std::string to_string(const int64_t* extents, int count) {
  std::string text = "(";
  for (int i = 0; i < count; ++i)
    text += (i == 0 ? "" : ", ") + (extents[i] == kAny ? "*" : std::to_string(extents[i]));
  return text + (count == 1 ? ",)" : ")");
}

inline size_t bytes_of(ElementType type) {
  return std::max<size_t>(size_t{type.bits} * type.lanes / 8, 1);
}

inline bool is_empty(const Borrowed& tensor) {
  for (int i = 0; i < tensor.n_dims; ++i)
    if (tensor.shape[i] == 0) return true;
  return false;
}

// Whether the elements are dense; `order` lists the dimensions from the fastest.
inline bool is_dense(const Borrowed& tensor, const int* order) {
  if (is_empty(tensor)) return true;
  int64_t stride = 1;
  for (int i = 0; i < tensor.n_dims; ++i) {
    const int dim = order[i];
    if (tensor.shape[dim] != 1 && tensor.strides[dim] != stride) return false;
    stride *= tensor.shape[dim];
  }
  return true;
}

// Whether the last dimension is fastest; for at most 4 dimensions.
inline bool is_contiguous(const Borrowed& tensor) {
  constexpr int kOrder[] = {3, 2, 1, 0};
  return tensor.n_dims <= 4 && is_dense(tensor, kOrder + 4 - tensor.n_dims);
}

// A (B, C, H, W) tensor in (B, H, W, C) order.
inline bool is_channels_last(const Borrowed& tensor) {
  constexpr int kOrder[] = {1, 3, 2, 0};
  return tensor.n_dims == 4 && is_dense(tensor, kOrder);
}

// Addresses of the first element and past the last; both null if the tensor is absent or empty.
// Strides are not negative: torch has no negative strides.
inline std::pair<uintptr_t, uintptr_t> range_of(const Borrowed& tensor) {
  if (!tensor.given || is_empty(tensor)) return {};
  uintptr_t last = 0;
  for (int i = 0; i < tensor.n_dims; ++i)
    last += static_cast<uintptr_t>((tensor.shape[i] - 1) * tensor.strides[i]);
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data);
  return {begin, begin + (last + 1) * bytes_of(tensor.type)};
}

// Whether elements may overlap, as in an expanded tensor: whether the stride of a dimension is
// within the range that the dimensions with smaller strides cover.
inline bool repeats_elements(const Borrowed& tensor) {
  if (!tensor.given || is_empty(tensor)) return false;
  const int64_t *shape = tensor.shape, *strides = tensor.strides;
  for (int i = 0; i < tensor.n_dims; ++i) {
    if (shape[i] == 1) continue;
    int64_t reach = 0;
    for (int j = 0; j < tensor.n_dims; ++j) {
      const bool smaller = strides[j] < strides[i] || (strides[j] == strides[i] && j < i);
      if (smaller) reach += (shape[j] - 1) * strides[j];
    }
    if (strides[i] <= reach) return true;
  }
  return false;
}

[[noreturn]] inline void refuse(const std::string& name, const std::string& expected,
                                const std::string& got) {
  throw std::invalid_argument(name + " must " + expected + ", got " + got);
}

// Throws std::invalid_argument, naming the tensor, unless it is given with this shape (kAny: any
// extent), type and device, and its memory is aligned to its elements.
inline void check_tensor(const Borrowed& t, const std::vector<int64_t>& shape, ElementType type,
                         Device device = {}) {
  if (!t.given) refuse(t.name, "be a tensor", "None");
  bool fits = t.n_dims == static_cast<int>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i)
    fits = t.shape[i] >= 0 && (shape[i] == kAny || shape[i] == t.shape[i]);
  if (!fits) {
    refuse(t.name, "have shape " + to_string(shape.data(), static_cast<int>(shape.size())),
           to_string(t.shape, t.n_dims));
  }
  if (!(t.type == type)) refuse(t.name, "be " + to_string(type), to_string(t.type));
  if (!(t.device == device)) refuse(t.name, "be on " + to_string(device), to_string(t.device));
  if (is_empty(t)) return;
  if (t.data == nullptr) refuse(t.name, "have memory", "a tensor without memory");
  if (reinterpret_cast<uintptr_t>(t.data) % bytes_of(type) != 0)
    refuse(t.name, "be aligned to its elements", "an unaligned tensor");
}

template <class T>
inline constexpr ElementType kTypeOf{std::is_same_v<T, uint8_t>   ? ElementType::kUnsigned
                                     : std::is_same_v<T, int64_t> ? ElementType::kInt
                                                                  : ElementType::kFloat,
                                     8 * sizeof(T)};

// The memory of a contiguous tensor that passes check_tensor.
template <class T>
T* contiguous(const Borrowed& tensor, std::initializer_list<int64_t> shape, Device device = {}) {
  check_tensor(tensor, shape, kTypeOf<T>, device);
  if (!is_contiguous(tensor))
    refuse(tensor.name, "be contiguous", "strides " + to_string(tensor.strides, tensor.n_dims));
  return static_cast<T*>(tensor.data);
}

// Throws std::invalid_argument if elements of a written tensor overlap, or if it overlaps the range
// from the first to the last element of another tensor.
inline void check_apart(const std::vector<const Borrowed*>& written,
                        const std::vector<const Borrowed*>& read) {
  for (const Borrowed* tensor : written) {
    if (repeats_elements(*tensor)) {
      refuse(tensor->name, "have no overlapping elements",
             "strides " + to_string(tensor->strides, tensor->n_dims));
    }
    const auto [begin, end] = range_of(*tensor);
    for (const auto* tensors : {&written, &read}) {
      for (const Borrowed* other : *tensors) {
        const auto [other_begin, other_end] = range_of(*other);
        if (other != tensor && begin < other_end && other_begin < end)
          refuse(tensor->name, "have memory of its own", std::string("that of ") + other->name);
      }
    }
  }
}

// Throws std::invalid_argument unless the number of threads is valid.
inline void check_threads(int threads) {
  constexpr int kMostThreads = 1 << 12;
  if (threads >= 1 && threads <= kMostThreads) return;
  refuse("threads", "lie in 1 .. " + std::to_string(kMostThreads), std::to_string(threads));
}

}  // namespace dsmooth
