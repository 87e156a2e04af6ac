// Chooses the instruction set at run time and splits the pixels over threads.
#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <type_traits>

#include "../common/isa.h"
#include "../common/parallel.h"
#include "cpu.h"

namespace dsmooth {

#define DSMOOTH_SET(name)           \
  namespace name {                  \
  LogisticMixtureKernels kernels(); \
  }
LOSS_SETS
#undef DSMOOTH_SET

namespace {

const LogisticMixtureKernels& find_kernels(const std::string& instruction_set) {
#define DSMOOTH_SET(name) {#name, &name::kernels},
  static const PerInstructionSet<LogisticMixtureKernels> sets{LOSS_SETS};
#undef DSMOOTH_SET
  return sets.find(instruction_set);
}

}  // namespace

template <class T>
void logistic_mixture_cpu(const LogisticMixtureArgs<T>& args, bool backward, int threads,
                          const std::string& instruction_set) {
  const LogisticMixtureKernels& kernels = find_kernels(instruction_set);
  const LogisticMixtureKernel<T>& kernel = [&]() -> const LogisticMixtureKernel<T>& {
    if constexpr (std::is_same_v<T, float>) {
      return kernels.float32;
    } else {
      return kernels.float64;
    }
  }();
  const auto run = backward ? kernel.backward : kernel.forward;
  const int64_t blocks_per_row = (args.cols + kernel.lanes - 1) / kernel.lanes;
  const int64_t blocks = args.batch * args.rows * blocks_per_row;
  const int parts = static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(blocks, 1)));
  // Memory is taken here, where failing may throw, and not in the threads.
  const size_t scratch_size = static_cast<size_t>(kScratchPerComponent * args.n_mix +
                                                  kScratchPerAtom * args.n_atoms + kScratchFixed) *
                              kernel.lanes;
  constexpr std::align_val_t kAlignment{64};
  const auto release = [=](T* memory) { ::operator delete(memory, kAlignment); };
  const std::unique_ptr<T, decltype(release)> scratch(
      static_cast<T*>(::operator new(sizeof(T) * scratch_size * parts, kAlignment)), release);
  parallel_for(parts, parts, [&](int64_t first_part, int64_t last_part) {
    for (int64_t part = first_part; part < last_part; ++part) {
      run(args, blocks * part / parts, blocks * (part + 1) / parts,
          scratch.get() + scratch_size * part);
    }
  });
}

template <class T>
void elementary_functions(const T* input, T* exp, T* expm1, T* log, int64_t count,
                          const std::string& instruction_set) {
  const LogisticMixtureKernels& kernels = find_kernels(instruction_set);
  if constexpr (std::is_same_v<T, float>) {
    kernels.elementary_float32(input, exp, expm1, log, count);
  } else {
    kernels.elementary_float64(input, exp, expm1, log, count);
  }
}

template void elementary_functions<float>(const float*, float*, float*, float*, int64_t,
                                          const std::string&);
template void elementary_functions<double>(const double*, double*, double*, double*, int64_t,
                                           const std::string&);
template void logistic_mixture_cpu<float>(const LogisticMixtureArgs<float>&, bool, int,
                                          const std::string&);
template void logistic_mixture_cpu<double>(const LogisticMixtureArgs<double>&, bool, int,
                                           const std::string&);

}  // namespace dsmooth
