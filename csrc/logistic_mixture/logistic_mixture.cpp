// Checks the loss's tensors against the extents of x, selects the instruction set, and divides the
// pixels among threads.
#include "logistic_mixture.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "../common/isa.h"
#include "../common/parallel.h"

namespace dsmooth {

#define DSMOOTH_SET(name)           \
  namespace name {                  \
  MixtureKernels mixture_kernels(); \
  }
LOSS_SETS
#undef DSMOOTH_SET

namespace {

// A checked tensor (B, channels, H, W), or (B, H, W).
template <class T>
Planes<T> planes(const Borrowed& t, std::initializer_list<int64_t> shape) {
  check_tensor(t, shape, kTypeOf<std::remove_const_t<T>>);
  T* const data = static_cast<T*>(t.data);
  const int64_t* const stride = t.strides;
  if (t.n_dims == 3) return {data, stride[0], 0, stride[1], stride[2]};
  return {data, stride[0], stride[1], stride[2], stride[3]};
}

// K of params with P channels.
int64_t count_components(int64_t n_params, int64_t channels, int64_t n_atoms) {
  const int64_t per_component = channels == 1 ? 3 : 10;
  const int64_t rest = n_params - n_atoms;
  if (rest <= 0 || rest % per_component != 0) {
    const std::string atoms =
        n_atoms == 0 ? "" : ", and " + std::to_string(n_atoms) + " for the atoms";
    refuse("params", "have a multiple of " + std::to_string(per_component) + " channels" + atoms,
           std::to_string(n_params));
  }
  if (rest / per_component > kMaxComponents) {
    refuse("params", "be of at most " + std::to_string(kMaxComponents) + " components",
           std::to_string(rest / per_component));
  }
  return rest / per_component;
}

// If rows are adjacent in every tensor, an image is one long row, without a remainder per row.
template <class T>
void collapse_rows(LogisticMixtureArgs<T>& args) {
  const auto follows = [&](const auto& p) {
    return p.data == nullptr || p.stride_row == args.cols * p.stride_col;
  };
  if (!args.all(follows)) return;
  args.cols *= args.rows;
  args.rows = 1;
}

template <class T>
LogisticMixtureArgs<T> check_operands(const MixtureTensors& t, const MixtureSettings& mixture,
                                      bool backward) {
  LogisticMixtureArgs<T> args;
  args.x = planes<const T>(t.x, {kAny, kAny, kAny, kAny});
  const int64_t batch = t.x.shape[0], channels = t.x.shape[1];
  const int64_t rows = t.x.shape[2], cols = t.x.shape[3];
  if (channels != 1 && channels != 3) refuse("x", "have 1 or 3 channels", std::to_string(channels));
  args.params = planes<const T>(t.params, {batch, kAny, rows, cols});
  const int64_t n_params = t.params.shape[1];
  args.likelihood = likelihood_named(mixture.likelihood);
  check_mixture(args.likelihood, mixture.atoms, mixture.smoothing_scale, channels);
  args.n_atoms = mixture.atoms ? kBytes : 0;
  // A sigma under 1e-12 is negligible next to the smallest s, e^-7, and 1 / sigma^2 must fit a
  // float.
  const double sigma = std::fmax(mixture.smoothing_scale, 1e-12);
  args.smoothing = {std::log(sigma), 1 / (sigma * sigma)};
  args.state = planes<T>(t.state, {batch, kStateChannels, rows, cols});
  args.batch = batch, args.rows = rows, args.cols = cols;
  args.n_mix = count_components(n_params, channels, args.n_atoms);
  args.channels = static_cast<int>(channels);
  for (const Borrowed* result : {&t.log_prob, &t.grad_x, &t.grad_params})
    if (result->given && backward == (result == &t.log_prob))
      refuse(result->name, backward ? "be None with grad" : "be None without grad", "a tensor");
  if (backward)
    args.grad = planes<const T>(t.grad, {batch, rows, cols});
  else
    args.log_prob = planes<T>(t.log_prob, {batch, rows, cols});
  if (t.grad_x.given) args.grad_x = planes<T>(t.grad_x, {batch, channels, rows, cols});
  if (t.grad_params.given)
    args.grad_params = planes<T>(t.grad_params, {batch, n_params, rows, cols});
  backward ? check_apart({&t.grad_x, &t.grad_params}, {&t.x, &t.params, &t.grad, &t.state})
           : check_apart({&t.log_prob, &t.state}, {&t.x, &t.params});
  return args;
}

template <class T>
void run(const MixtureKernel<T>& kernel, const MixtureTensors& tensors,
         const MixtureSettings& settings, int threads) {
  const bool backward = tensors.grad.given;
  LogisticMixtureArgs<T> args = check_operands<T>(tensors, settings, backward);
  // An empty tensor may have extents whose product overflows an int64.
  if (args.batch == 0 || args.rows == 0 || args.cols == 0) return;
  collapse_rows(args);
  const int64_t vectors_per_row = (args.cols + kernel.lanes - 1) / kernel.lanes;
  const int64_t vectors = args.batch * args.rows * vectors_per_row;
  const int64_t shares = std::min<int64_t>(threads, vectors);
  // Memory is allocated here, where a failure may throw, not in the threads.
  const size_t scratch_size = static_cast<size_t>(kScratchPerComponent * args.n_mix +
                                                  kScratchPerAtom * args.n_atoms + kScratchFixed) *
                              kernel.lanes;
  const size_t scratch_lines = lines_of(scratch_size * sizeof(T));
  const std::unique_ptr<Line[]> scratch(new Line[scratch_lines * shares]);
  parallel_for(shares, [&](int64_t share) {
    (backward ? kernel.backward : kernel.forward)(
        args, vectors * share / shares, vectors * (share + 1) / shares,
        reinterpret_cast<T*>(&scratch[scratch_lines * share]));
  });
}

}  // namespace

void run_logistic_mixture(const MixtureTensors& tensors, const MixtureSettings& settings,
                          int threads, const std::string& instruction_set) {
  check_threads(threads);
#define DSMOOTH_SET(name) {#name, &name::mixture_kernels},
  static const PerInstructionSet<MixtureKernels> sets{LOSS_SETS};
#undef DSMOOTH_SET
  const MixtureKernels& kernels = sets.find(instruction_set);
  if (tensors.x.type == kFloat32Type) return run(kernels.float32, tensors, settings, threads);
  if (tensors.x.type == kFloat64Type)
    return run(sets.find("generic").float64, tensors, settings, threads);
  refuse("x", "be float32 or float64", to_string(tensors.x.type));
}

}  // namespace dsmooth
