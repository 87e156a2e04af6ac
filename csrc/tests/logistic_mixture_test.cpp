// Laws of the loss on the CPU that need no Python, run under the sanitizers (run.sh): each tensor
// is a heap block of its very size, so that a read or write beside it is caught.
#include <cmath>
#include <cstdio>
#include <iterator>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/isa.h"
#include "../logistic_mixture/cpu.h"
#include "../logistic_mixture/operands.h"

namespace dsmooth {
namespace {

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

enum class Layout { kContiguous, kChannelsLast, kEveryOther };
constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kChannelsLast, Layout::kEveryOther};

struct Shape {
  int64_t batch, rows, cols, n_mix;
  int channels;
  int64_t n_atoms = 0;
  int64_t n_params() const { return n_mix * (channels == 1 ? 3 : 10) + n_atoms; }
};

std::string to_string(Likelihood likelihood) {
  if (likelihood == Likelihood::kGaussian) return "gaussian";
  return likelihood == Likelihood::kDiscretized ? "discretized" : "continuous";
}

// Memory of one tensor, up to its last element and no further.
template <class T>
struct Buffer {
  std::unique_ptr<T[]> data;
  Planes<T> planes;

  Buffer(const Shape& s, int64_t channels, Layout layout) {
    int64_t c = s.rows * s.cols, row = s.cols, col = 1;
    if (layout == Layout::kChannelsLast) c = 1, row = s.cols * channels, col = channels;
    if (layout == Layout::kEveryOther) c *= 2, row *= 2, col = 2;
    const int64_t image = channels * s.rows * s.cols * (layout == Layout::kEveryOther ? 2 : 1);
    const int64_t last =
        (s.batch - 1) * image + (channels - 1) * c + (s.rows - 1) * row + (s.cols - 1) * col;
    data.reset(new T[static_cast<size_t>(last + 1)]);
    planes = {data.get(), image, c, row, col};
  }

  template <class Set>
  void fill(const Shape& s, int64_t channels, const Set& value) {
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t row = 0; row < s.rows; ++row) {
        for (int64_t col = 0; col < s.cols; ++col) {
          for (int64_t c = 0; c < channels; ++c) {
            planes.at(b, row, col)[c * planes.stride_c] =
                static_cast<T>(value(((b * s.rows + row) * s.cols + col), c));
          }
        }
      }
    }
  }

  Planes<const T> read() const {
    return {planes.data, planes.stride_b, planes.stride_c, planes.stride_row, planes.stride_col};
  }
};

// Raw log-scales meet the clamp, its edge, and scales at which exponentials vanish.
constexpr double kLogScales[] = {-100, -7, -6.99, -2, 0.3, 5, 40, 95};
constexpr double kMeans[] = {0.1, -0.9, 1.5, -30};

template <class T>
struct Results {
  Buffer<T> log_prob, state, grad_x, grad_params;
  Results(const Shape& s, Layout layout)
      : log_prob(s, 1, layout),
        state(s, kStateChannels, layout),
        grad_x(s, s.channels, layout),
        grad_params(s, s.n_params(), layout) {}
};

template <class T>
Results<T> compute(const Shape& s, Layout layout, Likelihood likelihood, int threads,
                   const std::string& instruction_set) {
  Buffer<T> x(s, s.channels, layout), params(s, s.n_params(), layout), grad(s, 1, layout);
  x.fill(s, s.channels, [](int64_t pixel, int64_t c) {
    // Every third pixel is grey: its colours have one level, which may be an atom's.
    const int64_t colour = pixel % 3 == 0 ? 0 : c;
    const int64_t level =
        (37 * pixel + 101 * colour) % 5 == 0 ? (pixel % 2) * 255 : (pixel * 53 + colour) % 256;
    return static_cast<double>(level) / 127.5 - 1;
  });
  const int per_colour = s.channels == 1 ? 2 : 3;
  params.fill(s, s.n_params(), [&](int64_t pixel, int64_t channel) {
    const int64_t group = (channel - s.n_atoms) / s.n_mix - 1;
    const auto pick = static_cast<size_t>(pixel * 7 + channel * 3);
    if (channel < s.n_mix + s.n_atoms) return 8 * std::sin(0.7 * static_cast<double>(pick));
    if (group >= 0 && group % per_colour == 0) return kMeans[pick % std::size(kMeans)];
    if (group >= 0 && group % per_colour == 1) return kLogScales[pick % std::size(kLogScales)];
    return 8 * std::sin(0.7 * static_cast<double>(pick));
  });
  grad.fill(s, 1,
            [](int64_t pixel, int64_t) { return 0.5 + 0.25 * static_cast<double>(pixel % 3); });
  Results<T> out(s, layout);
  LogisticMixtureArgs<T> args;
  args.x = x.read();
  args.params = params.read();
  args.log_prob = out.log_prob.planes;
  args.state = out.state.planes;
  args.batch = s.batch;
  args.rows = s.rows;
  args.cols = s.cols;
  args.n_mix = s.n_mix;
  args.channels = s.channels;
  args.likelihood = likelihood;
  args.smoothing = make_smoothing(0.3);
  args.n_atoms = s.n_atoms;
  for (int64_t j = 0; j < s.n_atoms; ++j) args.atoms[j] = static_cast<uint8_t>(255 - j);
  logistic_mixture_cpu(args, false, threads, instruction_set);
  args.log_prob = {};
  args.grad = grad.read();
  args.grad_x = out.grad_x.planes;
  args.grad_params = out.grad_params.planes;
  logistic_mixture_cpu(args, true, threads, instruction_set);
  return out;
}

