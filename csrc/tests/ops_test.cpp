// Invariants of the gated resnet and the loss on the CPU that need no Python, run under
// AddressSanitizer (run.sh): every instruction set gives the numbers of the generic one in float64,
// which tests/functional compares with the formulas, and threads change no bit.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../common/bfloat16.h"
#include "../common/isa.h"
#include "../gated_resnet/gated_resnet.h"
#include "../logistic_mixture/logistic_mixture.h"
#include "expect.h"

namespace dsmooth {
namespace {

// A dense tensor of float32, float64 or bfloat16, filled with NaN, in a heap block that ends with
// its last element, so that an access past the end is caught. Elements are in memory order.
class Tensor {
 public:
  Tensor(ElementType type, std::vector<int64_t> shape, bool channels_last)
      : type_(type), shape_(std::move(shape)), strides_(shape_.size()) {
    std::vector<size_t> order(shape_.size());  // starting at the fastest dimension
    for (size_t i = 0; i < order.size(); ++i) order[i] = order.size() - 1 - i;
    if (channels_last && order.size() == 4) order = {1, 3, 2, 0};
    for (const size_t dim : order) size_ *= shape_[dim], strides_[dim] = size_ / shape_[dim];
    memory_.reset(new char[static_cast<size_t>(size_) * bytes_of(type)]);
    for (int64_t i = 0; i < size_; ++i) set(i, NAN);
  }

  int64_t size() const { return size_; }
  Borrowed borrow(const char* name = "") const {
    const int n_dims = static_cast<int>(shape_.size());
    return {name, true, memory_.get(), type_, {}, n_dims, shape_.data(), strides_.data()};
  }
  double get(int64_t i) const {
    if (type_ == kFloat64Type) return at<double>(i);
    return type_ == kFloat32Type ? at<float>(i) : from_bfloat16(at<bfloat16>(i));
  }
  void set(int64_t i, double value) {
    if (type_ == kFloat64Type) at<double>(i) = value;
    if (type_ == kFloat32Type) at<float>(i) = static_cast<float>(value);
    if (type_ == kBFloat16Type) at<bfloat16>(i) = to_bfloat16(static_cast<float>(value));
  }

 private:
  template <class T>
  T& at(int64_t i) const {
    return reinterpret_cast<T*>(memory_.get())[i];
  }

  ElementType type_;
  std::vector<int64_t> shape_, strides_;
  int64_t size_ = 1;
  std::unique_ptr<char[]> memory_;
};

// The largest difference, relative to the largest number.
double distance(const Tensor& got, const Tensor& expected) {
  double most = 0, difference = 0;
  for (int64_t i = 0; i < expected.size(); ++i) {
    most = std::max(most, std::abs(expected.get(i)));
    if (!std::isfinite(got.get(i))) return INFINITY;
    difference = std::max(difference, std::abs(got.get(i) - expected.get(i)));
  }
  return difference == 0 ? 0 : difference / most;
}

using Tensors = std::map<std::string, Tensor>;

// Compares the results of each instruction set with `exact`, and those of three threads with them.
template <class Compute>
void check(const Tensors& exact, const std::map<double, ElementType>& types, Compute compute) {
  for (const std::string& set : instruction_sets())
    for (const auto& [tolerance, type] : types) {
      const Tensors single = compute(type, 1, set), threaded = compute(type, 3, set);
      for (const auto& [name, expected] : exact) {
        const std::string what = set + ", " + to_string(type) + ", " + name + ": ";
        expect(distance(single.at(name), expected) < tolerance, what + "different numbers");
        expect(distance(threaded.at(name), single.at(name)) == 0, what + "bits of threads");
      }
    }
}

struct GatedCase {
  GatedField::Extents extents;
  int pad_top, pad_left;
  bool gains, image_bias, dropout;

