// Wrong tensors for the loss and the gated block: those of a right call, some of whose shapes,
// strides, types or places are changed. A tensor's memory is a heap block that ends with its last
// element, as its description says. Calls that pass the checks are computed.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "../common/tensor_view.h"
#include "../gated_resnet/operands.h"
#include "../logistic_mixture/cpu.h"
#include "../logistic_mixture/operands.h"
#include "fuzz.h"

namespace dsmooth {
namespace {

constexpr size_t kMostBytes = 1 << 20;

// A tensor of Python's: at most four extents and strides, and its memory.
class Lender {
 public:
  Lender(std::vector<int64_t> shape, bool channels_last) {
    n_dims_ = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), shape_.begin());
    constexpr int kLast[] = {1, 3, 2, 0}, kDense[] = {3, 2, 1, 0};
    int64_t stride = 1;
    for (int i = 0; i < n_dims_; ++i) {
      const int dim = channels_last && n_dims_ == 4 ? kLast[i] : kDense[i + 4 - n_dims_];
      strides_[static_cast<size_t>(dim)] = stride;
      stride *= shape_[static_cast<size_t>(dim)];
    }
  }

  void change(Choices& choices) {
    constexpr int64_t kNumbers[] = {0, 1, 2, 3, 4, 5, 7, 64, 65, 256, int64_t{1} << 20};
    const size_t dim = choices.below(4);
    switch (choices.below(10)) {
      case 0:
      case 1:
        shape_[dim] = choices.one_of(kNumbers);
        break;
      case 2:
      case 3:
        strides_[dim] = choices.one_of(kNumbers);
        break;
      case 4:
        n_dims_ = static_cast<int>(choices.below(5));
        break;
      case 5:
        type_ = {choices.byte(), choices.one_of<uint8_t>({8, 16, 32, 64}), 1};
        break;
      case 6:
        device_ = {static_cast<int32_t>(choices.below(3)), static_cast<int32_t>(choices.below(2))};
        break;
      case 7:
        no_memory_ = true;
        break;
      case 8:
        misaligned_ = true;
        break;
      default:
        given_ = !given_;
    }
  }

  void set_type(ElementType type) { type_ = type; }
  void set_given(bool given) { given_ = given; }

  // The description, with memory. It holds while this lives; shared: use that tensor's memory.
  Borrowed lend(const Lender* shared) {
    Borrowed borrowed{given_, nullptr, type_, device_, n_dims_, shape_.data(), strides_.data()};
    const size_t bytes = range_of(borrowed).end;
    if (!given_ || bytes > kMostBytes) return {};
    memory_ = shared != nullptr && shared->memory_ && shared->size_ >= bytes
                  ? shared->memory_
                  : std::shared_ptr<char[]>(new char[bytes + 1]);
    size_ = bytes;
    std::memset(memory_.get(), 0x3c, bytes);  // a small number of each type
    if (!no_memory_) borrowed.data = memory_.get() + (misaligned_ ? 1 : 0);
    return borrowed;
  }

 private:
  std::array<int64_t, 4> shape_{1, 1, 1, 1}, strides_{1, 1, 1, 1};
  int n_dims_ = 0;
  ElementType type_ = kFloat32Type;
  Device device_;
  bool given_ = true, no_memory_ = false, misaligned_ = false;
  std::shared_ptr<char[]> memory_;
  size_t size_ = 0;
};

// Lenders of a call, some of which are changed, and some of which share memory.
class Lenders {
 public:
  Lender& add(std::vector<int64_t> shape, bool channels_last = false) {
    all_.emplace_back(std::move(shape), channels_last);
    return all_.back();
  }
  void change(Choices& choices) {
    while (!choices.done()) all_[choices.below(all_.size())].change(choices);
  }
  Borrowed lend(size_t i, size_t sharing) {
    return all_[i].lend(sharing < i ? &all_[sharing] : nullptr);
  }
  size_t size() const { return all_.size(); }

 private:
  std::deque<Lender> all_;
};

template <class T>
void compute_loss(const MixtureTensors& tensors, const MixtureSettings& settings, bool backward,
                  const std::string& set) {
  const auto args = check_mixture_operands<T>(tensors, settings, backward);
  if (args.batch == 0 || args.rows == 0 || args.cols == 0) return;
  logistic_mixture_cpu(args, backward, 2, set);
}

