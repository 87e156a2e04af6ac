// Typed views over memory that Python owns. Every error of shape, dtype or device is born here.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace dsmooth {

enum class Dtype { kFloat32, kFloat64 };
enum class DeviceType { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;

  bool operator==(const Device&) const = default;
};

inline std::string to_string(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? "float32" : "float64";
}

inline std::string to_string(Device device) {
  return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

inline std::string to_string(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + (shape[i] < 0 ? std::string("*") : std::to_string(shape[i]));
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

// A tensor as Python describes it. Borrowed: the caller keeps the memory alive during the call.
struct Tensor {
  std::string name;  // of the argument, for messages
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  Device device;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements
};

template <class T>
constexpr Dtype dtype_of() {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>);
  return std::is_same_v<T, float> ? Dtype::kFloat32 : Dtype::kFloat64;
}

inline constexpr int64_t kAny = -1;  // an extent that may be anything

// Checked view of N dimensions: `data[i * stride[0] + j * stride[1] + ...]`.
template <class T, int N>
struct View {
  T* data = nullptr;
  std::array<int64_t, N> shape{};
  std::array<int64_t, N> stride{};

  View() = default;
  View(const Tensor& tensor, const std::array<int64_t, N>& expected, Device device) {
    const std::vector<int64_t> wanted(expected.begin(), expected.end());
    bool fits = tensor.shape.size() == N && tensor.strides.size() == N;
    for (int i = 0; fits && i < N; ++i) {
      fits = tensor.shape[i] >= 0 && (expected[i] == kAny || expected[i] == tensor.shape[i]);
    }
    if (!fits) {
      throw std::invalid_argument(tensor.name + " must have shape " + to_string(wanted) + ", got " +
                                  to_string(tensor.shape));
    }
    if (tensor.dtype != dtype_of<std::remove_const_t<T>>()) {
      throw std::invalid_argument(tensor.name + " must be " +
                                  to_string(dtype_of<std::remove_const_t<T>>()) + ", got " +
                                  to_string(tensor.dtype));
    }
    if (!(tensor.device == device)) {
      throw std::invalid_argument(tensor.name + " must be on " + to_string(device) + ", got " +
                                  to_string(tensor.device));
    }
    data = static_cast<T*>(tensor.data);
    for (int i = 0; i < N; ++i) {
      shape[i] = tensor.shape[i];
      stride[i] = tensor.strides[i];
    }
  }

  bool empty() const {
    for (const int64_t extent : shape) {
      if (extent == 0) return true;
    }
    return false;
  }
};

}  // namespace dsmooth
