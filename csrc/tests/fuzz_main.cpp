// The main program of a fuzz target.
//   fuzz_X -max_total_time=S [-seed=N] [FOLDER]   random inputs for S seconds
//   fuzz_X FILE                                   one input, again
// With libFuzzer this only writes the target's seeds to the folder, its corpus. Else it makes
// inputs itself: random changes of the seeds, and of inputs that were changed before. An input is
// written to crash-input before it runs, and stays if the process ends there.
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "fuzz.h"

namespace {

void write(const std::filesystem::path& path, const FuzzInput& input) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(input.data()),
             static_cast<std::streamsize>(input.size()));
}

}  // namespace

#if defined(DSMOOTH_LIBFUZZER)

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  const std::filesystem::path last = (*argv)[*argc - 1];
  int number = 0;
  if (std::filesystem::is_directory(last))
    for (const FuzzInput& seed : fuzz_seeds())
      write(last / ("seed" + std::to_string(number++)), seed);
  return 0;
}

#else

namespace {

constexpr size_t kLongest = 256, kMostKept = 512;

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed), pool_(fuzz_seeds()) {}

  FuzzInput next() {
    FuzzInput input = pool_[random_() % pool_.size()];
    for (uint64_t i = random_() % 8 + 1; i > 0; --i) change(input);
    if (pool_.size() < kMostKept)
      pool_.push_back(input);
    else
      pool_[random_() % kMostKept] = input;
    return input;
  }

 private:
  void change(FuzzInput& input) {
    const auto byte = static_cast<uint8_t>(random_());
    const auto place = [&] { return static_cast<ptrdiff_t>(random_() % (input.size() + 1)); };
    if (input.size() < kLongest && random_() % 2 == 0) {
      input.insert(input.begin() + place(), byte);
    } else if (!input.empty()) {
      const size_t at = random_() % input.size();
      if (random_() % 4 == 0)
        input.erase(input.begin() + static_cast<ptrdiff_t>(at));
      else
        input[at] = random_() % 2 == 0 ? byte : static_cast<uint8_t>(byte % 8);
    }
  }

  std::mt19937_64 random_;
  std::vector<FuzzInput> pool_;
};

void fuzz(double seconds, uint64_t seed) {
  std::printf("seed %llu; the input at hand is in crash-input\n",
              static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  Mutator mutator(seed);
  const auto begin = std::chrono::steady_clock::now();
  const auto run_for = std::chrono::duration<double>(seconds);
  uint64_t count = 0;
  for (; std::chrono::steady_clock::now() - begin < run_for; ++count) {
    const FuzzInput input = mutator.next();
    write("crash-input", input);
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::remove("crash-input");
  std::printf("%llu inputs\n", static_cast<unsigned long long>(count));
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 1;
  uint64_t seed = 1;
  const auto value_of = [](const char* argument, const char* option) -> const char* {
    const size_t length = std::strlen(option);
    return std::strncmp(argument, option, length) == 0 ? argument + length : nullptr;
  };
  for (int i = 1; i < argc; ++i) {
    if (const char* text = value_of(argv[i], "-max_total_time=")) {
      seconds = std::stod(text);
    } else if (const char* number = value_of(argv[i], "-seed=")) {
      seed = std::stoull(number);
    } else if (argv[i][0] != '-' && std::filesystem::is_regular_file(argv[i])) {
      std::ifstream file(argv[i], std::ios::binary);
      const FuzzInput input{std::istreambuf_iterator<char>(file), {}};
      return LLVMFuzzerTestOneInput(input.data(), input.size());
    }
  }
  fuzz(seconds, seed);
}

#endif
