// Random changes of a program, and weights of the sizes that it then names.
#pragma once

#include <climits>
#include <cstdint>
#include <iterator>
#include <random>
#include <utility>
#include <vector>

#include "../sampler/program.h"

namespace dsmooth::sampler {

using Random = std::mt19937_64;

inline int below(Random& random, int count) {
  return static_cast<int>(random() % static_cast<uint64_t>(count));
}
inline auto& one_of(Random& random, auto& items) {
  return items[below(random, static_cast<int>(std::size(items)))];
}

// Changes a number, a flag, or the order of the operations.
inline void change(Random& random, Program& p) {
  constexpr int kNumbers[] = {
      0, 1, 2, 3, 5, 6, 8, 12, 255, 1 << 20, -1, -2, INT_MIN, INT_MAX, INT_MAX / 3 + 1};
  std::vector<int*> numbers{&p.image_channels, &p.image_addends, &p.n_mix,          &p.image,
                            &p.context,        &p.params,        &p.condition_size, &p.features};
  std::vector<bool*> flags{&p.conditioned, &p.image_again};
  for (Cache& cache : p.caches) {
    numbers.insert(numbers.end(), {&cache.resolution, &cache.channels, &cache.rows});
    flags.push_back(&cache.operand);
  }
  for (Op& op : p.ops) {
    numbers.insert(numbers.end(),
                   {&op.resolution, &op.row_parity, &op.column_parity, &op.n, &op.residual_in,
                    &op.add, &op.residual_out, &op.act_out, &op.raw_out});
    flags.insert(flags.end(), {&op.gate, &op.split});
    for (Term& term : op.terms) {
      numbers.insert(numbers.end(),
                     {&term.cache, &term.drow, &term.dcol, &term.taps, &term.channels});
      flags.push_back(&term.row_part);
    }
  }
  Op& op = one_of(random, p.ops);
  int& number = *one_of(random, numbers);
  const int kind = below(random, 12);
  if (kind == 0)
    std::swap(one_of(random, p.ops), op);
  else if (kind == 1)
    op.terms.push_back(op.terms.front());
  else if (kind == 2)
    op.projection.resize(op.projection.empty() ? 1 : 0);
  else if (kind < 5)
    *one_of(random, flags) ^= true;
  else if (kind < 9)
    number = static_cast<int>(number + (kind < 7 ? 1u : -1u));
  else
    number = one_of(random, kNumbers);
}

// Weights and biases of the sizes that the program names, so that the check goes on to the rest.
inline void fit_weights(Program& program) {
  const auto few = [](int n) { return n >= 1 && n <= 300; };
  if (few(program.features)) program.feature_table.resize(kBytes * program.features, 0.3f);
  for (Op& op : program.ops) {
    if (!few(op.n)) continue;
    op.bias.resize(op.n, 0.1f);
    if (!op.projection.empty() && few(program.condition_size))
      op.projection.resize(op.n * program.condition_size, 0.2f);
    for (Term& term : op.terms)
      if (few(term.channels) && few(term.taps))
        term.weight.resize(op.n * term.taps * term.channels, 0.03f);
  }
}

}  // namespace dsmooth::sampler
