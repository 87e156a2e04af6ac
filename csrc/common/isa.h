// Selection of instruction sets at run time: the sets that are built and that this CPU has, and an
// op's code for each. Their table is in csrc/isa.cmake.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace dsmooth {

// Names of the built instruction sets that this CPU has, the best last.
std::vector<std::string> instruction_sets();

bool has_instruction_set(const std::string& name);

// Index in the table (least set first) of a set that is built and that this CPU has. "auto" means
// the best one. Throws std::invalid_argument for an unknown name, std::runtime_error for a set that
// the CPU or the build lacks.
int find_instruction_set(const std::string& name);

// The code of an op for each instruction set that it is compiled for.
template <class Code>
class PerInstructionSet {
 public:
  // `make` runs only if the CPU has the set, so it may use the set's instructions.
  struct Entry {
    const char* set;
    Code (*make)();
  };

  // In ascending order, the generic set first.
  PerInstructionSet(std::initializer_list<Entry> entries) {
    for (const Entry& entry : entries)
      if (has_instruction_set(entry.set))
        codes_.push_back({find_instruction_set(entry.set), entry.make()});
  }

  // If the op is not compiled for the set, returns the code of the best set below it. Throws as
  // find_instruction_set does.
  const Code& find(const std::string& name) const {
    const int index = find_instruction_set(name);
    size_t best = codes_.size() - 1;
    while (best > 0 && codes_[best].first > index) --best;
    return codes_[best].second;
  }

 private:
  std::vector<std::pair<int, Code>> codes_;  // by index in the table
};

}  // namespace dsmooth