template <class T>
void compare(const Shape& s, int64_t channels, const Buffer<T>& got, const Buffer<T>& want,
             const std::string& what) {
  double largest = 0, error = 0;
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t row = 0; row < s.rows; ++row) {
      for (int64_t col = 0; col < s.cols; ++col) {
        for (int64_t c = 0; c < channels; ++c) {
          const double g = got.planes.at(b, row, col)[c * got.planes.stride_c];
          const double w = want.planes.at(b, row, col)[c * want.planes.stride_c];
          if (!std::isfinite(g)) error = std::numeric_limits<double>::infinity();
          error = std::fmax(error, std::fabs(g - w));
          largest = std::fmax(largest, std::fabs(w));
        }
      }
    }
  }
  // Instruction sets differ by rounding, which narrow scales multiply by e^7.
  const double rounding = 1e5 * std::numeric_limits<T>::epsilon();
  const bool alone = s.batch * s.rows * s.cols == 1;  // one pixel may have no slope at all
  expect(error <= rounding * std::fmax(1, largest) && (largest > 0 || alone),
         what + ": off by " + std::to_string(error) + " of " + std::to_string(largest));
}

template <class T>
void all_sets_agree(const Shape& s, Layout layout, Likelihood likelihood) {
  const Results<T> want = compute<T>(s, layout, likelihood, 1, "scalar");
  std::vector<std::string> sets = instruction_sets();
  sets.push_back("scalar");
  for (const std::string& set : sets) {
    for (const int threads : {1, 3}) {
      const Results<T> got = compute<T>(s, layout, likelihood, threads, set);
      const std::string what = set + (sizeof(T) == 4 ? " float32" : " float64") + " " +
                               to_string(likelihood) + " K" + std::to_string(s.n_mix) + " J" +
                               std::to_string(s.n_atoms) + " C" + std::to_string(s.channels) +
                               " cols " + std::to_string(s.cols);
      compare(s, 1, got.log_prob, want.log_prob, what + " log_prob");
      compare(s, s.channels, got.grad_x, want.grad_x, what + " grad_x");
      compare(s, s.n_params(), got.grad_params, want.grad_params, what + " grad_params");
    }
  }
}

// What a tensor of another device says: its memory is not touched.
void devices_must_agree() {
  const int64_t image[] = {2, 1, 3, 4}, dense[] = {12, 12, 4, 1};
  float value = 0;
  MixtureTensors tensors;
  tensors.x = {true, &value, kFloat32Type, {}, 4, image, dense};
  tensors.params = tensors.x;
  tensors.params.place = {Place::kCuda, 1};
  std::string message;
  try {
    check_mixture_operands<float>(tensors, {"continuous", {}, 0}, false);
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  expect(message == "params must be on cpu, got cuda:1", "devices differ: " + message);
}

}  // namespace
}  // namespace dsmooth

int main() {
  using namespace dsmooth;
  devices_must_agree();
  for (const int channels : {1, 3}) {
    for (const Layout layout : kLayouts) {
      for (const Likelihood likelihood :
           {Likelihood::kContinuous, Likelihood::kDiscretized, Likelihood::kGaussian}) {
        for (const Shape s : {Shape{1, 1, 1, 1, channels}, Shape{2, 3, 7, 10, channels},
                              Shape{1, 2, 17, 3, channels}, Shape{2, 1, 48, 10, channels}}) {
          all_sets_agree<float>(s, layout, likelihood);
          all_sets_agree<double>(s, layout, likelihood);
        }
      }
      for (const Shape s : {Shape{1, 1, 1, 1, channels, 1}, Shape{2, 3, 7, 10, channels, 5},
                            Shape{1, 2, 17, 3, channels, 256}, Shape{2, 1, 48, 10, channels, 1}}) {
        all_sets_agree<float>(s, layout, Likelihood::kDiscretized);
        all_sets_agree<double>(s, layout, Likelihood::kDiscretized);
      }
    }
  }
  if (failures == 0) std::printf("logistic mixture: all laws hold\n");
  return failures == 0 ? 0 : 1;
}
