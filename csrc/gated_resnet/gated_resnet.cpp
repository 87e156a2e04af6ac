// The check of a gated block's tensors against its extents; its choice of the instruction set, and
// the split of the images over threads.
#include "gated_resnet.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/isa.h"
#include "../common/parallel.h"

namespace dsmooth {

#define DSMOOTH_SET(name)                \
  namespace name {                       \
  GatedKernelSet gated_resnet_kernels(); \
  }
BLOCK_SETS
#undef DSMOOTH_SET

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

#define DSMOOTH_SHAPE(shape)                                                  \
  [](const Extents& extents) {                                                \
    [[maybe_unused]] const auto& [B, F, H, W, KH, KW, S, S_1, S_2] = extents; \
    return make_shape shape;                                                  \
  }
#define FIELD(name, group, presence, with, dtype, layout, gradient, shape) \
  {#name, "grad_" #name, group, presence, with, dtype, layout, gradient, DSMOOTH_SHAPE(shape)},
const Field kFields[] = {
#include "../../dsmooth/functional/gated_resnet.def"
};
#undef FIELD
#undef DSMOOTH_SHAPE

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

const GatedKernels& find_kernels(ElementType type, const std::string& instruction_set) {
#define DSMOOTH_SET(name) {#name, &name::gated_resnet_kernels},
  static const PerInstructionSet<GatedKernelSet> sets{BLOCK_SETS};
#undef DSMOOTH_SET
  const GatedKernelSet& kernels = sets.find(instruction_set);
  if (type == kFloat64Type) return kernels.float64;
  return type == kBFloat16Type ? kernels.bfloat16 : kernels.float32;
}

void check_padding(const GatedShape& s) {
  const auto refuse = [](const char* name, int limit, int got) {
    throw std::invalid_argument(std::string(name) + " must lie in [0, " + std::to_string(limit) +
                                "), got " + std::to_string(got));
  };
  if (s.pad_top < 0 || s.pad_top >= s.kernel_h) refuse("pad_top", s.kernel_h, s.pad_top);
  if (s.pad_left < 0 || s.pad_left >= s.kernel_w) refuse("pad_left", s.kernel_w, s.pad_left);
}

struct alignas(64) Line {  // of a cache
  char bytes[64];
};

size_t lines(size_t bytes) { return (bytes + sizeof(Line) - 1) / sizeof(Line); }

// Memory that stays with the calling thread: a fresh page costs more than what is computed in it.
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

// About so many pixels are one thread's next piece of work.
constexpr int64_t kPixels = 784;

// Groups of images whose weight gradients are summed apart. A function of the shape alone, so that
// the sum is the same for every thread count; about kPixels each, which makes adding up the sums
// cheap beside computing them.
int64_t count_groups(const GatedShape& s, size_t sums_bytes) {
  constexpr int64_t kFewest = 4, kMostBytes = 64 << 20;
  const int64_t by_pixels = std::max(s.batch * s.height * s.width / kPixels, kFewest);
  const int64_t by_memory = std::max(kMostBytes / static_cast<int64_t>(sums_bytes), kFewest);
  return std::min({s.batch, by_pixels, by_memory});
}

}  // namespace

GatedCall check_gated_operands(const std::map<std::string, Borrowed>& given, bool backward) {
  return Checker(given, backward).check();
}

void gated_resnet_forward(const GatedCall& call, int threads, const std::string& instruction_set) {
  check_padding(call.shape);
  const GatedKernels& kernels = find_kernels(call.shape.type, instruction_set);
  const int64_t batch = call.shape.batch;
  if (batch == 0) return;
  const int64_t pieces =
      std::clamp<int64_t>(batch * call.shape.height * call.shape.width / kPixels, 1, batch);
  const int64_t workers = std::clamp<int64_t>(threads, 1, pieces);
  const size_t scratch_lines = lines(kernels.scratch_bytes(call.shape));
  const size_t packed_lines = lines(kernels.packed_bytes(call.shape));
  Line* const packed = take(packed_lines + scratch_lines * workers);
  Line* const scratch = packed + packed_lines;
  kernels.pack_forward(call, packed);
  parallel_for_each(pieces, static_cast<int>(workers), [&](int64_t piece, int64_t worker) {
    kernels.forward(call, packed, batch * piece / pieces, batch * (piece + 1) / pieces,
                    scratch + scratch_lines * worker);
  });
}

void gated_resnet_backward(const GatedCall& call, int threads, const std::string& instruction_set) {
  check_padding(call.shape);
  const GatedKernels& kernels = find_kernels(call.shape.type, instruction_set);
  const int64_t batch = call.shape.batch;
  const size_t sums_lines = lines(kernels.sums_bytes(call.shape));
  const int64_t groups = count_groups(call.shape, sums_lines * sizeof(Line));
  const int64_t workers = std::clamp<int64_t>(threads, 1, std::max<int64_t>(groups, 1));
  // An empty batch has no memory, and so may have any extent.
  const size_t scratch_lines = batch == 0 ? 0 : lines(kernels.scratch_bytes(call.shape));
  const size_t packed_lines = lines(kernels.packed_bytes(call.shape));
  Line* const packed =
      take(packed_lines + scratch_lines * workers + sums_lines * std::max<int64_t>(groups, 1));
  Line* const scratch = packed + packed_lines;
  Line* const sums = scratch + scratch_lines * workers;
  if (groups > 0) kernels.pack_backward(call, packed);
  parallel_for_each(groups, static_cast<int>(workers), [&](int64_t group, int64_t worker) {
    kernels.backward(call, packed, batch * group / groups, batch * (group + 1) / groups,
                     scratch + scratch_lines * worker, sums + sums_lines * group);
  });
  parallel_for(workers, [&](int64_t part) {
    kernels.add_sums(call.shape, sums, sums_lines * sizeof(Line), groups, part, workers);
  });
  parallel_for(workers, [&](int64_t part) { kernels.write_gradients(call, sums, part, workers); });
}

}  // namespace dsmooth
