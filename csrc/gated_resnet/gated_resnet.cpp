// Checks a gated resnet's tensors against its extents, selects the instruction set, and divides the
// images among threads.
#include "gated_resnet.h"

#include <algorithm>
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

// The extents of the letters of the table's shapes. Sizes of products must fit an int64, also those
// of an empty tensor, which may have any extents.
GatedField::Extents read_extents(const Borrowed& x, const Borrowed& conv, const Borrowed& skip,
                                 const Borrowed& skip_2) {
  const auto check = [](const Borrowed& t, int64_t channels, int64_t rows, int64_t pixels) {
    if (t.n_dims != 4) refuse(t.name, "have 4 dimensions", to_string(t.shape, t.n_dims));
    const auto fits = [&](int dim, int64_t most) {
      return 1 <= t.shape[dim] && t.shape[dim] <= most;
    };
    if (fits(1, channels) && fits(2, rows) && fits(3, rows) && t.shape[2] * t.shape[3] <= pixels)
      return;
    refuse(t.name, "have a channel, a row and a column, and not too many", to_string(t.shape, 4));
  };
  for (const Borrowed* t : {&x, &skip, &skip_2})
    if (t->given) check(*t, kMaxChannels, INT32_MAX, INT64_MAX);
  if (!x.given || !conv.given) refuse(x.given ? "conv_in" : "x", "be given", "None");
  check(conv, 2 * kMaxChannels, kMaxTaps, kMaxTaps);
  const int64_t s_1 = skip.given ? skip.shape[1] : 0, s_2 = skip_2.given ? skip_2.shape[1] : 0;
  return {x.shape[0],    x.shape[1], x.shape[2], x.shape[3], conv.shape[2],
          conv.shape[3], s_1 + s_2,  s_1,        s_2};
}

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
  const auto tensor = [&](const std::string& name) -> const Borrowed& {
    static const Borrowed absent;
    const auto operand = operands.find(name);
    return operand == operands.end() ? absent : operand->second;
  };
  const Borrowed &x = tensor("x"), &conv = tensor("conv_in"), &skip = tensor("skip");
  const GatedField::Extents e = read_extents(x, conv, skip, tensor("skip_2"));
  if (x.type != kFloat32Type && x.type != kFloat64Type && x.type != kBFloat16Type)
    refuse("x", "be float32, float64 or bfloat16", to_string(x.type));
  const auto number = [](int64_t n) { return static_cast<int>(n); };
  const bool taps_outside = !is_contiguous(conv);
  if (pad_top < 0 || pad_top >= e.KH || pad_left < 0 || pad_left >= e.KW)
    refuse("padding", "lie inside the kernel",
           std::to_string(pad_top) + " and " + std::to_string(pad_left));

  size_t known = 0;
  std::vector<const Borrowed*> read, written;
  const auto check = [&](const GatedField& f, const char* name, bool needed, bool allowed,
                         bool is_written) {
    const Borrowed& t = tensor(name);
    known += operands.count(name);
    if (needed && !t.given) refuse(name, "be given", "None");
    if (!t.given) return;
    if (!allowed) refuse(name, "be None", "a tensor");
    const bool is_narrow = f.dtype == GatedField::kWeight && x.type == kBFloat16Type;
    const ElementType type = is_narrow ? kFloat32Type : x.type;
    check_tensor(t, f.shape(e), f.dtype == GatedField::kInt64 ? kInt64Type : type);
    const bool last =
        f.layout == GatedField::kChannelsLast || (f.layout == GatedField::kKernel && taps_outside);
    if (last ? !is_channels_last(t) : !is_contiguous(t))
      refuse(name, last ? "be channels_last" : "be contiguous",
             "strides " + to_string(t.strides, t.n_dims));
    (is_written ? written : read).push_back(&t);
  };
  const unsigned met =
      (skip.given ? GatedField::kSkip : 0u) | (tensor("gain_in").given ? GatedField::kGains : 0u);
  for (const GatedField& f : GatedField::table()) {
    const bool is_input = f.group == GatedField::kInput, is_saved = f.group == GatedField::kSaved;
    const bool allowed = is_saved && !backward ? tensor("h").given : (f.with & ~met) == 0;
    const bool needed = allowed && f.presence == GatedField::kNeeded;
    if (!backward || f.group != GatedField::kOutput)
      check(f, f.name, needed, allowed, !backward && !is_input);
    if (!backward || f.gradient == GatedField::kNone) continue;
    // The kernels write the gradients of all parameters, or of none.
    const bool wanted = f.gradient != GatedField::kParameter || tensor("grad_conv_in").given;
    const bool has_gradient = wanted && (!is_input || tensor(f.name).given);
    check(f, f.gradient_name, has_gradient, has_gradient, is_input);
  }
  if (known != operands.size()) refuse("tensors", "have names of the field table", "others");
  check_apart(written, read);
  GatedCall call{};
  call.shape = {x.type,       e.B,          e.H,     e.W,      number(e.F),
                number(e.KH), number(e.KW), pad_top, pad_left, {number(e.S_1), number(e.S_2)},
                taps_outside};
#define FIELD(name, ...)                  \
  call.tensors.name = tensor(#name).data; \
  call.grads.name = tensor("grad_" #name).data;
#include "../../dsmooth/functional/gated_resnet.def"
#undef FIELD
  return call;
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
