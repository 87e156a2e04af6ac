// The check of a gated block's tensors against its extents.
#include <span>
#include <string>

#include "gated_resnet.h"

namespace dsmooth {
namespace {

enum Group { kInput, kOutput, kSaved };
enum Presence { kNeeded, kOptional };
enum Condition : unsigned { kSkip = 1, kGains = 2 };
enum DtypeRule { kImage, kWeight, kInt64 };
enum Layout { kChannelsLast, kKernel, kContiguous };
enum Gradient { kNone, kGradient };

// Letters of the table's shapes; kOne times a number is that number.
enum Letter { kOne, kB, kF, kH, kW, kKH, kKW, kS, kS_1, kS_2, kLetters };
using Extents = std::array<int64_t, kLetters>;

struct Dim {
  int factor = 0;
  Letter letter = kOne;

  constexpr Dim() = default;
  constexpr Dim(int number) : factor(number) {}
  constexpr Dim(Letter extent) : factor(1), letter(extent) {}
};

constexpr Dim operator*(int factor, Dim dim) {
  dim.factor *= factor;
  return dim;
}

struct Field {
  const char* name;
  const char* gradient_name;
  Group group;
  Presence presence;
  unsigned with;  // conditions under which it may be given
  DtypeRule dtype;
  Layout layout;
  Gradient gradient;
  int n_dims;
  Dim shape[4];
};

constexpr Dim B = kB, F = kF, H = kH, W = kW, KH = kKH, KW = kKW, S = kS, S_1 = kS_1, S_2 = kS_2;

template <class... Dims>
constexpr Field make_field(const char* name, const char* gradient_name, Group group,
                           Presence presence, unsigned with, DtypeRule dtype, Layout layout,
                           Gradient gradient, Dims... shape) {
  return {name,  gradient_name, group,    presence,        with,
          dtype, layout,        gradient, sizeof...(Dims), {shape...}};
}

#define DSMOOTH_AND_LIST(...) __VA_OPT__(, ) __VA_ARGS__
#define FIELD(name, group, presence, with, dtype, layout, gradient, shape) \
  make_field(#name, "grad_" #name, group, presence, with, dtype, layout,   \
             gradient DSMOOTH_AND_LIST shape),
constexpr Field kFields[] = {
#include "../../dsmooth/functional/gated_resnet.def"
};
#undef FIELD
#undef DSMOOTH_AND_LIST

std::vector<GatedName> names_of(GatedDirection direction) {
  const bool backward = direction == GatedDirection::kBackward;
  std::vector<GatedName> names;
  for (int i = 0; i < kGatedFields; ++i) {
    const auto field = static_cast<GatedField>(i);
    if (!backward || kFields[i].group != kOutput) names.push_back({kFields[i].name, field, false});
    if (backward && kFields[i].gradient == kGradient) {
      names.push_back({kFields[i].gradient_name, field, true});
    }
  }
  return names;
}

class Checker {
 public:
  Checker(const GatedGiven& given, GatedDirection direction)
      : given_(given), backward_(direction == GatedDirection::kBackward) {
    read_extents();
    conditions_ = (has(GatedField::skip) ? kSkip : 0u) | (has(GatedField::gain_in) ? kGains : 0u);
    const Borrowed& conv = tensor(GatedField::conv_in);
    taps_outside_ = !is_contiguous(conv);
  }

  GatedCall check() {
    GatedCall call;
    call.shape = shape();
    for (int i = 0; i < kGatedFields; ++i) check_field(kFields[i], i);
    check_memory();
#define FIELD(name, ...)                             \
  call.tensors.name = tensor(GatedField::name).data; \
  call.grads.name = gradient(GatedField::name).data;
#include "../../dsmooth/functional/gated_resnet.def"
#undef FIELD
    return call;
  }

 private:
  const Borrowed& tensor(GatedField field) const { return given_.tensors[static_cast<int>(field)]; }
  const Borrowed& gradient(GatedField field) const {
    return given_.gradients[static_cast<int>(field)];
  }
  bool has(GatedField field) const { return tensor(field).given; }

  // The shape of a tensor that extents are read from.
  const int64_t* shape_of(GatedField field, const char* expected) const {
    const Field& f = kFields[static_cast<int>(field)];
    const Borrowed& t = tensor(field);
    if (!t.given) refuse(f.name, "be given", "None");
    if (t.n_dims != 4) refuse(f.name, expected, to_string(t.shape, t.n_dims));
    return t.shape;
  }

  void read_extents() {
    const int64_t* x = shape_of(GatedField::x, "have 4 dimensions");
    const int64_t* conv = shape_of(GatedField::conv_in, "have shape (F, 2 F, kh, kw)");
    extents_ = {1, x[0], conv[0], x[2], x[3], conv[2], conv[3], 0, 0, 0};
    if (has(GatedField::skip)) {
      extents_[kS_1] = shape_of(GatedField::skip, "have 4 dimensions")[1];
    }
    if (has(GatedField::skip_2)) {
      extents_[kS_2] = shape_of(GatedField::skip_2, "have 4 dimensions")[1];
    }
    // An empty tensor may have any: sizes of products must fit an int64.
    check_most({kF, kS_1, kS_2}, kMaxChannels, "channels");
    check_most({kH, kW}, INT32_MAX, "rows and columns");
    for (const GatedField field : {GatedField::x, GatedField::skip, GatedField::skip_2}) {
      const Borrowed& t = tensor(field);
      if (t.given && (t.shape[1] < 1 || t.shape[2] < 1 || t.shape[3] < 1)) {
        refuse(kFields[static_cast<int>(field)].name, "have a channel, a row and a column",
               to_string(t.shape, 4));
      }
    }
    const bool few = conv[2] <= kMaxTaps && conv[3] <= kMaxTaps && conv[2] * conv[3] <= kMaxTaps;
    if (conv[2] < 1 || conv[3] < 1 || !few) {
      refuse("conv_in", "have 1 to " + std::to_string(kMaxTaps) + " taps", to_string(conv, 4));
    }
    extents_[kS] = extents_[kS_1] + extents_[kS_2];
  }

