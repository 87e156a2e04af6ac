// Wrong programs for the sampler: a small right one, some of whose numbers are changed. One that
// passes the check is drawn from, by the CPU's worker and by that of CUDA on the host. The image
// must not depend on how the work is shared out.
//   fuzz_program -max_total_time=S [-seed=N]   random inputs for S seconds
//   fuzz_program FILE                          one input, again
// An input is the bytes of the choices. It is written to crash-input before it runs, and stays if
// the process ends there. A compiler that has libFuzzer makes the inputs itself.
#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <vector>

#include "../common/isa.h"
#include "../sampler/sampler_cpu.h"
#include "sampler_block.h"
#include "sampler_toy.h"

namespace dsmooth::sampler {
namespace {

// Reads bytes; behind the last there are zeros.
class Choices {
 public:
  Choices(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  bool done() const { return at_ == end_; }
  // 0 .. count - 1, for at most 2^16.
  size_t below(size_t count) {
    const size_t low = byte();
    return (count > 256 ? low * 256 + byte() : low) % count;
  }
  template <class T, size_t N>
  T one_of(const T (&values)[N]) {
    return values[below(N)];
  }

 private:
  uint8_t byte() { return at_ == end_ ? 0 : *at_++; }

  const uint8_t* at_;
  const uint8_t* end_;
};

// Ends the process where a law does not hold, as the sanitizers do.
void must(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s\n", what);
  std::abort();
}

constexpr int kImages = 2, kHeight = 4, kWidth = 4;
constexpr int kNumbers[] = {0, 1, 2, 3, -1, 4, 5, 6, 8, 12, 16, -2, 64, 255, 1 << 20, -(1 << 30)};
constexpr int kExtremes[] = {INT_MAX, INT_MIN, INT_MAX / 3 + 1, INT_MAX / 10 + 1};

// A number near the one that stands there, or another one of the program's size.
int changed(Choices& choices, int number) {
  switch (choices.below(5)) {
    case 0:
      return number == INT_MAX ? 0 : number + 1;
    case 1:
      return number == INT_MIN ? 0 : number - 1;
    case 2:
      return choices.one_of(kExtremes);
    default:
      return choices.one_of(kNumbers);
  }
}

template <class T>
T& any_of(Choices& choices, std::vector<T>& items) {
  return items[choices.below(items.size())];
}

// Every number of a program, and every flag.
void list_fields(Program& program, std::vector<int*>& numbers, std::vector<bool*>& flags) {
  numbers = {&program.image_channels, &program.image_parts, &program.n_mix,         &program.image,
             &program.context,        &program.params,      &program.condition_size};
  flags = {&program.conditioned};
  for (Cache& cache : program.caches) {
    for (int* number : {&cache.level, &cache.channels, &cache.rows}) numbers.push_back(number);
    flags.push_back(&cache.operand);
  }
  for (Op& op : program.ops) {
    for (int* number : {&op.level, &op.row_parity, &op.column_parity, &op.n, &op.residual_in,
                        &op.add, &op.residual_out, &op.act_out, &op.raw_out})
      numbers.push_back(number);
    flags.insert(flags.end(), {&op.gate, &op.split});
    for (Term& term : op.terms) {
      for (int* number : {&term.cache, &term.drow, &term.dcol, &term.taps})
        numbers.push_back(number);
      flags.push_back(&term.row_part);
    }
  }
}

void change(Choices& choices, Program& program) {
  std::vector<int*> numbers;
  std::vector<bool*> flags;
  list_fields(program, numbers, flags);
  Op& op = any_of(choices, program.ops);
  Term& term = any_of(choices, op.terms);
  switch (choices.below(16)) {
    case 0:
      op.phase = static_cast<Phase>(changed(choices, static_cast<int>(op.phase)));
      break;
    case 1:
      if (op.terms.size() > 1) op.terms.pop_back();
      break;
    case 2:
      op.terms.push_back(op.terms.front());
      break;
    case 3:
      op.projection.resize(op.projection.empty() ? 1 : 0);
      break;
    case 4:
      if (!term.weight.empty()) term.weight[choices.below(term.weight.size())] = INFINITY;
      break;
    case 5:
      program.likelihood = static_cast<Likelihood>(choices.below(3));
      break;
    case 6:
      program.atoms.push_back(changed(choices, 0));
      break;
    case 7:
      std::swap(any_of(choices, program.ops), op);
      break;
    case 8:
    case 9: {
      bool& flag = *any_of(choices, flags);
      flag = !flag;
      break;
    }
    default: {
      int& number = *any_of(choices, numbers);
      number = changed(choices, number);
    }
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
      if (!few(term.channels) || !few(term.taps)) continue;
      const int size = op.n * term.taps * term.channels;
      for (auto i = static_cast<int>(term.weight.size()); i < size; ++i)
        term.weight.push_back(0.01f * static_cast<float>(i % 7 - 3));
      term.weight.resize(static_cast<size_t>(size));
    }
  }
}

// Memory of a call, and the images to draw in it.
struct Drawing {
  std::vector<float> context, condition, out;
  Slice all;

