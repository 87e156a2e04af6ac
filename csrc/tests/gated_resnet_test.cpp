// Laws of the gated block on the CPU that need no Python, run under the sanitizers (run.sh): its
// forward is the formula, its gradient that of the forward, and threads change no bit. Each tensor
// is a heap block that ends with its last element, so that an access behind it is caught.
#include "../gated_resnet/gated_resnet.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "../common/bfloat16.h"
#include "../common/isa.h"
#include "../common/philox.h"
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

GatedDropout dropout_of(const Case& c) {
  return {c.dropout, (uint64_t{5} << 32) + 3, 2, 1, 1u << 21, 1 / 0.75};
}

// y by the formula of gated_resnet.h.
std::vector<double> reference(const Case& c, const Numbers& in) {
  const GatedShape& s = c.shape;
  const auto elu = [](double v) { return v > 0 ? v : std::expm1(v); };
  const auto concat_elu = [&](std::vector<std::pair<const double*, int>> parts) {
    std::vector<double> all;
    for (const double sign : {1.0, -1.0})
      for (const auto& [values, n] : parts)
        for (int i = 0; i < n; ++i) all.push_back(elu(sign * values[i]));
    return all;
  };
  // The weight of output o times `row` in order of inputs and taps, under weight norm if there are
  // gains.
  const auto product = [](const std::vector<double>& v, const std::vector<double>& gain, int o,
                          const std::vector<double>& row) {
    const double* w = v.data() + static_cast<size_t>(o) * row.size();
    const double sum = std::inner_product(row.begin(), row.end(), w, 0.0);
    return gain.empty() ? sum
                        : sum * gain[static_cast<size_t>(o)] /
                              std::sqrt(std::inner_product(w, w + row.size(), w, 0.0));
  };
  const int f = s.filters;
  const auto window = [&](const std::vector<double>& image, int64_t b, int64_t r, int64_t col) {
    std::vector<double> row(static_cast<size_t>(2 * f * s.taps()));
    for (int i = 0; i < s.kernel_h; ++i)
      for (int j = 0; j < s.kernel_w; ++j) {
        const int64_t y = r + i - s.pad_top, x = col + j - s.pad_left;
        if (y < 0 || y >= s.height || x < 0 || x >= s.width) continue;
        for (int k = 0; k < 2 * f; ++k)
          row[static_cast<size_t>(k * s.taps() + i * s.kernel_w + j)] =
              image[static_cast<size_t>(((b * s.height + y) * s.width + x) * 2 * f + k)];
      }
    return row;
  };
  const GatedDropout dropout = dropout_of(c);
  const auto keep = [&](size_t i) {
    const auto element =
        static_cast<uint64_t>(dropout.first_image * s.height * s.width * 2 * f) + i;
    const uint64_t n = element / 4;
    const PhiloxBlock drawn = philox4x32_10(
        {{static_cast<uint32_t>(n), static_cast<uint32_t>(n >> 32), dropout.layer,
          static_cast<uint32_t>(Stream::kDropout)}},
        static_cast<uint32_t>(dropout.seed), static_cast<uint32_t>(dropout.seed >> 32));
    if (!c.dropout) return 1.0;
    return drawn.word[element % 4] >> 9 >= dropout.keep_from ? dropout.scale : 0.0;
  };
  const int64_t pixels = s.batch * s.height * s.width;
  const auto for_pixels = [&](auto body) {
    for (int64_t p = 0; p < pixels; ++p)
      body(p, p / s.width / s.height, p / s.width % s.height, p % s.width);
  };
  std::vector<double> x_act, h_act, y = at(in, GatedField::x);
  const auto append = [](std::vector<double>& all, const std::vector<double>& more) {
    all.insert(all.end(), more.begin(), more.end());
  };
  for (int64_t p = 0; p < pixels; ++p) append(x_act, concat_elu({{y.data() + p * f, f}}));
  for_pixels([&](int64_t p, int64_t b, int64_t r, int64_t col) {
    std::vector<double> h;
    const auto taps = window(x_act, b, r, col);
    const int s_1 = s.skip_channels[0], s_2 = s.skip_channels[1];
    const auto skips = concat_elu({{at(in, GatedField::skip).data() + p * s_1, s_1},
                                   {at(in, GatedField::skip_2).data() + p * s_2, s_2}});
    for (int o = 0; o < f; ++o) {
      const auto i = static_cast<size_t>(o);
      h.push_back(at(in, GatedField::bias_in)[i] +
                  product(at(in, GatedField::conv_in), at(in, GatedField::gain_in), o, taps));
      if (!skips.empty())
        h.back() += at(in, GatedField::bias_nin)[i] +
                    product(at(in, GatedField::nin_skip), at(in, GatedField::gain_nin), o, skips);
    }
    append(h_act, concat_elu({{h.data(), f}}));
  });
  for (size_t i = 0; i < h_act.size(); ++i) h_act[i] *= keep(i);
  for_pixels([&](int64_t p, int64_t b, int64_t r, int64_t col) {
    const auto taps = window(h_act, b, r, col);
    const auto gate = [&](int o) {
      const auto& more = at(in, GatedField::image_bias);
      return at(in, GatedField::bias_out)[static_cast<size_t>(o)] +
             (more.empty() ? 0 : more[static_cast<size_t>(b * 2 * f + o)]) +
             product(at(in, GatedField::conv_out), at(in, GatedField::gain_out), o, taps);
    };
    for (int o = 0; o < f; ++o)
      y[static_cast<size_t>(p * f + o)] += gate(o) / (1 + std::exp(-gate(f + o)));
  });
  return y;
}

