// Wrong programs for the sampler: a small right one, some of whose numbers are changed. One that
// passes the check is drawn from, by the CPU's worker and by that of CUDA on the host. The image
// must not depend on how the work is shared out.
#include <algorithm>
#include <climits>
#include <cmath>
#include <stdexcept>

#include "../common/isa.h"
#include "../sampler/sampler_cpu.h"
#include "fuzz.h"
#include "sampler_block.h"
#include "sampler_toy.h"

namespace dsmooth::sampler {
namespace {

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

void change_cache(Choices& choices, Cache& cache) {
  switch (choices.below(4)) {
    case 0:
      cache.level = changed(choices, cache.level);
      break;
    case 1:
      cache.channels = changed(choices, cache.channels);
      break;
    case 2:
      cache.rows = changed(choices, cache.rows);
      break;
    default:
      cache.operand = !cache.operand;
  }
}

void change_term(Choices& choices, Term& term) {
  switch (choices.below(6)) {
    case 0:
      term.cache = changed(choices, term.cache);
      break;
    case 1:
      term.drow = changed(choices, term.drow);
      break;
    case 2:
      term.dcol = changed(choices, term.dcol);
      break;
    case 3:
      term.taps = changed(choices, term.taps);
      break;
    case 4:
      term.row_part = !term.row_part;
      break;
    default:
      if (!term.weight.empty()) term.weight[choices.below(term.weight.size())] = INFINITY;
  }
}

void change_op(Choices& choices, Op& op) {
  int* const numbers[] = {&op.level,       &op.row_parity, &op.column_parity, &op.n,
                          &op.residual_in, &op.add,        &op.residual_out,  &op.act_out,
                          &op.raw_out};
  switch (const size_t what = choices.below(15)) {
    case 9:
      op.phase = static_cast<Phase>(changed(choices, static_cast<int>(op.phase)));
      break;
    case 10:
      op.gate = !op.gate;
      break;
    case 11:
      op.split = !op.split;
      break;
    case 12:
      if (op.terms.size() > 1) op.terms.pop_back();
      break;
    case 13:
      op.terms.push_back(op.terms.front());
      break;
    case 14:
      op.projection.resize(op.projection.empty() ? 1 : 0);
      break;
    default:
      *numbers[what] = changed(choices, *numbers[what]);
  }
}

void change_program(Choices& choices, Program& program) {
  int* const numbers[] = {&program.image_channels, &program.image_parts, &program.n_mix,
                          &program.image,          &program.context,     &program.params,
                          &program.condition_size};
  switch (const size_t what = choices.below(11)) {
    case 7:
      program.likelihood = static_cast<Likelihood>(choices.below(3));
      break;
    case 8:
      program.atoms.push_back(changed(choices, 0));
      break;
    case 9:
      program.conditioned = !program.conditioned;
      break;
    case 10:
      std::swap(any_of(choices, program.ops), any_of(choices, program.ops));
      break;
    default:
      *numbers[what] = changed(choices, *numbers[what]);
  }
}

void change(Choices& choices, Program& program) {
  switch (choices.below(5)) {
    case 0:
      return change_program(choices, program);
    case 1:
      return change_cache(choices, any_of(choices, program.caches));
    case 2:
      return change_op(choices, any_of(choices, program.ops));
    default:
      return change_term(choices, any_of(choices, any_of(choices, program.ops).terms));
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

std::vector<FuzzInput> fuzz_seeds() {
  std::vector<FuzzInput> seeds;
  for (uint8_t conditioning = 0; conditioning < 3; ++conditioning)
    for (uint8_t bf16 = 0; bf16 < 2; ++bf16)
      for (uint8_t sharing = 0; sharing < 4; ++sharing)
        for (uint8_t condition_size = 0; condition_size < 2; ++condition_size)
          seeds.push_back({1, 0, conditioning, bf16, 0, sharing, condition_size});
  return seeds;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  dsmooth::Choices choices(data, size);
  dsmooth::sampler::run(choices);
  return 0;
}
