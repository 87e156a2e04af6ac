#include "isa.h"

#include <algorithm>
#include <stdexcept>

namespace dsmooth::sampler {
namespace {

bool cpu_has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool cpu_has_avx512(bool bf16) {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         (!bf16 || __builtin_cpu_supports("avx512bf16"));
#else
  return bf16 && false;
#endif
}

}  // namespace

std::vector<std::string> instruction_sets(bool bf16) {
  std::vector<std::string> names{"generic"};
  if (cpu_has_avx2() && isa_avx2(bf16)) names.push_back("avx2");
  if (cpu_has_avx512(bf16) && (bf16 ? isa_avx512_bf16() : isa_avx512())) names.push_back("avx512");
  return names;
}

const Isa& find_isa(const std::string& name, bool bf16) {
  if (name != "auto" && name != "generic" && name != "avx2" && name != "avx512")
    throw std::invalid_argument("instruction_set must be auto, generic, avx2 or avx512, got " +
                                name);
  const std::vector<std::string> names = instruction_sets(bf16);
  const std::string& chosen = name == "auto" ? names.back() : name;
  if (std::find(names.begin(), names.end(), chosen) == names.end())
    throw std::runtime_error("this CPU or this build lacks " + chosen +
                             (bf16 ? " with bfloat16" : ""));
  if (chosen == "avx512") return bf16 ? *isa_avx512_bf16() : *isa_avx512();
  return chosen == "avx2" ? *isa_avx2(bf16) : *isa_generic(bf16);
}

}  // namespace dsmooth::sampler
