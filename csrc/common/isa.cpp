#include "isa.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dsmooth {
namespace {

struct InstructionSet {
  const char* name;
  bool is_here;
};

// Whether the system lets this process use the registers of a set that the CPU has. On Linux a
// process must request those of AMX: ARCH_REQ_XCOMP_PERM for XFEATURE_XTILE_DATA.
bool is_permitted(const char* set) {
  if (std::strcmp(set, "amx") != 0) return true;
#if defined(__linux__) && defined(__x86_64__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

// The table of isa.cmake, in its order.
const std::vector<InstructionSet>& known_sets() {
#define HAS(feature) __builtin_cpu_supports(#feature)
#define DSMOOTH_SET(name, is_here) InstructionSet{#name, (is_here) && is_permitted(#name)},
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
