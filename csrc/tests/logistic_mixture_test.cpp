// Invariants of the loss on the CPU that need no Python, run under the sanitizers (run.sh).
#include "../logistic_mixture/logistic_mixture.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "../common/isa.h"
#include "expect.h"
#include "tensor.h"

namespace dsmooth {

#define DSMOOTH_SET(name)                                               \
  namespace name {                                                      \
  template <class T>                                                    \
  void elementary(const T* x, int64_t count, T* exp, T* expm1, T* log); \
  }
VECTOR_SETS
#undef DSMOOTH_SET

namespace {

// The error in units of the last place of the exact value.
template <class T>
double ulps(T got, long double exact) {
  const T near = std::abs(static_cast<T>(exact));
  return static_cast<double>(std::abs(got - exact) / (std::nextafter(near, T(INFINITY)) - near));
}

// exp and exp - 1 from where exp is a normal number and at their ends, log from 1e-30 to 1e30.
template <class T>
void elementary_functions_are_within_two_ulp(void (*elementary)(const T* x, int64_t count, T* exp,
                                                                T* expm1, T* log),
                                             const std::string& set) {
  constexpr size_t kCount = 60002;
  std::vector<T> x{NAN, 0, 1, -10000, -INFINITY}, exp(kCount), expm1(kCount), log(kCount);
  const double lowest = sizeof(T) == 4 ? -87.3 : -708.3;
  while (x.size() < kCount) {
    const double fraction = static_cast<double>(x.size()) / kCount;
    for (const double v : {lowest + (8 - lowest) * fraction, -std::pow(10, 31.9 * fraction - 30),
                           std::pow(10, 60 * fraction - 30)})
      x.push_back(static_cast<T>(v));
  }
  elementary(x.data(), kCount, exp.data(), expm1.data(), log.data());
  double error = std::isnan(exp[0]) && std::isnan(expm1[0]) && std::isnan(log[0]) ? 0 : INFINITY;
  for (size_t i = 1; i < kCount; ++i) {
    const auto v = static_cast<long double>(x[i]);
    if (v > 0) error = std::max(error, ulps(log[i], std::log(v)));
    if (v <= 8) error = std::max({error, ulps(exp[i], std::exp(v)), ulps(expm1[i], std::expm1(v))});
  }
  expect(error <= 2, set + ": elementary functions within " + std::to_string(error) + " ulp");
}

struct Case {
  Layout layout;
  std::string likelihood;
  int64_t channels, batch, rows, cols, n_mix, n_atoms = 0;
};

// Sets all to value(pixel, channel).
template <class Value>
void fill(Tensor& tensor, int64_t channels, const Value& value) {
  const int64_t plane = tensor.size() / channels / tensor.shape(0);
  for (int64_t i = 0; i < tensor.size(); ++i)
    tensor.set(i, value(i / plane / channels * plane + i % plane, i / plane % channels));
}

// As log-scales they cover the clamp, its edge, and scales at which exponentials vanish.
constexpr double kNumbers[] = {-100, -7, -6.99, -2, 0.3, 5, 40, 95, -0.9, 1.5, 0.1};

// log_prob and the gradients with respect to x and params.
std::vector<Tensor> compute(const Case& c, ElementType type, int threads, const std::string& set) {
  const auto image = [&](int64_t channels) {
    return Tensor(type, {c.batch, channels, c.rows, c.cols}, c.layout);
  };
  const auto plane = [&] { return Tensor(type, {c.batch, c.rows, c.cols}, c.layout); };
  const int64_t n_params = c.n_mix * (c.channels == 1 ? 3 : 10) + c.n_atoms;
  Tensor x = image(c.channels), params = image(n_params), state = image(kStateChannels);
  Tensor grad = plane();
  fill(x, c.channels, [](int64_t pixel, int64_t colour) {
    if (pixel % 3 == 0) colour = 0;  // grey: its colours are one byte, which may be an atom's
    const int64_t byte =
        (37 * pixel + 101 * colour) % 5 == 0 ? (pixel % 2) * 255 : (pixel * 53 + colour) % 256;
    return static_cast<double>(byte) / 127.5 - 1;
  });
  fill(params, n_params, [](int64_t pixel, int64_t channel) {
    return kNumbers[(pixel * 7 + channel * 3) % std::size(kNumbers)];
  });
  fill(grad, 1, [](int64_t pixel, int64_t) { return 0.5 + 0.25 * static_cast<double>(pixel % 3); });
  std::vector<Tensor> results;
  results.push_back(plane());
  results.push_back(image(c.channels));
  results.push_back(image(n_params));
  MixtureSettings settings{c.likelihood, {}, 0.3};
  for (int64_t j = 0; j < c.n_atoms; ++j) settings.atoms.push_back(255 - j);
  MixtureTensors tensors{x.borrow(), params.borrow(), results[0].borrow(), state.borrow(), {}, {},
                         {}};
  run_logistic_mixture(tensors, settings, threads, set);
  tensors.log_prob = {}, tensors.grad = grad.borrow();
  tensors.grad_x = results[1].borrow(), tensors.grad_params = results[2].borrow();
  run_logistic_mixture(tensors, settings, threads, set);
  return results;
}

// Every pixel is written, with the same bits for any number of threads.
void results_are_whole(const Case& c) {
  for (const std::string& set : instruction_sets())
    for (const ElementType type : {kFloat32Type, kFloat64Type}) {
      const std::vector<Tensor> single = compute(c, type, 1, set),
                                threaded = compute(c, type, 3, set);
      for (size_t r = 0; r < single.size(); ++r)
        expect(distance(threaded[r], single[r]) == 0,
               set + ", columns " + std::to_string(c.cols) + ": different bits, or not finite");
    }
}

// A tensor on another device is refused before its memory is accessed.
void devices_are_checked() {
  MixtureTensors tensors;
  const Tensor x(kFloat32Type, {2, 1, 3, 4});
  tensors.x = x.borrow("x");
  tensors.x.device = {Device::kCuda, 1};
  const auto run = [&] { run_logistic_mixture(tensors, {"continuous", {}, 0}, 1, "auto"); };
  expect(throws(run, "x must be on cpu, got cuda:1"), "another device");
}

}  // namespace
}  // namespace dsmooth

int main() {
  using namespace dsmooth;
#define DSMOOTH_SET(name)                                                              \
  if (has_instruction_set(#name)) {                                                    \
    elementary_functions_are_within_two_ulp<float>(&name::elementary<float>, #name);   \
    elementary_functions_are_within_two_ulp<double>(&name::elementary<double>, #name); \
  }
  VECTOR_SETS
#undef DSMOOTH_SET
  devices_are_checked();
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kEveryOther})
    for (const int channels : {1, 3}) {
      for (const char* likelihood : {"continuous", "discretized", "gaussian"}) {
        results_are_whole({layout, likelihood, channels, 1, 1, 1, 1});
        results_are_whole({layout, likelihood, channels, 2, 3, 17, 10});
      }
      for (const int64_t n_atoms : {1, 256})
        results_are_whole({layout, "discretized", channels, 2, 2, 48, 3, n_atoms});
    }
  return report();
}
