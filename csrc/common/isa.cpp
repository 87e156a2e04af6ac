#include "isa.h"

#include <algorithm>
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
  for (const InstructionSet& set : known_sets())
    if (set.is_here) names.push_back(set.name);
  return names;
}

bool has_instruction_set(const std::string& name) {
  return std::ranges::count(instruction_sets(), name) > 0;
}

int find_instruction_set(const std::string& name) {
  const std::string wanted = name == "auto" ? instruction_sets().back() : name;
  std::string names = "auto or one of ";
  int index = 0;
  for (const auto& [known, is_here] : known_sets()) {
    if (known == wanted && is_here) return index;
    if (known == wanted)
      throw std::runtime_error("instruction_set: this CPU or this build lacks " + name);
    names += (index++ == 0 ? "" : ", ") + std::string(known);
  }
  throw std::invalid_argument("instruction_set must be " + names + ", got " + name);
}

}  // namespace dsmooth
