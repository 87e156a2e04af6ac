#include "sampler_value_laws.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "../common/philox.h"
#include "../sampler/draw_pixel.h"
#include "../sampler/elementary.h"
#include "../sampler/tensor_core.cuh"
#include "expect.h"

namespace dsmooth::sampler {

// The activation and the gate against double precision, over all magnitudes.
void activations_are_accurate(const TileKernels& kernels) {
  std::vector<float> x;
  for (float magnitude = 1e-30f; magnitude < 200; magnitude *= 1.0007f) {
    x.push_back(magnitude);
    x.push_back(-magnitude);
  }
  x.push_back(0.0f);
  const int n = static_cast<int>(x.size()) / 8;
  std::vector<float> act(2 * 8 * static_cast<size_t>(n)), value(8 * static_cast<size_t>(n));
  std::vector<float> sums(16 * static_cast<size_t>(n)), zeros(8 * static_cast<size_t>(n), 0.0f);
  const Panel panel{nullptr, 2, 0, 0, 8};
  Job job{};
  job.epilogue.channels = 8;
  job.epilogue.act_out = act.data();
  job.epilogue.act_stride = 16;
  kernels.finish(job, panel, 0, n, x.data(), 8);
  double elu_error = 0, gate_error = 0;
  for (int i = 0; i < 8 * n; ++i) {
    const double v = x[static_cast<size_t>(i)];
    for (int side = 0; side < 2; ++side) {
      const double signed_v = side ? -v : v;
      const double exact = signed_v > 0 ? signed_v : std::expm1(signed_v);
      const double got = act[static_cast<size_t>(i / 8 * 16 + i % 8 + 8 * side)];
      if (exact != 0) elu_error = std::max(elu_error, std::abs(got / exact - 1));
    }
  }
  // With A = 1 and no residual the value is the gate.
  for (int i = 0; i < 8 * n; ++i) {
    sums[static_cast<size_t>(i / 8 * 16 + i % 8)] = 1.0f;
    sums[static_cast<size_t>(i / 8 * 16 + 8 + i % 8)] = x[static_cast<size_t>(i)];
  }
  job.epilogue = Epilogue{};
  job.epilogue.gate = true;
  job.epilogue.channels = 8;
  job.epilogue.residual_in = zeros.data();
  job.epilogue.residual_in_stride = 8;
  job.epilogue.residual_out = value.data();
  job.epilogue.residual_out_stride = 8;
  kernels.finish(job, panel, 0, n, sums.data(), 16);
  for (int i = 0; i < 8 * n; ++i) {
    const double v = x[static_cast<size_t>(i)];
    if (v < -87) continue;  // there the gate stays at e^-87, 1e-38
    gate_error =
        std::max(gate_error, std::abs(value[static_cast<size_t>(i)] * (1 + std::exp(-v)) - 1));
  }
  std::printf("%s: elu within %.2g, sigmoid within %.2g, relative\n", kernels.instruction_set,
              elu_error, gate_error);
  expect(elu_error < 2.4e-7 && gate_error < 2.4e-7, "elementary functions are inaccurate");
}

// Three bfloat16 hold elu as float32 does.
void split_elu_loses_nothing(const TileKernels& kernels) {
  std::vector<float> x;
  for (float magnitude = 1e-30f; magnitude < 200; magnitude *= 1.0007f)
    for (const float sign : {1.0f, -1.0f}) x.push_back(sign * magnitude);
  const int n = static_cast<int>(x.size()) / 8;
  std::vector<uint16_t> act(static_cast<size_t>(8 * kSplitParts * n));
  const Panel panel{nullptr, 1, 0, 0, 8};
  Job job{};
  job.epilogue.channels = 8;
  job.epilogue.split = true;
  job.epilogue.act_out = act.data();
  job.epilogue.act_stride = 8 * kSplitParts;
  kernels.finish(job, panel, 0, n, x.data(), 8);
  double error = 0;
  for (int i = 0; i < 8 * n; ++i) {
    const double v = x[static_cast<size_t>(i)];
    double sum = 0;
    for (int part = 0; part < kSplitParts; ++part)
      sum += to_float(Bf16{act[static_cast<size_t>((i / 8 * kSplitParts + part) * 8 + i % 8)]});
    error = std::max(error, std::abs(sum / (v > 0 ? v : std::expm1(v)) - 1));
  }
  std::printf("%s: split elu within %.2g, relative\n", kernels.instruction_set, error);
  expect(error < 2.4e-7, "a split elu is inaccurate");
}

// Through the inverse in double precision, at every uniform that a word gives.
void ndtri_inverts_the_normal_distribution() {
  double error = 0, asymmetry = 0;
  for (uint32_t word = 0; word < 1u << 23; ++word) {
    const float u = philox_uniform(word << 9);
    const double x = scalar::ndtri(u);
    const double tail = u < 0.5f ? u : 1.0 - u;
    const double below = 0.5 * std::erfc(std::abs(x) * std::sqrt(0.5));
    const double density = std::exp(-0.5 * x * x) * 0.3989422804014327;
    // In units of x; the second term of Newton's step is below 1e-12 here.
    error = std::max(error, std::abs((below - tail) / (density * x)));
    asymmetry = std::max(asymmetry, std::abs(x + scalar::ndtri(1.0f - u)));
    if ((u < 0.5f) != (x < 0)) error = INFINITY;
  }
  std::printf("ndtri within %.2g, relative\n", error);
  expect(error < 4e-7, "ndtri is inaccurate");  // torch.special.ndtri in float32: 3.8e-7
  expect(asymmetry == 0, "ndtri is not odd about 1/2");
}

// The share of each component and atom among the draws is its softmax weight.
void atoms_are_drawn_as_often_as_they_weigh() {
  constexpr int kDraws = 1 << 18;
  NetworkView network{};
  network.image_channels = 3;
  network.n_mix = 2;
  network.n_atoms = 3;
  network.likelihood = Likelihood::kDiscretized;
  network.conditioned = false;
  const uint8_t atoms[] = {0, 200, 255};
  std::copy(atoms, atoms + 3, network.atoms);
  const float means[] = {-0.5f, 0.5f};
  std::vector<float> params(23, 0.0f);
  const float logits[] = {0.3f, -0.7f, 1.1f, -2.0f, 0.0f};
  std::copy(logits, logits + 5, params.data());
  for (size_t colour = 0; colour < 3; ++colour)
    for (size_t k = 0; k < 2; ++k) {
      params[5 + colour * 6 + k] = means[k];
      params[5 + colour * 6 + 2 + k] = -7.0f;
    }
  for (const float temperature : {1.0f, 0.7f}) {
    int count[5] = {};
    for (uint32_t i = 0; i < kDraws; ++i) {
      const Pixel pixel = draw_pixel(network, params.data(), 5, 0, i, temperature);
      int which = pixel.value[0] < 0 ? 0 : 1;
      for (int j = 0; j < 3; ++j)
        if (pixel.value[0] == static_cast<float>(atoms[j]) / 127.5f - 1.0f) {
          which = 2 + j;
          expect(pixel.value[1] == pixel.value[0] && pixel.value[2] == pixel.value[0],
                 "an atom of two levels");
        }
      ++count[which];
    }
    double total = 0;
    for (const float logit : logits) total += std::exp(logit / temperature);
    for (int i = 0; i < 5; ++i) {
      const double p = std::exp(logits[i] / temperature) / total;
      const double deviation = (count[i] / double{kDraws} - p) / std::sqrt(p * (1 - p) / kDraws);
      expect(std::abs(deviation) < 3.5, "an atom or component is drawn too rarely or too often");
    }
  }
}

}  // namespace dsmooth::sampler
