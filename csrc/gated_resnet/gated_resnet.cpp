// Checks a gated resnet's tensors against its extents, selects the instruction set, and divides the
// images among threads.
#include "gated_resnet.h"

#include <algorithm>
#include <initializer_list>
#include <memory>

#include "../common/isa.h"
#include "../common/parallel.h"

namespace dsmooth {

#define DSMOOTH_SET(name)                \
  namespace name {                       \
  GatedKernelSet gated_resnet_kernels(); \
  }
RESNET_SETS
WIDE_SETS
PAIR_SETS
#undef DSMOOTH_SET

template <class... Dims>
static std::vector<int64_t> make_shape(Dims... dims) {
  return {int64_t{dims}...};
}

const std::vector<GatedField>& GatedField::table() {
#define DSMOOTH_SHAPE(shape)                                                  \
  [](const Extents& extents) {                                                \
    [[maybe_unused]] const auto& [B, F, H, W, KH, KW, S, S_1, S_2] = extents; \
    return make_shape shape;                                                  \
  }
#define FIELD(name, group, presence, with, dtype, layout, gradient, shape) \
  {#name, "grad_" #name, group, presence, with, dtype, layout, gradient, DSMOOTH_SHAPE(shape)},
  static const std::vector<GatedField> fields{
#include "../../dsmooth/functional/gated_resnet.def"
  };
#undef FIELD
#undef DSMOOTH_SHAPE
  return fields;
}

namespace {

class Checker {
 public:
  Checker(const std::map<std::string, Borrowed>& operands, bool backward)
      : operands_(operands), backward_(backward) {
    for (const GatedField& f : GatedField::table()) {
      const bool is_input = f.group == GatedField::kInput;
      if (!backward || f.group != GatedField::kOutput)
        slots_.push_back({f.name, &f, false, !backward && !is_input});
      if (backward && f.gradient != GatedField::kNone)
        slots_.push_back({f.gradient_name, &f, true, is_input});
    }
  }

  GatedCall check(int pad_top, int pad_left) {
    check_names();
    read_shape();
    check_padding("pad_top", pad_top, call_.shape.kernel_h);
    check_padding("pad_left", pad_left, call_.shape.kernel_w);
    call_.shape.pad_top = pad_top, call_.shape.pad_left = pad_left;
    std::vector<const Borrowed*> written, read;
    for (const Slot& slot : slots_) {
      const Borrowed& t = tensor(slot.name);
      check_presence(slot, t.given);
      if (!t.given) continue;
      check_field(*slot.field, t);
      (slot.written ? written : read).push_back(&t);
    }
    check_apart(written, read);
#define FIELD(name, ...)                   \
  call_.tensors.name = tensor(#name).data; \
  call_.grads.name = tensor("grad_" #name).data;
#include "../../dsmooth/functional/gated_resnet.def"
#undef FIELD
    return call_;
  }

 private:
  // A tensor of the forward or backward: one of the table, or its gradient.
  struct Slot {
    const char* name;
    const GatedField* field;
    bool gradient, written;
  };

  const Borrowed& tensor(const std::string& name) const {
    static const Borrowed absent;
    const auto operand = operands_.find(name);
    return operand == operands_.end() ? absent : operand->second;
  }

  void check_names() {
    std::string known, names;
    size_t count = 0;
    for (const auto& [name, field, gradient, written] : slots_) {
      known += (known.empty() ? "" : ", ") + std::string(name);
      count += operands_.count(name);
      if (gradient && field->gradient == GatedField::kParameter && tensor(name).given)
        given_weight_gradient_ = name;
    }
    for (const auto& [name, tensor] : operands_)
      names += (names.empty() ? "'" : ", '") + name + "'";
    if (count != operands_.size()) refuse("tensors", "be among " + known, "[" + names + "]");
  }

  // The shape of a tensor that determines extents.
  const int64_t* shape_of(const char* name, const char* expected) const {
    const Borrowed& t = tensor(name);
    if (!t.given) refuse(name, "be given", "None");
    if (t.n_dims != 4) refuse(name, expected, to_string(t.shape, t.n_dims));
    return t.shape;
  }

  void read_shape() {
    const int64_t* x = shape_of("x", "have 4 dimensions");
    const int64_t* conv = shape_of("conv_in", "have shape (F, 2 F, kh, kw)");
    const auto channels_of = [&](const char* name) {
      return tensor(name).given ? shape_of(name, "have 4 dimensions")[1] : 0;
    };
    const int64_t s_1 = channels_of("skip"), s_2 = channels_of("skip_2");
    // An empty tensor may have any extents, but sizes of products must fit an int64.
    check_most({conv[0], s_1, s_2}, kMaxChannels, "channels");
    check_most({x[2], x[3]}, INT32_MAX, "rows and columns");
    for (const char* name : {"x", "skip", "skip_2"}) {
      const Borrowed& t = tensor(name);
      if (t.given && (t.shape[1] < 1 || t.shape[2] < 1 || t.shape[3] < 1))
        refuse(name, "have a channel, a row and a column", to_string(t.shape, 4));
    }
    const bool few = conv[2] <= kMaxTaps && conv[3] <= kMaxTaps && conv[2] * conv[3] <= kMaxTaps;
    if (conv[2] < 1 || conv[3] < 1 || !few)
      refuse("conv_in", "have 1 to " + std::to_string(kMaxTaps) + " taps", to_string(conv, 4));
    extents_ = {x[0], conv[0], x[2], x[3], conv[2], conv[3], s_1 + s_2, s_1, s_2};
    const ElementType type = tensor("x").type;
    if (type != kFloat32Type && type != kFloat64Type && type != kBFloat16Type)
      refuse("x", "be float32, float64 or bfloat16", to_string(type));
    const auto number = [](int64_t n) { return static_cast<int>(n); };
    GatedShape& shape = call_.shape;
    shape = {type, x[0], x[2], x[3], number(conv[0]), number(conv[2]), number(conv[3])};
    shape.skip_channels[0] = number(s_1), shape.skip_channels[1] = number(s_2);
    shape.taps_outside = !is_contiguous(tensor("conv_in"));
  }

  static void check_padding(const char* name, int got, int limit) {
    if (got < 0 || got >= limit)
      refuse(name, "lie in [0, " + std::to_string(limit) + ")", std::to_string(got));
  }

  static void check_most(std::initializer_list<int64_t> extents, int64_t most, const char* what) {
    const int64_t largest = std::max(extents);
    if (largest > most) {
      refuse("a gated resnet", "have at most " + std::to_string(most) + " " + what,
             std::to_string(largest));
    }
  }

  void check_presence(const Slot& slot, bool given) const {
    const GatedField& f = *slot.field;
    const bool is_weight_gradient = slot.gradient && f.gradient == GatedField::kParameter;
    bool allowed = true, needed = true;
    if (f.group == GatedField::kInput && slot.gradient) {
      allowed = tensor(f.name).given;
      needed = !is_weight_gradient || given_weight_gradient_ != nullptr;
    } else if (f.group == GatedField::kInput) {
      const unsigned met = (tensor("skip").given ? GatedField::kSkip : 0u) |
                           (tensor("gain_in").given ? GatedField::kGains : 0u);
      allowed = (f.with & ~met) == 0;
      needed = f.presence == GatedField::kNeeded;
    } else if (f.group == GatedField::kSaved && !backward_) {
      allowed = tensor("h").given;
    }
    if (given && !allowed) refuse(slot.name, "be None", "a tensor");
    if (given || !allowed || !needed) return;
    const std::string all = is_weight_gradient ? " with " + std::string(given_weight_gradient_) +
                                                     " (all gradients of weights are, or none)"
                                               : "";
    refuse(slot.name, "be given" + all, "None");
  }

  void check_field(const GatedField& f, const Borrowed& t) const {
    ElementType type = call_.shape.type;
    if (f.dtype == GatedField::kInt64) type = kInt64Type;
    if (f.dtype == GatedField::kWeight && type == kBFloat16Type) type = kFloat32Type;
    check_tensor(t, f.shape(extents_), type);
    const bool last = f.layout == GatedField::kChannelsLast ||
                      (f.layout == GatedField::kKernel && call_.shape.taps_outside);
    if (last ? is_channels_last(t) : is_contiguous(t)) return;
    refuse(t.name, last ? "be channels_last" : "be contiguous",
           "strides " + to_string(t.strides, t.n_dims));
  }

  const std::map<std::string, Borrowed>& operands_;
  const bool backward_;
  std::vector<Slot> slots_;
  const char* given_weight_gradient_ = nullptr;  // a given gradient of a weight
  GatedField::Extents extents_{};
  GatedCall call_;
};

const GatedKernels& find_kernels(ElementType type, const std::string& instruction_set) {
#define DSMOOTH_SET(name) {#name, &name::gated_resnet_kernels},
  static const PerInstructionSet<GatedKernelSet> float32_sets{RESNET_SETS WIDE_SETS},
      bfloat16_sets{RESNET_SETS PAIR_SETS};
#undef DSMOOTH_SET
  if (type == kBFloat16Type) return bfloat16_sets.find(instruction_set).bfloat16;
  const GatedKernelSet& kernels = float32_sets.find(instruction_set);
  return type == kFloat64Type ? float32_sets.find("generic").float64 : kernels.float32;
}

// Memory that the calling thread keeps: a new page costs more than the computation in it.
Line* take(size_t count) {
  thread_local std::unique_ptr<Line[]> memory;
  thread_local size_t size = 0;
  if (count > size) {
    size = 0;
    memory.reset();
    memory.reset(new Line[count]);
    size = count;
  }
  return memory.get();
}

// Approximate number of pixels per work item.
constexpr int64_t kPixels = 784;

// Groups of images whose weight gradients are summed separately. They depend only on the shape, so
// that the sum is the same for every thread count. Each has about kPixels, so that adding the sums
// is cheap compared with computing them.
int64_t count_groups(const GatedShape& s, size_t sums_bytes) {
  constexpr int64_t kFewest = 4, kMostBytes = 64 << 20;
  const int64_t by_pixels = std::max(s.batch * s.height * s.width / kPixels, kFewest);
  const int64_t by_memory =
      std::max(kMostBytes / std::max<int64_t>(static_cast<int64_t>(sums_bytes), 1), kFewest);
  return std::min({s.batch, by_pixels, by_memory});
}

}  // namespace

GatedCall check_gated_operands(const std::map<std::string, Borrowed>& operands, bool backward,
                               int pad_top, int pad_left) {
  return Checker(operands, backward).check(pad_top, pad_left);
}

void gated_resnet_forward(const GatedCall& call, int threads, const std::string& instruction_set) {
  const GatedKernels& kernels = find_kernels(call.shape.type, instruction_set);
  const int64_t batch = call.shape.batch;
  if (batch == 0) return;
  const int64_t pieces =
      std::clamp<int64_t>(batch * call.shape.height * call.shape.width / kPixels, 1, batch);
  const int64_t workers = std::clamp<int64_t>(threads, 1, pieces);
  const GatedSizes sizes = kernels.sizes(call.shape);
  const size_t scratch_lines = lines_of(sizes.scratch), packed_lines = lines_of(sizes.packed);
  Line* const packed = take(packed_lines + scratch_lines * workers);
  Line* const scratch = packed + packed_lines;
  kernels.pack_forward(call, packed);
  parallel_for_each(pieces, workers, [&](int64_t piece, int64_t worker) {
    kernels.forward(call, packed, batch * piece / pieces, batch * (piece + 1) / pieces,
                    scratch + scratch_lines * worker);
  });
}

void gated_resnet_backward(const GatedCall& call, int threads, const std::string& instruction_set) {
  const GatedKernels& kernels = find_kernels(call.shape.type, instruction_set);
  const int64_t batch = call.shape.batch;
  const GatedSizes sizes = kernels.sizes(call.shape);
  const size_t scratch_lines = lines_of(sizes.scratch), packed_lines = lines_of(sizes.packed);
  const bool frozen = call.grads.conv_in == nullptr;  // no weight gradient is needed
  const size_t sums_lines = frozen ? 0 : lines_of(sizes.sums);
  const int64_t groups = count_groups(call.shape, sums_lines * sizeof(Line));
  const int64_t n_sums = std::max<int64_t>(groups, 1);  // an empty batch has sums of zero
  const int64_t workers = std::clamp<int64_t>(threads, 1, n_sums);
  Line* const packed = take(packed_lines + scratch_lines * workers + sums_lines * n_sums);
  Line* const scratch = packed + packed_lines;
  Line* const sums = scratch + scratch_lines * workers;
  if (groups > 0) kernels.pack_backward(call, packed);
  parallel_for_each(groups, workers, [&](int64_t group, int64_t worker) {
    kernels.backward(call, packed, batch * group / groups, batch * (group + 1) / groups,
                     scratch + scratch_lines * worker,
                     frozen ? nullptr : sums + sums_lines * group);
  });
  if (frozen) return;
  parallel_for(workers, [&](int64_t share) {
    kernels.add_sums(call.shape, sums, sums_lines * sizeof(Line), groups, share, workers);
  });
  parallel_for(workers,
               [&](int64_t share) { kernels.write_gradients(call, sums, share, workers); });
}

}  // namespace dsmooth