  explicit Drawing(const Program& program)
      : context(static_cast<size_t>(kImages * program.image_channels * 16), 0.5f),
        condition(static_cast<size_t>(kImages * program.condition_size), 0.25f),
        out(context.size(), NAN),
        all{0,
            kHeight,
            kWidth,
            1,
            0,
            1.0f,
            program.conditioned ? context.data() : nullptr,
            out.data(),
            nullptr,
            condition.data()} {}
};

std::vector<float> draw(const CpuSampler& sampler, const Program& program, int threads, int slice) {
  Drawing drawing(program);
  sampler.sample({kImages, drawing.all, threads, slice}, [](double) {});
  return drawing.out;
}

template <class T>
void draw_on_the_host(const Program& program) {
  Drawing drawing(program);
  draw_as_cuda<T, 4, 1>(program, drawing.all, kImages, {1, 1 << 20}, 0, Mode::kTurns);
}

bool equal(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); });
}

// A tenth of what a test's machine has, as a program may name caches of any size.
bool is_small(const CpuSampler& sampler) {
  return sampler.bytes_per_image(kHeight, kWidth) < size_t{8} << 20;
}

void run(Choices& choices) {
  const int filters = choices.one_of({1, 3, 5});
  const int channels = choices.one_of({1, 3});
  const auto conditioning = static_cast<Conditioning>(choices.below(3));
  const bool bf16 = choices.below(2) == 1, fit = choices.below(4) != 3;
  const size_t sharing = choices.below(16);  // threads that meet often are slow
  const int condition_size = static_cast<int>(choices.below(3));
  Program program =
      Toy(filters, channels, conditioning, Likelihood::kContinuous, {}, condition_size).take();
  while (!choices.done()) change(choices, program);
  if (fit) fit_weights(program);
  try {
    const CpuSampler sampler(program, "auto", bf16);
    if (!is_small(sampler)) return;
    const std::vector<float> image = draw(sampler, program, 1, 0);
    if (sharing == 1) must(equal(image, draw(sampler, program, 1, 1)), "another image alone");
    if (sharing == 2) must(equal(image, draw(sampler, program, 3, 2)), "another image with lanes");
    if (sharing == 3) bf16 ? draw_on_the_host<Bf16>(program) : draw_on_the_host<float>(program);
  } catch (const std::invalid_argument&) {  // the program
  } catch (const std::runtime_error&) {     // it is too wide for the device
  }
}

}  // namespace
}  // namespace dsmooth::sampler

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  dsmooth::sampler::Choices choices(data, size);
  dsmooth::sampler::run(choices);
  return 0;
}

#if !defined(DSMOOTH_LIBFUZZER)
int main(int argc, char** argv) {
  constexpr size_t kMostBytes = 24;
  double seconds = 1;
  uint64_t seed = 1;
  for (int i = 1; i < argc; ++i) {
    std::sscanf(argv[i], "-max_total_time=%lf", &seconds);
    std::sscanf(argv[i], "-seed=%" SCNu64, &seed);
    if (!std::filesystem::is_regular_file(argv[i])) continue;
    std::ifstream file(argv[i], std::ios::binary);
    const std::vector<char> input{std::istreambuf_iterator<char>(file), {}};
    return LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  }
  std::mt19937_64 random(seed);
  const auto begin = std::chrono::steady_clock::now();
  const std::chrono::duration<double> run_for(seconds);
  uint64_t count = 0;
  for (; std::chrono::steady_clock::now() - begin < run_for; ++count) {
    std::vector<uint8_t> input(random() % kMostBytes);
    for (uint8_t& byte : input) byte = static_cast<uint8_t>(random());
    std::ofstream("crash-input", std::ios::binary)
        .write(reinterpret_cast<const char*>(input.data()),
               static_cast<std::streamsize>(input.size()));
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::filesystem::remove("crash-input");
  std::printf("%" PRIu64 " inputs of seed %" PRIu64 "\n", count, seed);
  return 0;
}
#endif
