#include "isa.h"

#include <stdexcept>

namespace dsmooth {
namespace {

struct InstructionSet {
  const char* name;
  bool is_here;
};

// The table of isa.cmake, in its order.
const std::vector<InstructionSet>& known_sets() {
#define HAS(feature) __builtin_cpu_supports(#feature)
#define DSMOOTH_SET(name, is_here) InstructionSet{#name, is_here},
  static const std::vector<InstructionSet> sets{DSMOOTH_SETS};
#undef DSMOOTH_SET
#undef HAS
  return sets;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : known_sets()) {
    if (set.is_here) names.push_back(set.name);
  }
  return names;
}

bool has_instruction_set(const std::string& name) {
  for (const InstructionSet& set : known_sets()) {
    if (set.name == name) return set.is_here;
  }
  return false;
}

int find_instruction_set(const std::string& name) {
  const std::vector<InstructionSet>& sets = known_sets();
  int best = 0;
  for (int i = 0; i < static_cast<int>(sets.size()); ++i) {
    if (sets[i].name == name && !sets[i].is_here) {
      throw std::runtime_error("instruction_set: this CPU or this build lacks " + name);
    }
    if (sets[i].name == name) return i;
    if (sets[i].is_here) best = i;
  }
  if (name == "auto") return best;
  std::string message = "instruction_set must be auto or one of ";
  for (const InstructionSet& set : sets) {
    message += (&set == &sets.front() ? "" : ", ") + std::string(set.name);
  }
  throw std::invalid_argument(message + ", got " + name);
}

}  // namespace dsmooth
