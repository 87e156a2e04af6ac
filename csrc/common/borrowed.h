// Memory that someone else owns, described for the time of a call.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

namespace dsmooth {

// The type of an element as DLPack counts it.
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
inline constexpr ElementType kUint8Type{ElementType::kUnsigned, 8};

// A DLPack device: its type, 1 for the CPU and 2 for CUDA, and its index.
struct Device {
  static constexpr int32_t kCpu = 1, kCuda = 2;
  int32_t type = kCpu;
  int32_t index = 0;

  bool operator==(const Device&) const = default;
};

struct Borrowed {
  bool given = false;  // else the tensor is absent
  void* data = nullptr;
  ElementType type;
  Device device;
  int n_dims = 0;
  const int64_t* shape = nullptr;
  const int64_t* strides = nullptr;  // in elements
};

inline std::string to_string(ElementType type) {
  const std::string bits = std::to_string(type.bits);
  switch (type.code) {
    case ElementType::kInt:
      return "int" + bits;
    case ElementType::kUnsigned:
      return "uint" + bits;
    case ElementType::kFloat:
      return "float" + bits;
    case ElementType::kBFloat:
      return "bfloat" + bits;
    case ElementType::kComplex:
      return "complex" + bits;
    case ElementType::kBool:
      return "bool";
    default:
      return "an element of DLPack type " + std::to_string(type.code);
  }
}

inline std::string to_string(Device device) {
  if (device.type == Device::kCpu) return "cpu";
  return (device.type == Device::kCuda
              ? "cuda:"
              : "DLPack device type " + std::to_string(device.type) + ":") +
         std::to_string(device.index);
}

// An extent that may be anything.
inline constexpr int64_t kAny = std::numeric_limits<int64_t>::min();

// As Python writes a tuple, with * for kAny.
inline std::string to_string(const int64_t* extents, int count) {
  std::string text = "(";
  for (int i = 0; i < count; ++i) {
    text += (i == 0 ? "" : ", ") + (extents[i] == kAny ? "*" : std::to_string(extents[i]));
  }
  return text + (count == 1 ? ",)" : ")");
}

inline size_t bytes_of(ElementType type) {
  return std::max<size_t>(size_t{type.bits} * type.lanes / 8, 1);
}

inline bool is_empty(const Borrowed& tensor) {
  for (int i = 0; i < tensor.n_dims; ++i) {
    if (tensor.shape[i] == 0) return true;
  }
  return false;
}

// Whether the elements lie one after the other, the dimensions from the fastest on in `order`.
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

// The addresses from the first element to behind the last; none of an absent or empty tensor.
struct MemoryRange {
  uintptr_t begin = 0, end = 0;

  bool meets(const MemoryRange& other) const { return begin < other.end && other.begin < end; }
};

// Strides are not negative: torch has none.
inline MemoryRange range_of(const Borrowed& tensor) {
  if (!tensor.given || is_empty(tensor)) return {};
  uintptr_t last = 0;
  for (int i = 0; i < tensor.n_dims; ++i) {
    last += static_cast<uintptr_t>((tensor.shape[i] - 1) * tensor.strides[i]);
  }
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data);
  return {begin, begin + (last + 1) * bytes_of(tensor.type)};
}

// Whether two elements may share memory, as in an expanded tensor: whether a step along a dimension
// stays within what the dimensions of smaller steps reach.
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

}  // namespace dsmooth