struct Results {
  std::vector<double> y;
  Numbers grads;  // given grad_y = cos
};

double grad_y(size_t i) { return std::cos(static_cast<double>(i)); }

template <class T>
double to_double(T v) {
  return sizeof(T) == 2 ? from_bfloat16(static_cast<bfloat16>(v)) : static_cast<double>(v);
}
template <class T>
T from_double(double v) {
  return sizeof(T) == 2 ? static_cast<T>(to_bfloat16(static_cast<float>(v))) : static_cast<T>(v);
}

// T: activations; S: weights.
template <class T, class S>
Results compute(const Case& c, const Numbers& in, int threads, const std::string& set) {
  std::vector<std::vector<T>> images(3 * kGatedFields);
  std::vector<std::vector<S>> weights(2 * kGatedFields);
  GatedCall call;
  call.shape = c.shape;
  call.shape.storage = sizeof(T) == 2   ? GatedStorage::kBFloat16
                       : sizeof(T) == 4 ? GatedStorage::kFloat32
                                        : GatedStorage::kFloat64;
  call.dropout = dropout_of(c);
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
  for (size_t i = 0; i < n; ++i) grad[i] = from_double<T>(grad_y(i));
  call.tensors.y = y.data(), call.tensors.h = h.data(), call.tensors.gates = gates.data();
  call.grads.y = grad.data();
  gated_resnet_forward(call, threads, set);
  gated_resnet_backward(call, threads, set);
  Results results;
  std::transform(y.begin(), y.end(), std::back_inserter(results.y), to_double<T>);
  for (size_t i = 0; i < kGatedFields; ++i) {
    if (kKinds[i].gradient == kNone) continue;
    for (const T v : images[kGatedFields + i]) results.grads[i].push_back(to_double(v));
    for (const S v : weights[kGatedFields + i]) results.grads[i].push_back(to_double(v));
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

// The derivative of sum(y grad_y) along a direction in all tensors, by differences and by
// gradients.
void gradient_is_that_of_the_forward(const Case& c, const Numbers& in, const Results& results,
                                     const std::string& set) {
  constexpr double kStep = 1e-5;
  double by_gradients = 0, by_differences = 0;
  const auto direction = [](size_t i, size_t k) {
    return std::sin(static_cast<double>(3 * k + i));
  };
  for (const double sign : {1.0, -1.0}) {
    Numbers moved = in;
    for (size_t i = 0; i < kGatedFields; ++i)
      for (size_t k = 0; kKinds[i].gradient == kGradient && k < in[i].size(); ++k)
        moved[i][k] += sign * kStep * direction(i, k);
    const std::vector<double> y = compute<double, double>(c, moved, 1, set).y;
    for (size_t k = 0; k < y.size(); ++k) by_differences += sign * y[k] * grad_y(k) / (2 * kStep);
  }
  for (size_t i = 0; i < kGatedFields; ++i)
    for (size_t k = 0; k < results.grads[i].size(); ++k)
      by_gradients += results.grads[i][k] * direction(i, k);
  const double error = std::abs(by_gradients / by_differences - 1);
  expect(error < 1e-7, set + ": the gradient is off by " + std::to_string(error));
}

template <class T, class S>
void agrees(const Case& c, const std::string& set, const Numbers& in, const Results& exact,
            double tolerance) {
  const std::string what = set + ", " + std::to_string(sizeof(T)) + " bytes, " +
                           std::to_string(c.shape.filters) + " filters: ";
  const Results alone = compute<T, S>(c, in, 1, set), shared = compute<T, S>(c, in, 3, set);
  expect(alone.y == shared.y && alone.grads == shared.grads, what + "other bits with threads");
  expect(distance(alone.y, exact.y) < tolerance, what + "y");
  for (size_t i = 0; i < kGatedFields; ++i)
    expect(distance(alone.grads[i], exact.grads[i]) < 4 * tolerance,
           what + "gradient " + std::to_string(i));
}

void check(const Case& c) {
  const Numbers in = inputs_of(c);
  const std::vector<double> y = reference(c, in);
  for (const std::string& set : instruction_sets()) {
    const Results exact = compute<double, double>(c, in, 1, set);
    expect(distance(exact.y, y) < 1e-13, set + ": y is not the formula's");
    gradient_is_that_of_the_forward(c, in, exact, set);
    agrees<double, double>(c, set, in, exact, 1e-13);
    agrees<float, float>(c, set, in, exact, 1e-5);
    agrees<bfloat16, float>(c, set, in, exact, 0.03);
  }
}

}  // namespace
}  // namespace dsmooth

int main() {
  using dsmooth::GatedStorage;
  constexpr auto k = GatedStorage::kFloat64;
  // batch, height, width, filters, kernel, padding, skips and their channels
  dsmooth::check({{k, 2, 5, 7, 5, 2, 3, 1, 1, 1, {5, 0}}, false, false, false});
  dsmooth::check({{k, 3, 3, 9, 16, 2, 2, 1, 1, 2, {3, 2}}, true, true, true});
  dsmooth::check({{k, 1, 1, 1, 1, 1, 1, 0, 0, 0, {0, 0}}, true, false, false});
  dsmooth::check({{k, 2, 6, 17, 13, 3, 3, 1, 1, 0, {0, 0}}, false, true, true});
  std::printf(dsmooth::failures ? "%d failures\n" : "gated block: all laws hold\n",
              dsmooth::failures);
  return dsmooth::failures != 0;
}
