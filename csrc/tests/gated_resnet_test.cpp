// Laws of the gated block on the CPU that need no Python, run under the sanitizers (run.sh): every
// instruction set gives the numbers of the generic one in float64, which tests/test_gated_resnet.py
// compares with the formula, and threads change no bit. Each tensor is a heap block that ends with
// its last element, so that an access behind it is caught.
#include "../gated_resnet/gated_resnet.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "../common/bfloat16.h"
#include "../common/isa.h"
#include "expect.h"

namespace dsmooth {
namespace {

struct Case {
  GatedShape shape;
  bool gains, image_bias, dropout;
};

// The numbers of each tensor of the field table, none of one that is absent.
using Numbers = std::array<std::vector<double>, kGatedFields>;
auto& at(auto& numbers, GatedField field) { return numbers[static_cast<size_t>(field)]; }

enum Dtype { kImage, kWeight, kInt64 };
enum Gradient { kNone, kGradient };
struct Kind {
  Dtype dtype;
  Gradient gradient;
};
#define FIELD(name, group, presence, with, dtype, layout, gradient, shape) {dtype, gradient},
constexpr Kind kKinds[] = {
#include "../../dsmooth/functional/gated_resnet.def"
};
#undef FIELD

Numbers inputs_of(const Case& c) {
  const GatedShape& s = c.shape;
  const int64_t pixels = s.batch * s.height * s.width;
  const int f = s.filters, skips = s.all_skip_channels();
  Numbers numbers;
  int seed = 0;
  const auto fill = [&](GatedField field, int64_t count, double scale) {
    for (int64_t i = 0; i < count; ++i)
      at(numbers, field).push_back(scale * std::sin(static_cast<double>(i * i % 997 + ++seed)));
  };
  fill(GatedField::x, pixels * f, 2);
  fill(GatedField::skip, pixels * s.skip_channels[0], 2);
  fill(GatedField::skip_2, pixels * s.skip_channels[1], 2);
  fill(GatedField::conv_in, f * 2 * f * s.taps(), 0.3);
  fill(GatedField::bias_in, f, 0.5);
  fill(GatedField::conv_out, 2 * f * 2 * f * s.taps(), 0.3);
  fill(GatedField::bias_out, 2 * f, 0.5);
  fill(GatedField::nin_skip, f * 2 * skips, 0.3);
  fill(GatedField::bias_nin, skips ? f : 0, 0.5);
  fill(GatedField::gain_in, c.gains ? f : 0, 1);
  fill(GatedField::gain_out, c.gains ? 2 * f : 0, 1);
  fill(GatedField::gain_nin, c.gains && skips ? f : 0, 1);
  fill(GatedField::image_bias, c.image_bias ? s.batch * 2 * f : 0, 0.5);
  return numbers;
}

template <class T>
double to_double(T v) {
  return sizeof(T) == 2 ? from_bfloat16(static_cast<bfloat16>(v)) : static_cast<double>(v);
}
template <class T>
T from_double(double v) {
  return sizeof(T) == 2 ? static_cast<T>(to_bfloat16(static_cast<float>(v))) : static_cast<T>(v);
}

// y, and at the inputs their gradients given grad_y = cos. T: activations; S: weights.
template <class T, class S>
Numbers compute(const Case& c, const Numbers& in, int threads, const std::string& set) {
  std::vector<std::vector<T>> images(3 * kGatedFields);
  std::vector<std::vector<S>> weights(2 * kGatedFields);
  GatedCall call;
  call.shape = c.shape;
  call.shape.type = sizeof(T) == 2 ? kBFloat16Type : sizeof(T) == 4 ? kFloat32Type : kFloat64Type;
  call.dropout = {c.dropout, (uint64_t{5} << 32) + 3, 2, 1, 1u << 21, 1 / 0.75};
  void* pointers[2][kGatedFields] = {};
  for (size_t i = 0; i < kGatedFields; ++i)
    for (const size_t gradient : {0, 1}) {
      if (in[i].empty()) continue;
      const size_t at = gradient * kGatedFields + i;
      for (const double v : in[i]) {
        const double value = gradient ? NAN : v;
        kKinds[i].dtype == kImage ? images[at].push_back(from_double<T>(value))
                                  : weights[at].push_back(static_cast<S>(value));
      }
      if (kKinds[i].dtype == kImage) images[at].shrink_to_fit();
      if (kKinds[i].dtype == kWeight) weights[at].shrink_to_fit();
      pointers[gradient][i] = kKinds[i].dtype == kImage ? static_cast<void*>(images[at].data())
                                                        : static_cast<void*>(weights[at].data());
    }
  std::memcpy(&call.tensors, pointers[0], sizeof call.tensors);
  std::memcpy(&call.grads, pointers[1], sizeof call.grads);
  const size_t n = at(in, GatedField::x).size();
  std::vector<T> y(n), h(n), gates(2 * n), grad(n);
  for (size_t i = 0; i < n; ++i) grad[i] = from_double<T>(std::cos(static_cast<double>(i)));
  call.tensors.y = y.data(), call.tensors.h = h.data(), call.tensors.gates = gates.data();
  call.grads.y = grad.data();
  gated_resnet_forward(call, threads, set);
  gated_resnet_backward(call, threads, set);
  Numbers results;
  std::transform(y.begin(), y.end(), std::back_inserter(at(results, GatedField::y)), to_double<T>);
  for (size_t i = 0; i < kGatedFields; ++i) {
    if (kKinds[i].gradient == kNone) continue;
    for (const T v : images[kGatedFields + i]) results[i].push_back(to_double(v));
    for (const S v : weights[kGatedFields + i]) results[i].push_back(to_double(v));
  }
  return results;
}

// The largest difference, relative to the largest number.
double distance(const std::vector<double>& got, const std::vector<double>& expected) {
  double most = 0, difference = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    most = std::max(most, std::abs(expected[i]));
    if (!std::isfinite(got[i])) return INFINITY;
    difference = std::max(difference, std::abs(got[i] - expected[i]));
  }
  return difference == 0 ? 0 : difference / most;
}

template <class T, class S>
void agrees(const Case& c, const std::string& set, const Numbers& in, const Numbers& exact,
            double tolerance) {
  const std::string what = set + ", " + std::to_string(sizeof(T)) + " bytes, " +
                           std::to_string(c.shape.filters) + " filters: ";
  const Numbers alone = compute<T, S>(c, in, 1, set);
  expect(alone == compute<T, S>(c, in, 3, set), what + "other bits with threads");
  for (size_t i = 0; i < kGatedFields; ++i) {
    const bool is_y = i == static_cast<size_t>(GatedField::y);
    expect(distance(alone[i], exact[i]) < (is_y ? tolerance : 4 * tolerance),
           what + "tensor " + std::to_string(i));
  }
}

void check(const Case& c) {
  const Numbers in = inputs_of(c);
  const Numbers exact = compute<double, double>(c, in, 1, "generic");
  for (const std::string& set : instruction_sets()) {
    agrees<double, double>(c, set, in, exact, 1e-13);
    agrees<float, float>(c, set, in, exact, 1e-5);
    agrees<bfloat16, float>(c, set, in, exact, 0.03);
  }
}

}  // namespace
}  // namespace dsmooth

int main() {
  constexpr auto k = dsmooth::kFloat64Type;
  // batch, height, width, filters, kernel, padding, channels of the skips
  dsmooth::check({{k, 2, 5, 7, 5, 2, 3, 1, 1, {5, 0}}, false, false, false});
  dsmooth::check({{k, 3, 3, 9, 16, 2, 2, 1, 1, {3, 2}}, true, true, true});
  dsmooth::check({{k, 1, 1, 1, 1, 1, 1, 0, 0, {0, 0}}, true, false, false});
  dsmooth::check({{k, 2, 6, 17, 13, 3, 3, 1, 1, {0, 0}}, false, true, true});
  std::printf(dsmooth::failures ? "%d failures\n" : "gated block: all laws hold\n",
              dsmooth::failures);
  return dsmooth::failures != 0;
}
