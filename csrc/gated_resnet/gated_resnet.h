// The gated resnet of PixelCNN++ on the CPU, forward and backward: y = x + A sigmoid(G),
// (A, G) = conv_out(dropout(concat_elu(h))) + image_bias, h = conv_in(concat_elu(x)) +
// nin(concat_elu(skips)).
// docs/kernels.md has the equations of the backward and the reasons for this shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "../common/tensors.h"

namespace dsmooth {

inline constexpr int kMaxSkips = 2;
inline constexpr int kMaxTaps = 64;           // of a convolution's kernel
inline constexpr int kMaxChannels = 1 << 24;  // of a tensor, so that sizes of products fit an int64

// Activations are in (B, H, W, C) order. Letters: B batch, H W image, F filters, S channels of all
// skips together. Weights, biases and their gradients are float32 (float64 for float64 images).
struct GatedShape {
  ElementType type;  // float32, float64 or bfloat16: of activations and their gradients
  int64_t batch = 0, height = 0, width = 0;
  int filters = 0;
  int kernel_h = 0, kernel_w = 0;
  int pad_top = 0, pad_left = 0;      // the output at (r, c) sees input rows from r - pad_top
  int skip_channels[kMaxSkips] = {};  // 0 for an absent skip
  bool taps_outside = false;  // memory order of kernels: (out, kh, kw, in), else (out, in, kh, kw)

  int taps() const { return kernel_h * kernel_w; }
  int all_skip_channels() const { return skip_channels[0] + skip_channels[1]; }
};

// Elements of concat_elu(h) are counted in (B, H, W, 2F) order; the first image is image
// `first_image` of a larger batch. An element is kept if its word >> 9 >= keep_from. Its word is
// number (element % 4) of the Philox call at counter (element / 4 low, high, layer,
// Stream::kDropout).
struct GatedDropout {
  bool active = false;
  uint64_t seed = 0;
  uint32_t layer = 0;
  int64_t first_image = 0;
  uint32_t keep_from = 0;
  double scale = 1.0;  // of the elements that are kept
};

// The memory of every tensor of the field table, null if absent. With gains g, one per output
// channel, a convolution's weight is w = g v / |v| (weight norm), and the tensors hold v.
struct GatedTensors {
#define FIELD(name, ...) void* name = nullptr;
#include "../../dsmooth/functional/gated_resnet.def"
#undef FIELD
};

struct GatedCall {
  GatedShape shape;
  GatedDropout dropout;
  GatedTensors tensors;  // the forward does not store h or the gates if they are null
  // For the backward. The gradient of bias_in is also that of bias_nin: both are added to h. The
  // gradients of all weights are null if none is needed.
  GatedTensors grads;
};

// A tensor of the field table (gated_resnet.def), which explains the fields.
struct GatedField {
  enum Group { kInput, kOutput, kSaved };
  enum Presence { kNeeded, kOptional };
  enum Condition : unsigned { kSkip = 1, kGains = 2 };
  enum DtypeRule { kImage, kWeight, kInt64 };
  enum Layout { kChannelsLast, kKernel, kContiguous };
  enum Gradient { kNone, kGradient, kParameter };
  // Extents by the letters of the shapes.
  struct Extents {
    int64_t B, F, H, W, KH, KW, S, S_1, S_2;
  };

  const char* name;
  const char* gradient_name;
  Group group;
  Presence presence;
  unsigned with;  // conditions that it requires
  DtypeRule dtype;
  Layout layout;
  Gradient gradient;
  std::vector<int64_t> (*shape)(const Extents& extents);

  static const std::vector<GatedField>& table();
};

// Makes a call, without its dropout, from tensors named as in the field table. Checks the presence,
// shape, dtype, device and memory order of each: what the kernels' memory needs, since Python has
// already explained what a user may have got wrong. Throws std::invalid_argument.
GatedCall check_gated_operands(const std::map<std::string, Borrowed>& operands, bool backward,
                               int pad_top, int pad_left);

// Bytes of the packed weights, of a thread's scratch and of a group's sums. An empty batch may have
// any extents, and needs no scratch.
struct GatedSizes {
  size_t packed, scratch, sums;
};

// The code of one instruction set for one type of activations. The weights are packed once per
// call; `first` and `last` bound a range of images; `scratch` belongs to the caller's thread.
// `sums` are the weight gradients of a group of images, in the packed order, written by backward,
// or null if not needed.
struct GatedKernels {
  GatedSizes (*sizes)(const GatedShape& shape);
  void (*pack_forward)(const GatedCall& call, void* packed);
  void (*pack_backward)(const GatedCall& call, void* packed);
  void (*forward)(const GatedCall& call, const void* packed, int64_t first, int64_t last,
                  void* scratch);
  void (*backward)(const GatedCall& call, const void* packed, int64_t first, int64_t last,
                   void* scratch, void* sums);
  // Adds the sums of all groups, `stride` bytes apart, to the first, in order; this is one of
  // `shares`.
  void (*add_sums)(const GatedShape& shape, void* sums, size_t stride, int64_t groups,
                   int64_t share, int64_t shares);
  // Writes the gradients of the weights from these sums; this is one of `shares`.
  void (*write_gradients)(const GatedCall& call, const void* sums, int64_t share, int64_t shares);
};

// Not every set has every type (sources.cmake); only the generic one has float64.
struct GatedKernelSet {
  GatedKernels float32, float64, bfloat16;
};

// Results do not depend on `threads`: sums over images are taken in groups that depend
// only on the shape. instruction_set: as for find_instruction_set.
void gated_resnet_forward(const GatedCall& call, int threads, const std::string& instruction_set);
void gated_resnet_backward(const GatedCall& call, int threads, const std::string& instruction_set);

}  // namespace dsmooth
