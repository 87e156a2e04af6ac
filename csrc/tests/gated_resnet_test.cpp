// Invariants of the gated resnet on the CPU that need no Python, run under the sanitizers (run.sh):
// every instruction set gives the numbers of the generic one in float64, which
// tests/functional/test_gated_resnet.py compares with the formula, and threads change no bit.
#include "../gated_resnet/gated_resnet.h"

#include <cmath>
#include <map>
#include <string>

#include "../common/isa.h"
#include "expect.h"
#include "tensor.h"

namespace dsmooth {
namespace {

struct Case {
  GatedField::Extents extents;
  int pad_top, pad_left;
  bool gains, image_bias, dropout;
};

bool has(const Case& c, const GatedField& f) {
  const unsigned conditions =
      (c.extents.S_1 > 0 ? GatedField::kSkip : 0u) | (c.gains ? GatedField::kGains : 0u);
  const std::string name = f.name;
  if ((f.with & ~conditions) != 0 || name == "seed") return false;
  if (name == "skip") return c.extents.S_1 > 0;
  if (name == "skip_2") return c.extents.S_2 > 0;
  if (name == "gain_in") return c.gains;
  return name != "image_bias" || c.image_bias;
}

using Numbers = std::map<std::string, Tensor>;

// All tensors of a forward and a backward, given grad_y = cos. frozen: no gradient of a weight.
Numbers compute(const Case& c, ElementType type, int threads, const std::string& set,
                bool frozen = false) {
  Numbers numbers;
  std::map<std::string, Borrowed> forward, backward;
  int seed = 0;
  for (const GatedField& f : GatedField::table()) {
    if (!has(c, f)) continue;
    const bool is_image = f.dtype == GatedField::kImage, is_input = f.group == GatedField::kInput;
    const auto add = [&](const char* name) -> Tensor& {
      const ElementType weight = type == kFloat64Type ? kFloat64Type : kFloat32Type;
      const Layout layout =
          f.layout == GatedField::kChannelsLast ? Layout::kChannelsLast : Layout::kContiguous;
      return numbers.try_emplace(name, is_image ? type : weight, f.shape(c.extents), layout)
          .first->second;
    };
    Tensor& tensor = add(f.name);
    const double scale = is_image ? 2 : f.shape(c.extents).size() == 4 ? 0.3 : 0.5;
    for (int64_t i = 0; is_input && i < tensor.size(); ++i)
      tensor.set(i, scale * std::sin(static_cast<double>(i * i % 997 + ++seed)));
    forward[f.name] = tensor.borrow();
    if (f.group != GatedField::kOutput) backward[f.name] = tensor.borrow();
    if (f.gradient == GatedField::kNone) continue;
    if (frozen && f.gradient == GatedField::kParameter) continue;
    Tensor& grad = add(f.gradient_name);
    for (int64_t i = 0; !is_input && i < grad.size(); ++i)
      grad.set(i, std::cos(static_cast<double>(i)));
    backward[f.gradient_name] = grad.borrow();
  }
  for (const bool is_backward : {false, true}) {
    GatedCall call =
        check_gated_operands(is_backward ? backward : forward, is_backward, c.pad_top, c.pad_left);
    call.dropout = {c.dropout, (uint64_t{5} << 32) + 3, 2, 1, 1u << 21, 1 / 0.75};
    (is_backward ? gated_resnet_backward : gated_resnet_forward)(call, threads, set);
  }
  return numbers;
}

void check(const Case& c) {
  const Numbers exact = compute(c, kFloat64Type, 1, "generic");
  for (const std::string& set : instruction_sets())
    for (const auto& [type, tolerance] :
         {std::pair{kFloat64Type, 1e-13}, {kFloat32Type, 1e-5}, {kBFloat16Type, 0.03}}) {
      const Numbers single = compute(c, type, 1, set), threaded = compute(c, type, 3, set);
      for (const auto& [name, expected] : exact) {
        const std::string what = set + ", " + to_string(type) + ", " + name + ": ";
        expect(distance(single.at(name), expected) < (name == "y" ? 1 : 4) * tolerance,
               what + "different numbers");
        expect(distance(single.at(name), threaded.at(name)) == 0,
               what + "different bits with threads");
      }
      for (const auto& [name, got] : compute(c, type, 3, set, true))
        expect(distance(got, single.at(name)) == 0,
               set + ", " + name + ": different bits if frozen");
    }
}

}  // namespace
}  // namespace dsmooth

int main() {
  // B F H W, kernel, S S_1 S_2, padding
  dsmooth::check({{2, 5, 5, 7, 2, 3, 5, 5, 0}, 1, 1, false, false, false});
  dsmooth::check({{3, 16, 3, 9, 2, 2, 5, 3, 2}, 1, 1, true, true, true});
  dsmooth::check({{1, 1, 1, 1, 1, 1, 0, 0, 0}, 0, 0, true, false, false});
  dsmooth::check({{2, 13, 6, 17, 3, 3, 0, 0, 0}, 1, 1, false, true, true});
  return dsmooth::report();
}
