// Laws of the loss on the CPU that need no Python, run under the sanitizers (run.sh): each tensor
// is a heap block that ends with its last element, so that an access behind it is caught.
#include "../logistic_mixture/logistic_mixture.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/isa.h"
#include "expect.h"

namespace dsmooth {
namespace {

enum class Layout { kContiguous, kChannelsLast, kEveryOther };

struct Case {
  Layout layout;
  std::string likelihood;
  int64_t channels, batch, rows, cols, n_mix, n_atoms = 0;
  int64_t n_params() const { return n_mix * (channels == 1 ? 3 : 10) + n_atoms; }
};

// A tensor (B, channels, H, W) of a case, and its elements with the channels last.
template <class T>
class Tensor {
 public:
  Tensor(const Case& c, int64_t channels) : shape_{c.batch, channels, c.rows, c.cols} {
    const int64_t step = c.layout == Layout::kEveryOther ? 2 : 1, plane = c.rows * c.cols * step;
    const bool last = c.layout == Layout::kChannelsLast;
    const int64_t col = last ? channels : step;
    strides_ = {channels * plane, last ? 1 : plane, c.cols * col, col};
    int64_t end = 1;
    for (size_t i = 0; i < 4; ++i) end += (shape_[i] - 1) * strides_[i];
    memory_.reset(new T[static_cast<size_t>(end)]);
    std::fill_n(memory_.get(), end, std::numeric_limits<T>::quiet_NaN());
  }
  int64_t size() const { return shape_[0] * shape_[1] * shape_[2] * shape_[3]; }
  T& at(int64_t i) const {
    const auto [batch, channels, rows, cols] = shape_;
    const int64_t pixel = i / channels, line = pixel / cols;
    return memory_[static_cast<size_t>(line / rows * strides_[0] + i % channels * strides_[1] +
                                       line % rows * strides_[2] + pixel % cols * strides_[3])];
  }
  // Sets all to value(pixel, channel).
  template <class Value>
  void fill(const Value& value) {
    for (int64_t i = 0; i < size(); ++i)
      at(i) = static_cast<T>(value(i / shape_[1], i % shape_[1]));
  }
  Borrowed borrow() const {
    return {true, memory_.get(), type_of<T>(), {}, 4, shape_.data(), strides_.data()};
  }
  // One channel, as (B, H, W).
  Borrowed borrow_plane() {
    plane_shape_ = {shape_[0], shape_[2], shape_[3]};
    plane_strides_ = {strides_[0], strides_[2], strides_[3]};
    return {true, memory_.get(), type_of<T>(), {}, 3, plane_shape_.data(), plane_strides_.data()};
  }

 private:
  std::array<int64_t, 4> shape_, strides_;
  std::array<int64_t, 3> plane_shape_, plane_strides_;
  std::unique_ptr<T[]> memory_;
};

// Raw log-scales meet the clamp, its edge, and scales at which exponentials vanish.
constexpr double kLogScales[] = {-100, -7, -6.99, -2, 0.3, 5, 40, 95};
constexpr double kMeans[] = {0.1, -0.9, 1.5, -30};

// log_prob and the gradients by x and params.
template <class T>
std::vector<Tensor<T>> compute(const Case& c, int threads, const std::string& instruction_set) {
  Tensor<T> x(c, c.channels), params(c, c.n_params()), grad(c, 1), state(c, kStateChannels);
  x.fill([](int64_t pixel, int64_t colour) {
    if (pixel % 3 == 0) colour = 0;  // grey: its colours have one level, which may be an atom's
    const int64_t level =
        (37 * pixel + 101 * colour) % 5 == 0 ? (pixel % 2) * 255 : (pixel * 53 + colour) % 256;
    return static_cast<double>(level) / 127.5 - 1;
  });
  params.fill([&](int64_t pixel, int64_t channel) {
    const auto i = static_cast<size_t>(pixel * 7 + channel * 3);
    const int64_t group = (channel - c.n_atoms) / c.n_mix - 1, per_colour = c.channels == 1 ? 2 : 3;
    const bool is_logit = channel < c.n_mix + c.n_atoms;
    if (!is_logit && group % per_colour == 0) return kMeans[i % std::size(kMeans)];
    if (!is_logit && group % per_colour == 1) return kLogScales[i % std::size(kLogScales)];
    return 8 * std::sin(0.7 * static_cast<double>(i));
  });
  grad.fill([](int64_t pixel, int64_t) { return 0.5 + 0.25 * static_cast<double>(pixel % 3); });
  std::vector<Tensor<T>> results;
  for (const int64_t channels : {int64_t{1}, c.channels, c.n_params()})
    results.emplace_back(c, channels);
  MixtureSettings settings{c.likelihood, {}, 0.3};
  for (int64_t j = 0; j < c.n_atoms; ++j) settings.atoms.push_back(255 - j);
  MixtureTensors tensors;
  tensors.x = x.borrow(), tensors.params = params.borrow(), tensors.state = state.borrow();
  tensors.log_prob = results[0].borrow_plane();
  run_logistic_mixture(tensors, settings, false, threads, instruction_set);
  tensors.log_prob = {}, tensors.grad = grad.borrow_plane();
  tensors.grad_x = results[1].borrow(), tensors.grad_params = results[2].borrow();
  run_logistic_mixture(tensors, settings, true, threads, instruction_set);
  return results;
}

// Every pixel is written, with the same bits however many threads share them.
template <class T>
void results_are_whole(const Case& c) {
  for (const std::string& set : instruction_sets()) {
    const std::vector<Tensor<T>> alone = compute<T>(c, 1, set), shared = compute<T>(c, 3, set);
    bool finite = true, same = true;
    for (size_t r = 0; r < alone.size(); ++r)
      for (int64_t i = 0; i < alone[r].size(); ++i) {
        finite = finite && std::isfinite(alone[r].at(i));
        same = same && alone[r].at(i) == shared[r].at(i);
      }
    expect(finite && same, set + ", columns " + std::to_string(c.cols) +
                               (same ? ": not finite" : ": other bits with threads"));
  }
}

// A tensor of another device is refused before its memory is touched.
void devices_are_checked() {
  const int64_t image[] = {2, 1, 3, 4}, dense[] = {12, 12, 4, 1};
  float value = 0;
  MixtureTensors tensors;
  tensors.x = {true, &value, kFloat32Type, {Device::kCuda, 1}, 4, image, dense};
  std::string message;
  try {
    run_logistic_mixture(tensors, {"continuous", {}, 0}, false, 1, "auto");
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  expect(message == "x must be on cpu, got cuda:1", "another device: " + message);
}

}  // namespace
}  // namespace dsmooth

int main() {
  using namespace dsmooth;
  devices_are_checked();
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kEveryOther})
    for (const int channels : {1, 3}) {
      std::vector<Case> cases;
      for (const char* likelihood : {"continuous", "discretized", "gaussian"}) {
        cases.push_back({layout, likelihood, channels, 1, 1, 1, 1});
        cases.push_back({layout, likelihood, channels, 2, 3, 17, 10});
      }
      for (const int64_t n_atoms : {1, 256})
        cases.push_back({layout, "discretized", channels, 2, 2, 48, 3, n_atoms});
      for (const Case& c : cases) {
        results_are_whole<float>(c);
        results_are_whole<double>(c);
      }
    }
  std::printf(failures ? "%d failures\n" : "logistic mixture: all laws hold\n", failures);
  return failures != 0;
}
