// Instruction sets at run time: the built ones that this CPU has, and an op's code for a set by
// its name. Their table is in csrc/isa.cmake.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace dsmooth {

// Names of the instruction sets built that this CPU has, the best last.
std::vector<std::string> instruction_sets();

bool has_instruction_set(const std::string& name);

// Index in the table (least set first) of a set that is built and that this CPU has. "auto" is the
// best one. Throws std::invalid_argument for an unknown name, std::runtime_error for a set that the
// CPU or the build lacks.
int find_instruction_set(const std::string& name);

// The code of an op for each instruction set that it is compiled for.
template <class Code>
class PerInstructionSet {
 public:
  // `make` runs only where the CPU has the set: it may be made of that set's instructions.
  struct Entry {
    const char* set;
    Code (*make)();
  };

  // From the least set on, the generic one first.
  PerInstructionSet(std::initializer_list<Entry> entries) {
    for (const Entry& entry : entries)
      if (has_instruction_set(entry.set))
        codes_.push_back({find_instruction_set(entry.set), entry.make()});
  }

  // For a set that the op is not compiled for, the code of the best one below it. Throws as
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
