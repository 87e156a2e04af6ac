// Wrong programs for the sampler: a small right one, some of whose numbers are changed. One that
// passes the check is drawn from, by the CPU's worker and by that of CUDA on the host. The image
// must not depend on how the work is shared out. tests/faults makes wrong programs in Python, too.
//   fuzz_program SECONDS [SEED]   a program of each seed from SEED on, for so long
// The file fuzz-seed has the last seed: where the process ends, that of the wrong program.
#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <stdexcept>
#include <vector>

#include "../sampler/sampler_cpu.h"
#include "sampler_block.h"
#include "sampler_toy.h"

namespace dsmooth::sampler {
namespace {

class Choices {
 public:
  explicit Choices(uint64_t seed) : random_(seed) {}

  int below(int count) { return static_cast<int>(random_() % static_cast<uint64_t>(count)); }
  template <class Items>
  auto& one_of(Items& items) {
    return items[static_cast<size_t>(below(static_cast<int>(std::size(items))))];
  }

 private:
  std::mt19937_64 random_;
};

// Ends the process where a law does not hold, as the sanitizers do.
void must(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s\n", what);
  std::abort();
}

constexpr int kImages = 2, kHeight = 4, kWidth = 4;
constexpr int kNumbers[] = {0,   1,       2,          3,       -1,      4,
                            5,   6,       8,          12,      16,      -2,
                            255, 1 << 20, -(1 << 30), INT_MAX, INT_MIN, INT_MAX / 3 + 1};

// Changes a number, a flag, or the order of the operations and terms.
void change(Choices& choices, Program& program) {
  std::vector<int*> numbers{&program.image_channels, &program.image_parts, &program.n_mix,
                            &program.image,          &program.context,     &program.params,
                            &program.condition_size};
  std::vector<bool*> flags{&program.conditioned};
  for (Cache& cache : program.caches) {
    numbers.insert(numbers.end(), {&cache.level, &cache.channels, &cache.rows});
    flags.push_back(&cache.operand);
  }
  for (Op& op : program.ops) {
    numbers.insert(numbers.end(),
                   {&op.level, &op.row_parity, &op.column_parity, &op.n, &op.residual_in, &op.add,
                    &op.residual_out, &op.act_out, &op.raw_out});
    flags.insert(flags.end(), {&op.gate, &op.split});
    for (Term& term : op.terms) {
      numbers.insert(numbers.end(), {&term.cache, &term.drow, &term.dcol, &term.taps});
      flags.push_back(&term.row_part);
    }
  }
  Op& op = choices.one_of(program.ops);
  int& number = *choices.one_of(numbers);
  bool& flag = *choices.one_of(flags);
  switch (choices.below(12)) {
    case 0:
      return std::swap(choices.one_of(program.ops), op);
    case 1:
      return op.terms.push_back(op.terms.front());
    case 2:
      return op.projection.resize(op.projection.empty() ? 1 : 0);
    case 3:
    case 4:
      flag = !flag;
      return;
    case 5:
    case 6:
      number += number < INT_MAX ? 1 : 0;
      return;
    case 7:
    case 8:
      number -= number > INT_MIN ? 1 : 0;
      return;
    default:
      number = choices.one_of(kNumbers);
  }
}

// Weights and biases of the sizes that the program names, so that the check goes on to the rest.
void fit_weights(Program& program) {
  const auto few = [](int n) { return n >= 1 && n <= 64; };
  for (Op& op : program.ops) {
    if (!few(op.n)) continue;
    op.bias.resize(static_cast<size_t>(op.n), 0.1f);
    if (!op.projection.empty() && few(program.condition_size))
      op.projection.resize(static_cast<size_t>(op.n * program.condition_size), 0.2f);
    for (Term& term : op.terms) {
      const auto cache = static_cast<size_t>(term.cache);
      if (cache < program.caches.size()) term.channels = program.caches[cache].channels;
      if (few(term.channels) && few(term.taps))
        term.weight.resize(static_cast<size_t>(op.n * term.taps * term.channels), 0.03f);
    }
  }
}

std::vector<float> draw(const CpuSampler& sampler, const Program& program, int threads, int slice) {
  Drawing drawing(program, kImages, kHeight, kWidth);
  sampler.sample({kImages, drawing.all, threads, slice}, [](double) {});
  return drawing.out;
}

template <class T>
void draw_on_the_host(const Program& program) {
  Drawing drawing(program, kImages, kHeight, kWidth);
  draw_as_cuda<T, 4, 1>(program, drawing.all, kImages, {1, 1 << 20}, 0, Mode::kTurns);
}

bool equal(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); });
}

void run(uint64_t seed) {
  Choices choices(seed);
  constexpr int kFilters[] = {1, 3, 5}, kChannels[] = {1, 3};
  const int filters = choices.one_of(kFilters), channels = choices.one_of(kChannels);
  const auto conditioning = static_cast<Conditioning>(choices.below(3));
  const int condition_size = choices.below(3);
  Program program =
      Toy(filters, channels, conditioning, Likelihood::kContinuous, {}, condition_size).take();
  for (int changes = choices.below(5); changes > 0; --changes) change(choices, program);
  if (choices.below(4) > 0) fit_weights(program);
  const bool bf16 = choices.below(2) == 1;
  try {
    const CpuSampler sampler(program, "auto", bf16);
    // A tenth of what a test's machine has, as a program may name caches of any size.
    if (sampler.bytes_per_image(kHeight, kWidth) > size_t{8} << 20) return;
    const std::vector<float> image = draw(sampler, program, 1, 0);
    const int sharing = choices.below(16);  // threads that meet often are slow
    if (sharing == 1) must(equal(image, draw(sampler, program, 1, 1)), "another image alone");
    if (sharing == 2) must(equal(image, draw(sampler, program, 3, 2)), "another image with lanes");
    if (sharing == 3) bf16 ? draw_on_the_host<Bf16>(program) : draw_on_the_host<float>(program);
  } catch (const std::invalid_argument&) {  // the program
  } catch (const std::runtime_error&) {     // it is too wide for the device
  }
}

}  // namespace
}  // namespace dsmooth::sampler

int main(int argc, char** argv) {
  const std::chrono::duration<double> run_for(argc > 1 ? std::atof(argv[1]) : 1);
  const uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const auto begin = std::chrono::steady_clock::now();
  uint64_t seed = first;
  for (; std::chrono::steady_clock::now() - begin < run_for; ++seed) {
    std::ofstream("fuzz-seed") << seed << '\n';
    dsmooth::sampler::run(seed);
  }
  std::printf("%" PRIu64 " programs from seed %" PRIu64 "\n", seed - first, first);
  return 0;
}