void loss(Choices& choices) {
  const bool backward = choices.below(2) == 1, wide = choices.below(2) == 1;
  const bool last = choices.below(2) == 1;
  const int64_t colours = choices.one_of<int64_t>({1, 3}), cols = choices.one_of<int64_t>({3, 19});
  const std::string likelihood =
      choices.one_of<const char*>({"discretized", "continuous", "gaussian"});
  const std::string set = choices.one_of<const char*>({"auto", "generic"});
  const int64_t n_params = (colours == 1 ? 3 : 10) * 2 + (likelihood == "discretized" ? 1 : 0);
  const size_t sharing = choices.below(64) - 1;  // none at first
  Lenders lenders;
  for (const int64_t channels : {colours, n_params, int64_t{4}, colours, n_params})
    lenders.add({2, channels, 3, cols}, last).set_type(wide ? kFloat64Type : kFloat32Type);
  for (const bool of_backward : {false, true}) {
    Lender& per_pixel = lenders.add({2, 3, cols});
    per_pixel.set_type(wide ? kFloat64Type : kFloat32Type);
    per_pixel.set_given(of_backward == backward);
  }
  lenders.change(choices);
  const auto lend = [&](size_t i) { return lenders.lend(i, sharing); };
  MixtureTensors tensors;
  tensors.x = lend(0), tensors.params = lend(1), tensors.state = lend(2);
  if (backward) tensors.grad_x = lend(3), tensors.grad_params = lend(4);
  tensors.log_prob = lend(5), tensors.grad = lend(6);
  const MixtureSettings settings{likelihood, {}, 0.5};
  MixtureSettings with_atom = settings;
  if (likelihood == "discretized") with_atom.atoms.push_back(choices.byte());
  if (tensors.x.type == kFloat64Type)
    compute_loss<double>(tensors, with_atom, backward, set);
  else
    compute_loss<float>(tensors, with_atom, backward, set);
}

std::vector<int64_t> shape_of(const std::string& name, int64_t f, int64_t s) {
  if (name == "seed") return {};
  if (name == "x" || name == "y" || name == "h") return {2, f, 3, 4};
  if (name == "skip" || name == "skip_2") return {2, s, 3, 4};
  if (name == "gates") return {2, 2 * f, 3, 4};
  if (name == "conv_in") return {f, 2 * f, 2, 3};
  if (name == "conv_out") return {2 * f, 2 * f, 2, 3};
  if (name == "nin_skip") return {f, 4 * s, 1, 1};
  return {name == "bias_out" || name == "gain_out" ? 2 * f : f};
}

void block(Choices& choices) {
  const auto direction =
      choices.below(2) == 1 ? GatedDirection::kBackward : GatedDirection::kForward;
  const std::string set = choices.one_of<const char*>({"auto", "generic"});
  const ElementType image =
      choices.one_of<ElementType>({kFloat32Type, kFloat64Type, kBFloat16Type});
  const ElementType weight = image == kFloat64Type ? kFloat64Type : kFloat32Type;
  const int64_t filters = choices.one_of<int64_t>({3, 1, 17});
  const int pad_top = choices.one_of({1, 0, 2, -1}), pad_left = choices.one_of({1, 0, 3, -1});
  const size_t sharing = choices.below(64) - 1;
  Lenders lenders;
  for (const GatedName& given : gated_names(direction)) {
    std::string name = given.name;
    if (given.is_gradient) name = name.substr(5);
    const std::vector<int64_t> shape = shape_of(name, filters, 2);
    const bool is_image = shape.size() == 4 && shape[0] == 2 && shape[2] == 3;
    lenders.add(shape, is_image).set_type(name == "seed" ? kInt64Type : is_image ? image : weight);
  }
  lenders.change(choices);
  GatedGiven given;
  for (size_t i = 0; i < lenders.size(); ++i)
    given.at(gated_names(direction)[i]) = lenders.lend(i, sharing);
  GatedCall call = check_gated_operands(given, direction);
  call.shape.pad_top = pad_top, call.shape.pad_left = pad_left;
  call.dropout.active = call.tensors.seed != nullptr;
  call.dropout.keep_from = 1 << 22, call.dropout.scale = 2;
  const bool forward = direction == GatedDirection::kForward;
  (forward ? gated_resnet_forward : gated_resnet_backward)(call, 2, set);
}

}  // namespace
}  // namespace dsmooth

std::vector<FuzzInput> fuzz_seeds() {
  std::vector<FuzzInput> seeds;
  for (uint8_t op = 0; op < 2; ++op)
    for (uint8_t backward = 0; backward < 2; ++backward)
      for (uint8_t type = 0; type < 2; ++type) seeds.push_back({op, backward, type});
  return seeds;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  dsmooth::Choices choices(data, size);
  try {
    choices.below(2) == 0 ? dsmooth::loss(choices) : dsmooth::block(choices);
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
