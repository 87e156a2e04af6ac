// A tensor of a call, in a heap block that ends with its last element, so that an access past the
// end is caught.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "../common/bfloat16.h"
#include "../common/tensors.h"

namespace dsmooth {

enum class Layout { kContiguous, kChannelsLast, kEveryOther };

// Elements are float32, float64 or bfloat16, and counted in the order of the dimensions.
class Tensor {
 public:
  // Filled with NaN.
  Tensor(ElementType type, std::vector<int64_t> shape, Layout layout = Layout::kContiguous)
      : type_(type), shape_(std::move(shape)), strides_(shape_.size()) {
    std::vector<size_t> order(shape_.size());  // starting at the fastest dimension
    for (size_t i = 0; i < order.size(); ++i) order[i] = order.size() - 1 - i;
    if (layout == Layout::kChannelsLast && order.size() == 4) order = {1, 3, 2, 0};
    int64_t stride = layout == Layout::kEveryOther ? 2 : 1;
    int64_t end = 1;
    for (const size_t dim : order) {
      strides_[dim] = stride;
      stride *= shape_[dim];
      size_ *= shape_[dim];
      end += (shape_[dim] - 1) * strides_[dim];
    }
    memory_.reset(new char[static_cast<size_t>(end) * bytes_of(type)]);
    for (int64_t i = 0; i < size_; ++i) set(i, NAN);
  }

  int64_t size() const { return size_; }
  int64_t shape(size_t dim) const { return shape_[dim]; }
  Borrowed borrow(const char* name = "") const {
    return {
        name,          true,           memory_.get(), type_, {}, static_cast<int>(shape_.size()),
        shape_.data(), strides_.data()};
  }
  double get(int64_t i) const {
    if (type_ == kFloat64Type) return load<double>(i);
    return type_ == kFloat32Type ? load<float>(i) : from_bfloat16(load<bfloat16>(i));
  }
  void set(int64_t i, double value) {
    if (type_ == kFloat64Type) return store(i, value);
    const auto single = static_cast<float>(value);
    type_ == kFloat32Type ? store(i, single) : store(i, to_bfloat16(single));
  }

 private:
  char* address(int64_t i) const {
    int64_t element = 0;
    for (size_t dim = shape_.size(); dim-- > 0; i /= shape_[dim])
      element += i % shape_[dim] * strides_[dim];
    return memory_.get() + static_cast<size_t>(element) * bytes_of(type_);
  }
  template <class T>
  T load(int64_t i) const {
    T value;
    std::memcpy(&value, address(i), sizeof value);
    return value;
  }
  template <class T>
  void store(int64_t i, T value) {
    std::memcpy(address(i), &value, sizeof value);
  }

  ElementType type_;
  std::vector<int64_t> shape_, strides_;
  int64_t size_ = 1;
  std::unique_ptr<char[]> memory_;
};

// The largest difference, relative to the largest number.
inline double distance(const Tensor& got, const Tensor& expected) {
  double most = 0, difference = 0;
  for (int64_t i = 0; i < expected.size(); ++i) {
    most = std::max(most, std::abs(expected.get(i)));
    if (!std::isfinite(got.get(i))) return INFINITY;
    difference = std::max(difference, std::abs(got.get(i) - expected.get(i)));
  }
  return difference == 0 ? 0 : difference / most;
}

}  // namespace dsmooth