  bool has(const GatedField& f) const {
    const std::string name = f.name;
    if (name == "seed" || ((f.with & GatedField::kGains) != 0 && !gains)) return false;
    if ((f.with & GatedField::kSkip) != 0 && extents.S_1 == 0) return false;
    return (name != "skip" || extents.S_1 > 0) && (name != "skip_2" || extents.S_2 > 0) &&
           (name != "gain_in" || gains) && (name != "image_bias" || image_bias);
  }
};

// All tensors of a forward and a backward, given grad_y = cos. frozen: no gradient of a weight.
Tensors gated_resnet(const GatedCase& c, ElementType type, int threads, const std::string& set,
                     bool frozen = false) {
  Tensors tensors;
  std::map<std::string, Borrowed> operands[2];  // of the forward and the backward
  int seed = 0;
  for (const GatedField& f : GatedField::table()) {
    if (!c.has(f)) continue;
    const bool is_image = f.dtype == GatedField::kImage, is_input = f.group == GatedField::kInput;
    const auto add = [&](const char* name) -> Tensor& {
      const ElementType weight = type == kFloat64Type ? kFloat64Type : kFloat32Type;
      return tensors
          .try_emplace(name, is_image ? type : weight, f.shape(c.extents),
                       f.layout == GatedField::kChannelsLast)
          .first->second;
    };
    Tensor& tensor = add(f.name);
    const double scale = is_image ? 2 : f.shape(c.extents).size() == 4 ? 0.3 : 0.5;
    for (int64_t i = 0; is_input && i < tensor.size(); ++i)
      tensor.set(i, scale * std::sin(static_cast<double>(i * i % 997 + ++seed)));
    operands[0][f.name] = tensor.borrow(f.name);
    if (f.group != GatedField::kOutput) operands[1][f.name] = tensor.borrow(f.name);
    if (f.gradient == GatedField::kNone) continue;
    if (frozen && f.gradient == GatedField::kParameter) continue;
    Tensor& grad = add(f.gradient_name);
    for (int64_t i = 0; !is_input && i < grad.size(); ++i)
      grad.set(i, std::cos(static_cast<double>(i)));
    operands[1][f.gradient_name] = grad.borrow(f.gradient_name);
  }
  for (const bool backward : {false, true}) {
    GatedCall call = check_gated_operands(operands[backward], backward, c.pad_top, c.pad_left);
    call.dropout = {c.dropout, (uint64_t{5} << 32) + 3, 2, 1, 1u << 21, 1 / 0.75};
    (backward ? gated_resnet_backward : gated_resnet_forward)(call, threads, set);
  }
  return tensors;
}

void check_gated_resnet(const GatedCase& c) {
  const auto compute = [&](ElementType type, int threads, const std::string& set) {
    return gated_resnet(c, type, threads, set);
  };
  const Tensors exact = compute(kFloat64Type, 1, "generic");
  check(exact, {{4e-13, kFloat64Type}, {4e-5, kFloat32Type}, {0.12, kBFloat16Type}}, compute);
  for (const std::string& set : instruction_sets()) {
    const Tensors all = compute(kFloat32Type, 1, set);
    for (const auto& [name, got] : gated_resnet(c, kFloat32Type, 3, set, true))
      expect(distance(got, all.at(name)) == 0, set + ", " + name + ": different bits if frozen");
  }
}

struct MixtureCase {
  std::string likelihood;
  int64_t channels, batch, rows, cols, n_mix;
  bool atoms = false, channels_last = false;
};

// log_prob and the gradients with respect to x and params.
Tensors mixture(const MixtureCase& c, ElementType type, int threads, const std::string& set) {
  // As log-scales they cover the clamp, its edge, and scales at which exponentials vanish.
  constexpr double kNumbers[] = {-100, -7, -6.99, -2, 0.3, 5, 40, 95, -0.9, 1.5, 0.1};
  const int64_t n_params = c.n_mix * (c.channels == 1 ? 3 : 10) + (c.atoms ? kBytes : 0);
  const auto image = [&](int64_t channels) {
    return Tensor(type, {c.batch, channels, c.rows, c.cols}, c.channels_last);
  };
  Tensor x = image(c.channels), params = image(n_params), state = image(kStateChannels);
  Tensor grad(type, {c.batch, c.rows, c.cols}, false);
  for (int64_t i = 0; i < x.size(); ++i)
    x.set(i, static_cast<double>(i % 5 == 0 ? i % 2 * 255 : i * 53 % 256) / 127.5 - 1);
  for (int64_t i = 0; i < params.size(); ++i) params.set(i, kNumbers[i * 7 % 11]);
  for (int64_t i = 0; i < grad.size(); ++i) grad.set(i, 0.5 + 0.25 * static_cast<double>(i % 3));
  Tensors results;
  Tensor& log_prob =
      results.try_emplace("log_prob", type, std::vector{c.batch, c.rows, c.cols}, false)
          .first->second;
  Tensor& grad_x = results.emplace("grad_x", image(c.channels)).first->second;
  Tensor& grad_params = results.emplace("grad_params", image(n_params)).first->second;
  MixtureTensors tensors{x.borrow(), params.borrow(), log_prob.borrow(), state.borrow(), {}, {},
                         {}};
  run_logistic_mixture(tensors, {c.likelihood, c.atoms, 0.3}, threads, set);
  tensors.log_prob = {}, tensors.grad = grad.borrow();
  tensors.grad_x = grad_x.borrow(), tensors.grad_params = grad_params.borrow();
  run_logistic_mixture(tensors, {c.likelihood, c.atoms, 0.3}, threads, set);
  return results;
}

void check_mixture(const MixtureCase& c) {
  const auto compute = [&](ElementType type, int threads, const std::string& set) {
    return mixture(c, type, threads, set);
  };
  check(compute(kFloat64Type, 1, "generic"), {{1e-12, kFloat64Type}, {1e-3, kFloat32Type}},
        compute);
}

}  // namespace
}  // namespace dsmooth

int main() {
  using namespace dsmooth;
  // B F H W, kernel, S S_1 S_2, padding
  check_gated_resnet({{2, 5, 5, 7, 2, 3, 5, 5, 0}, 1, 1, false, false, false});
  check_gated_resnet({{3, 16, 3, 9, 2, 2, 5, 3, 2}, 1, 1, true, true, true});
  check_gated_resnet({{1, 1, 1, 1, 1, 1, 0, 0, 0}, 0, 0, true, false, false});
  check_gated_resnet({{2, 13, 6, 17, 3, 3, 0, 0, 0}, 1, 1, false, true, true});
  for (const bool last : {false, true})
    for (const int channels : {1, 3}) {
      for (const char* likelihood : {"continuous", "discretized", "gaussian"}) {
        check_mixture({likelihood, channels, 1, 1, 1, 1, false, last});
        check_mixture({likelihood, channels, 2, 3, 17, 10, false, last});
      }
      if (channels == 1) check_mixture({"discretized", 1, 2, 2, 48, 3, true, last});
    }
  return report();
}
