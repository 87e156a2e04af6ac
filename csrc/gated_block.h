// The gated residual block of PixelCNN++ on the CPU, forward and backward: y = x + A sigmoid(G),
// (A, G) = conv_out(dropout(concat_elu(h))), h = conv_in(concat_elu(x)) + nin(concat_elu(skips)).
// docs/kernels.md has the equations of the backward and the reasons for this shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dsmooth {

enum class GatedStorage { kFloat32, kFloat64, kBFloat16 };  // of activations and their gradients

inline constexpr int kMaxSkips = 2;
inline constexpr int kMaxTaps = 64;  // of a convolution's kernel

// Activations lie in (B, H, W, C) order. Letters: B batch, H W image, F filters, S channels of all
// skips together. Weights, biases and their gradients are float32 (float64 for kFloat64).
struct GatedBlockShape {
  GatedStorage storage = GatedStorage::kFloat32;
  int64_t batch = 0, height = 0, width = 0;
  int filters = 0;
  int kernel_h = 0, kernel_w = 0;
  int pad_top = 0, pad_left = 0;  // the output at (r, c) sees input rows r - pad_top and on
  int n_skips = 0;
  int skip_channels[kMaxSkips] = {};
  bool taps_outside = false;  // kernels lie as (out, kh, kw, in) in memory, else (out, in, kh, kw)

  int taps() const { return kernel_h * kernel_w; }
  int all_skip_channels() const { return skip_channels[0] + skip_channels[1]; }
};

// An element of concat_elu(h), counted in (B, H, W, 2F) order, is kept if word >> 9 >= keep_from,
// where word is number (element % 4) of the Philox block at counter (element / 4 low, high, layer,
// kDropoutStage).
struct GatedDropout {
  bool active = false;
  uint64_t seed = 0;
  uint32_t layer = 0;
  uint32_t keep_from = 0;
  double scale = 1.0;  // of what is kept
};

inline constexpr uint32_t kDropoutStage = 5;  // Stage.DROPOUT in dsmooth/sampling/philox.py

// With gains g, of each output channel, a convolution's weight is w = g v / |v| (weight norm) and
// the arrays below hold v; without (null) they hold w.
struct GatedWeights {
  const void* conv_in = nullptr;   // (F, 2F, kh, kw)
  const void* bias_in = nullptr;   // (F)
  const void* conv_out = nullptr;  // (2F, 2F, kh, kw)
  const void* bias_out = nullptr;  // (2F)
  const void* nin = nullptr;       // (F, 2S), null without skips
  const void* bias_nin = nullptr;  // (F)
  const void* gain_in = nullptr;   // (F)
  const void* gain_out = nullptr;  // (2F)
  const void* gain_nin = nullptr;  // (F)
};

struct GatedForward {
  GatedBlockShape shape;
  GatedDropout dropout;
  GatedWeights weights;
  const void* x = nullptr;            // (B, H, W, F)
  const void* skips[kMaxSkips] = {};  // (B, H, W, skip_channels)
  void* y = nullptr;                  // (B, H, W, F)
  void* h = nullptr;                  // (B, H, W, F), or null if there will be no backward
  void* gates = nullptr;              // (B, H, W, 2F): A, G; or null likewise
};

struct GatedBackward {
  GatedBlockShape shape;
  GatedDropout dropout;
  GatedWeights weights;
  const void* grad_y = nullptr;
  const void* x = nullptr;
  const void* h = nullptr;
  const void* gates = nullptr;
  const void* skips[kMaxSkips] = {};
  void* grad_x = nullptr;
  void* grad_skips[kMaxSkips] = {};
  void* grad_conv_in = nullptr;
  void* grad_bias_in = nullptr;  // of the nin's bias too: both are added to h
  void* grad_conv_out = nullptr;
  void* grad_bias_out = nullptr;
  void* grad_nin = nullptr;
  void* grad_gain_in = nullptr;  // these three null without gains
  void* grad_gain_out = nullptr;
  void* grad_gain_nin = nullptr;
};

// What one instruction set offers for one storage. The weights are packed once a call; `first` and
// `last` bound a range of images; `scratch` belongs to the caller's thread. `sums` are the weight
// gradients of a group of images, in the packed order, written by backward.
struct GatedKernels {
  size_t (*packed_bytes)(const GatedBlockShape& shape);
  size_t (*scratch_bytes)(const GatedBlockShape& shape);
  size_t (*sums_bytes)(const GatedBlockShape& shape);
  void (*pack_forward)(const GatedBlockShape& shape, const GatedWeights& weights, void* packed);
  void (*pack_backward)(const GatedBlockShape& shape, const GatedWeights& weights, void* packed);
  void (*forward)(const GatedForward& args, const void* packed, int64_t first, int64_t last,
                  void* scratch);
  void (*backward)(const GatedBackward& args, const void* packed, int64_t first, int64_t last,
                   void* scratch, void* sums);
  // One of `parts` of adding the sums of all groups, `stride` bytes apart, to the first in order.
  void (*add_sums)(const GatedBlockShape& shape, void* sums, size_t stride, int64_t groups,
                   int64_t part, int64_t parts);
  // One of `parts` of writing the gradients of the weights from these sums.
  void (*write_gradients)(const GatedBackward& args, const void* sums, int64_t part, int64_t parts);
};

struct GatedKernelSet {
  GatedKernels float32, float64, bfloat16;
};

// Names of the instruction sets compiled that this CPU has, the best last.
std::vector<std::string> gated_block_instruction_sets();

// Results do not depend on `threads`: sums over images are taken in groups that are a function of
// the shape alone. Throw std::invalid_argument for an unknown instruction set; "auto" is the best.
void gated_block_forward(const GatedForward& args, int threads, const std::string& instruction_set);
void gated_block_backward(const GatedBackward& args, int threads,
                          const std::string& instruction_set);

}  // namespace dsmooth