  void check_most(std::initializer_list<Letter> letters, int64_t most, const char* what) const {
    for (const Letter letter : letters) {
      if (extents_[letter] > most) {
        refuse("a gated block", "have at most " + std::to_string(most) + " " + what,
               std::to_string(extents_[letter]));
      }
    }
  }

  GatedShape shape() const {
    const Borrowed& x = tensor(GatedField::x);
    GatedShape s;
    if (x.type == kFloat32Type) {
      s.storage = GatedStorage::kFloat32;
    } else if (x.type == kFloat64Type) {
      s.storage = GatedStorage::kFloat64;
    } else if (x.type == kBFloat16Type) {
      s.storage = GatedStorage::kBFloat16;
    } else {
      refuse("x", "be float32, float64 or bfloat16", to_string(x.type));
    }
    s.batch = extents_[kB], s.height = extents_[kH], s.width = extents_[kW];
    s.filters = static_cast<int>(extents_[kF]);
    s.kernel_h = static_cast<int>(extents_[kKH]), s.kernel_w = static_cast<int>(extents_[kKW]);
    s.n_skips = (has(GatedField::skip) ? 1 : 0) + (has(GatedField::skip_2) ? 1 : 0);
    s.skip_channels[0] = static_cast<int>(extents_[kS_1]);
    s.skip_channels[1] = static_cast<int>(extents_[kS_2]);
    s.taps_outside = taps_outside_;
    return s;
  }

  void check_field(const Field& field, int i) const {
    const Borrowed& t = given_.tensors[i];
    if (field.group == kInput) {
      check_presence(field.name, t, (field.with & ~conditions_) == 0, field.presence == kNeeded,
                     name_of(field.with));
    } else if (field.group == kSaved || !backward_) {
      const bool saved = field.group == kSaved && !backward_;
      check_presence(field.name, t, !saved || has(GatedField::h), true, saved ? "h" : "");
    }
    if (t.given) check_tensor(field.name, t, field);
    if (!backward_ || field.gradient != kGradient) return;
    const bool read = field.group == kOutput;
    const Borrowed& g = given_.gradients[i];
    check_presence(field.gradient_name, g, read || t.given, true, read ? "" : field.name);
    if (g.given) check_tensor(field.gradient_name, g, field);
  }

  static const char* name_of(unsigned with) {
    constexpr const char* kNames[] = {"", "skip", "gain_in", "skip and gain_in"};
    return kNames[with];
  }

  // `with`: what must be given for this to be given.
  static void check_presence(const char* name, const Borrowed& t, bool allowed, bool needed,
                             const char* with) {
    if (t.given == allowed || (!t.given && !needed)) return;
    const std::string what = with;
    if (t.given) refuse(name, "be None without " + what, "a tensor");
    if (allowed) refuse(name, what.empty() ? "be given" : "be given with " + what, "None");
  }

  void check_tensor(const char* name, const Borrowed& t, const Field& field) const {
    std::array<int64_t, 4> expected{};
    for (int i = 0; i < field.n_dims; ++i) {
      expected[i] = field.shape[i].factor * extents_[field.shape[i].letter];
    }
    const std::span<const int64_t> shape(expected.data(), static_cast<size_t>(field.n_dims));
    dsmooth::check_tensor(name, t, shape, type_of(field.dtype));
    check_layout(name, t, field.layout);
  }

  void check_memory() const {
    std::array<Lent, 2 * kGatedFields> lent;
    size_t count = 0;
    for (int i = 0; i < kGatedFields; ++i) {
      const Field& f = kFields[i];
      const bool written = !backward_ && f.group != kInput;
      if (given_.tensors[i].given) lent[count++] = {f.name, &given_.tensors[i], written};
      if (given_.gradients[i].given) {
        lent[count++] = {f.gradient_name, &given_.gradients[i], f.group == kInput};
      }
    }
    check_apart({lent.data(), count});
  }

  ElementType type_of(DtypeRule rule) const {
    const ElementType image = tensor(GatedField::x).type;
    if (rule == kInt64) return kInt64Type;
    if (rule == kImage) return image;
    return image == kFloat64Type ? kFloat64Type : kFloat32Type;
  }

  void check_layout(const char* name, const Borrowed& t, Layout layout) const {
    const bool last = layout == kChannelsLast || (layout == kKernel && taps_outside_);
    if (last ? is_channels_last(t) : is_contiguous(t)) return;
    refuse(name, last ? "be channels_last" : "be contiguous",
           "strides " + to_string(t.strides, t.n_dims));
  }

  const GatedGiven& given_;
  bool backward_;
  Extents extents_{};
  unsigned conditions_ = 0;
  bool taps_outside_ = false;
};

}  // namespace

const std::vector<GatedName>& gated_names(GatedDirection direction) {
  static const std::vector<GatedName> forward = names_of(GatedDirection::kForward);
  static const std::vector<GatedName> backward = names_of(GatedDirection::kBackward);
  return direction == GatedDirection::kForward ? forward : backward;
}

GatedCall check_gated_operands(const GatedGiven& given, GatedDirection direction) {
  return Checker(given, direction).check();
}

}  // namespace dsmooth
