// The check of a gated block's tensors against its extents.
#include <algorithm>
#include <array>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "gated_resnet.h"

namespace dsmooth {
namespace {

enum Group { kInput, kOutput, kSaved };
enum Presence { kNeeded, kOptional };
enum Condition : unsigned { kSkip = 1, kGains = 2 };
enum DtypeRule { kImage, kWeight, kInt64 };
enum Layout { kChannelsLast, kKernel, kContiguous };
enum Gradient { kNone, kGradient };

// By the letters of the table's shapes.
struct Extents {
  int64_t B, F, H, W, KH, KW, S, S_1, S_2;
};

template <class... Dims>
std::vector<int64_t> make_shape(Dims... dims) {
  return {int64_t{dims}...};
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
  std::vector<int64_t> (*shape)(const Extents& extents);
};

#define FIELD(name, group, presence, with, dtype, layout, gradient, shape)     \
  {#name,                                                                      \
   "grad_" #name,                                                              \
   group,                                                                      \
   presence,                                                                   \
   with,                                                                       \
   dtype,                                                                      \
   layout,                                                                     \
   gradient,                                                                   \
   [](const Extents& extents) {                                                \
     [[maybe_unused]] const auto& [B, F, H, W, KH, KW, S, S_1, S_2] = extents; \
     return make_shape shape;                                                  \
   }},
const Field kFields[] = {
#include "../../dsmooth/functional/gated_resnet.def"
};
#undef FIELD

class Checker {
 public:
  Checker(const std::map<std::string, Borrowed>& given, bool backward) : backward_(backward) {
    std::string known;
    size_t found = 0;
    const auto take = [&](const std::string& name, Borrowed& to) {
      known += (known.empty() ? "" : ", ") + name;
      const auto place = given.find(name);
      if (place == given.end()) return;
      to = place->second;
      ++found;
    };
    for (int i = 0; i < kGatedFields; ++i) {
      if (!backward || kFields[i].group != kOutput) take(kFields[i].name, tensors_[i]);
      if (backward && kFields[i].gradient == kGradient) {
        take(kFields[i].gradient_name, gradients_[i]);
      }
    }
    if (found != given.size()) {
      std::string names;
      for (const auto& [name, tensor] : given) names += (names.empty() ? "'" : ", '") + name + "'";
      throw std::invalid_argument("tensors must be among " + known + ", got [" + names + "]");
    }
    read_extents();
    conditions_ = (has(GatedField::skip) ? kSkip : 0u) | (has(GatedField::gain_in) ? kGains : 0u);
    taps_outside_ = !is_contiguous(tensor(GatedField::conv_in));
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
  const Borrowed& tensor(GatedField field) const { return tensors_[static_cast<int>(field)]; }
  const Borrowed& gradient(GatedField field) const { return gradients_[static_cast<int>(field)]; }
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
    const auto channels_of = [&](GatedField field) {
      return has(field) ? shape_of(field, "have 4 dimensions")[1] : 0;
    };
    const int64_t s_1 = channels_of(GatedField::skip), s_2 = channels_of(GatedField::skip_2);
    // An empty tensor may have any: sizes of products must fit an int64.
    check_most({conv[0], s_1, s_2}, kMaxChannels, "channels");
    check_most({x[2], x[3]}, INT32_MAX, "rows and columns");
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
    extents_ = {x[0], conv[0], x[2], x[3], conv[2], conv[3], s_1 + s_2, s_1, s_2};
  }

  static void check_most(std::initializer_list<int64_t> extents, int64_t most, const char* what) {
    const int64_t largest = std::max(extents);
    if (largest > most) {
      refuse("a gated block", "have at most " + std::to_string(most) + " " + what,
             std::to_string(largest));
    }
  }

  GatedShape shape() const {
    GatedShape s;
    s.type = tensor(GatedField::x).type;
    if (s.type != kFloat32Type && s.type != kFloat64Type && s.type != kBFloat16Type) {
      refuse("x", "be float32, float64 or bfloat16", to_string(s.type));
    }
    s.batch = extents_.B, s.height = extents_.H, s.width = extents_.W;
    s.filters = static_cast<int>(extents_.F);
    s.kernel_h = static_cast<int>(extents_.KH), s.kernel_w = static_cast<int>(extents_.KW);
    s.n_skips = (has(GatedField::skip) ? 1 : 0) + (has(GatedField::skip_2) ? 1 : 0);
    s.skip_channels[0] = static_cast<int>(extents_.S_1);
    s.skip_channels[1] = static_cast<int>(extents_.S_2);
    s.taps_outside = taps_outside_;
    return s;
  }

  void check_field(const Field& field, int i) const {
    constexpr const char* kNames[] = {"", "skip", "gain_in", "skip and gain_in"};
    const Borrowed& t = tensors_[i];
    if (field.group == kInput) {
      check_presence(field.name, t, (field.with & ~conditions_) == 0, field.presence == kNeeded,
                     kNames[field.with]);
    } else if (field.group == kSaved || !backward_) {
      const bool saved = field.group == kSaved && !backward_;
      check_presence(field.name, t, !saved || has(GatedField::h), true, saved ? "h" : "");
    }
    check_tensor(field.name, t, field);
    if (!backward_ || field.gradient != kGradient) return;
    const bool read = field.group == kOutput;
    check_presence(field.gradient_name, gradients_[i], read || t.given, true,
                   read ? "" : field.name);
    check_tensor(field.gradient_name, gradients_[i], field);
  }

  // `with`: what must be given for this to be given.
  static void check_presence(const char* name, const Borrowed& t, bool allowed, bool needed,
                             const std::string& with) {
    if (t.given == allowed || (!t.given && !needed)) return;
    if (t.given) refuse(name, "be None without " + with, "a tensor");
    if (allowed) refuse(name, with.empty() ? "be given" : "be given with " + with, "None");
  }

  void check_tensor(const char* name, const Borrowed& t, const Field& field) const {
    if (!t.given) return;
    dsmooth::check_tensor(name, t, field.shape(extents_), type_of(field.dtype));
    const bool last = field.layout == kChannelsLast || (field.layout == kKernel && taps_outside_);
    if (last ? is_channels_last(t) : is_contiguous(t)) return;
    refuse(name, last ? "be channels_last" : "be contiguous",
           "strides " + to_string(t.strides, t.n_dims));
  }

  void check_memory() const {
    std::vector<Lent> lent;
    for (int i = 0; i < kGatedFields; ++i) {
      const Field& f = kFields[i];
      const bool written = !backward_ && f.group != kInput;
      if (tensors_[i].given) lent.push_back({f.name, &tensors_[i], written});
      if (gradients_[i].given) {
        lent.push_back({f.gradient_name, &gradients_[i], f.group == kInput});
      }
    }
    check_apart(lent);
  }

  ElementType type_of(DtypeRule rule) const {
    const ElementType image = tensor(GatedField::x).type;
    if (rule == kInt64) return kInt64Type;
    if (rule == kImage) return image;
    return image == kFloat64Type ? kFloat64Type : kFloat32Type;
  }

  std::array<Borrowed, kGatedFields> tensors_, gradients_;
  const bool backward_;
  Extents extents_{};
  unsigned conditions_ = 0;
  bool taps_outside_ = false;
};

}  // namespace

GatedCall check_gated_operands(const std::map<std::string, Borrowed>& given, bool backward) {
  return Checker(given, backward).check();
}

}  // namespace dsmooth
