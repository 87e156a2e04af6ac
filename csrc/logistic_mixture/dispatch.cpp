// Chooses the instruction set at run time and splits the pixels over threads.
#include <algorithm>
#include <memory>
#include <new>
#include <string>

#include "../common/isa.h"
#include "../common/parallel.h"
#include "logistic_mixture.h"

namespace dsmooth {

#define DSMOOTH_SET(name)           \
  namespace name {                  \
  MixtureKernels mixture_kernels(); \
  }
LOSS_SETS
#undef DSMOOTH_SET

const MixtureKernels& find_mixture_kernels(const std::string& instruction_set) {
#define DSMOOTH_SET(name) {#name, &name::mixture_kernels},
  static const PerInstructionSet<MixtureKernels> sets{LOSS_SETS};
#undef DSMOOTH_SET
  return sets.find(instruction_set);
}

template <class T>
void logistic_mixture_cpu(const LogisticMixtureArgs<T>& args, bool backward, int threads,
                          const std::string& instruction_set) {
  const MixtureKernel<T>& kernel = find_mixture_kernels(instruction_set).of<T>();
  const auto run = backward ? kernel.backward : kernel.forward;
  const int64_t blocks_per_row = (args.cols + kernel.lanes - 1) / kernel.lanes;
  const int64_t blocks = args.batch * args.rows * blocks_per_row;
  const int64_t parts = std::clamp<int64_t>(threads, 1, std::max<int64_t>(blocks, 1));
  // Memory is taken here, where failing may throw, and not in the threads.
  const size_t scratch_size = static_cast<size_t>(kScratchPerComponent * args.n_mix +
                                                  kScratchPerAtom * args.n_atoms + kScratchFixed) *
                              kernel.lanes;
  constexpr std::align_val_t kAlignment{64};
  const auto release = [=](T* memory) { ::operator delete(memory, kAlignment); };
  const std::unique_ptr<T, decltype(release)> scratch(
      static_cast<T*>(::operator new(sizeof(T) * scratch_size * parts, kAlignment)), release);
  parallel_for(parts, [&](int64_t part) {
    run(args, blocks * part / parts, blocks * (part + 1) / parts,
        scratch.get() + scratch_size * part);
  });
}

template void logistic_mixture_cpu<float>(const LogisticMixtureArgs<float>&, bool, int,
                                          const std::string&);
template void logistic_mixture_cpu<double>(const LogisticMixtureArgs<double>&, bool, int,
                                           const std::string&);

}  // namespace dsmooth
