// A small program with every kind of operation: both streams, two resolutions, gates, skips, an
// encoder, a hidden layer of the head; and images to draw with it.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "../sampler/program/program.h"

namespace dsmooth::sampler {

enum class Conditioning { kNone, kStack, kConcat };

// A toy's features, hidden layer and atoms.
struct Bytes {
  bool atoms = false;  // one for each byte
  int features = 0;    // of a colour's byte
  int hidden = 0;      // channels of the head's hidden layer; 0: none
};

class Toy {
 public:
  Toy(int filters, int image_channels, Conditioning conditioning, int n_classes = 0,
      Likelihood likelihood = Likelihood::kContinuous, const Bytes& bytes = {})
      : f_(filters),
        hidden_(bytes.hidden),
        p_{{image_channels, 2, 2, bytes.atoms ? kBytes : 0, likelihood, 0.25f,
            conditioning != Conditioning::kNone, kNone, kNone, kNone, n_classes, bytes.features,
            bytes.hidden > 0 && conditioning == Conditioning::kStack},
           {},
           {},
           {}} {
    for (int i = 0; i < kBytes * bytes.features; ++i) p_.feature_table.push_back(random());
    const int e = conditioning == Conditioning::kConcat ? encoder() : kNone;
    p_.image = cache(0, p_.seen_channels(), 3);
    streams(e);
  }
  operator Program() && { return std::move(p_); }

 private:
  int cache(int resolution, int channels, int rows, bool operand = true) {
    p_.caches.push_back({resolution, channels, rows, operand});
    return static_cast<int>(p_.caches.size()) - 1;
  }
  int act(int resolution, int rows) { return cache(resolution, 2 * f_, rows); }
  int split_act() {
    const int used = kAddends * f_;
    return cache(0, used + used % 2, 1);
  }

  float random() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int64_t>(state_) >> 40) * 0x1p-23f;
  }

  Term term(int from, int drow, int dcol, int taps, bool row_part = false) {
    return {{from, drow, dcol, taps, row_part, p_.caches[from].channels}, {}};
  }

  struct Outputs {
    int residual, act, raw;
  };
  void op(Phase phase, int resolution, int n, std::vector<Term> terms, Outputs to,
          bool gate = false, int add = kNone, int row_parity = kNone, int column_parity = kNone) {
    Op op{{phase, resolution, row_parity, column_parity, gate, false, gate ? to.residual : kNone,
           add, to.residual, to.act, to.raw},
          n,
          {},
          std::move(terms),
          {}};
    for (int i = 0; i < n; ++i)
      op.bias.push_back(phase == Phase::kHead ? -2.0f : 0.1f * random());  // narrow components
    for (Term& t : op.terms)
      for (int i = 0; i < n * t.taps * t.channels; ++i) t.weight.push_back(0.1f * random());
    for (int i = 0; (gate || phase == Phase::kEncoder) && i < n * p_.n_classes; ++i)
      op.projection.push_back(0.5f * random());
    p_.ops.push_back(std::move(op));
  }

  int encoder() {
    p_.context = cache(0, p_.pixel_channels(), 0);
    const int residual = cache(0, f_, 0, false), a = act(0, 0), out = cache(0, f_, 0, false);
    op(Phase::kEncoder, 0, f_, around(p_.context), {residual, a, kNone});
    op(Phase::kEncoder, 0, f_, around(a), {out, kNone, kNone});
    return out;
  }
  std::vector<Term> around(int from) {
    return {term(from, -1, -1, 3), term(from, 0, -1, 3), term(from, 1, -1, 3)};
  }
  std::vector<Term> above_and_here(int from, bool horizontal) {
    const int taps = horizontal ? 2 : 3;
    return {term(from, -1, -1, taps, horizontal), term(from, 0, -1, taps)};
  }

  void upsize(Phase phase, int from, Outputs to) {
    for (int parity = 0; parity < 4; ++parity)
      op(phase, 0, f_, {term(from, 0, 0, phase == Phase::kVertical ? 1 + parity % 2 : 1)}, to,
         false, kNone, parity / 2, parity % 2);
  }

  void streams(int e) {
    constexpr Phase v = Phase::kVertical, h = Phase::kHorizontal;
    const int ru = cache(0, f_, 1, false), ru1 = cache(1, f_, 1, false);
    const int rl = cache(0, f_, 1, false), rl1 = cache(1, f_, 1, false);
    const int even = f_ + f_ % 2;
    const int u0 = act(0, 2), hu = act(0, 2), u1 = act(0, 2), raw_u = cache(0, even, 2);
    const int low_u = cache(1, even, 1), u2 = act(0, 2);
    op(v, 0, f_, {term(p_.image, -2, -1, 3), term(p_.image, -1, -1, 3)}, {ru, u0, kNone}, false, e);
    op(v, 0, f_, above_and_here(u0, false), {kNone, hu, kNone});
    op(v, 0, 2 * f_, above_and_here(hu, false), {ru, u1, raw_u}, true);
    op(v, 1, f_, above_and_here(raw_u, false), {ru1, kNone, low_u});
    upsize(v, low_u, {ru, u2, kNone});

    const int l0 = act(0, 1), hl = act(0, 1), l1 = act(0, 1), raw_l = cache(0, even, 1);
    const int low_l = cache(1, even, 1), l2 = act(0, 1), hl2 = act(0, 1), l3 = split_act();
    op(h, 0, f_, {term(p_.image, -1, -1, 3, true), term(p_.image, 0, -1, 1)}, {rl, l0, kNone},
       false, e);
    gated(l0, {term(u1, 0, 0, 1, true)}, hl, {rl, l1, raw_l});
    op(h, 1, f_, above_and_here(raw_l, true), {rl1, kNone, low_l});
    upsize(h, low_l, {rl, l2, kNone});
    gated(l2, {term(u2, 0, 0, 1, true), term(l0, 0, 0, 1)}, hl2, {rl, l3, kNone});
    p_.ops.back().split = true;
    std::vector<Term> seen{term(l3, 0, 0, 1)};
    if (hidden_ > 0) seen.push_back(term(hidden(l3), 0, 0, 1));
    p_.params = cache(0, p_.n_params(), 1, false);
    op(Phase::kHead, 0, p_.n_params(), std::move(seen), {p_.params, kNone, kNone});
  }
  int hidden(int from) {
    Term first = term(from, 0, 0, 1);
    first.channels = f_ + f_ % 2;
    const int act = cache(0, 2 * hidden_, 1);
    op(Phase::kHorizontal, 0, hidden_,
       {term(p_.image, -1, -1, 3, true), term(p_.image, 0, -1, 1), first}, {kNone, act, kNone});
    return act;
  }
  void gated(int from, std::vector<Term> skips, int middle, Outputs to) {
    std::vector<Term> terms = above_and_here(from, true);
    terms.insert(terms.end(), skips.begin(), skips.end());
    op(Phase::kHorizontal, 0, f_, std::move(terms), {kNone, middle, kNone});
    op(Phase::kHorizontal, 0, 2 * f_, above_and_here(middle, true), to, true);
  }

  const int f_, hidden_;
  Program p_;
  uint64_t state_ = 1;
};

// Memory of images 0 .. n - 1, and the images to draw in it. completes: the first row is known in
// all images, other pixels in some images.
struct Drawing {
  std::vector<float> context, known, out;  // known: NaN where a pixel is not
  std::vector<uint8_t> mask;
  std::vector<int64_t> labels;
  Slice all;

  Drawing(const Program& p, int64_t n, int height, int width, bool completes = false,
          float guidance = 0.0f)
      : context(n * p.image_channels * height * width),
        known(context.size(), NAN),
        mask(completes ? n * height * width : 0),
        labels(p.n_classes > 0 ? n : 0) {
    const size_t plane = height * width, columns = width, channels = p.image_channels;
    for (size_t i = 0; i < context.size(); ++i) context[i] = std::sin(0.7f * static_cast<float>(i));
    for (size_t i = 0; i < labels.size(); ++i)  // every class, and none
      labels[i] = static_cast<int64_t>(i) % (p.n_classes + 1) - 1;
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = i % plane < columns || (i * i / 7) % 3 == 0;
    for (size_t i = 0; completes && i < known.size(); ++i)
      if (mask[i / plane / channels * plane + i % plane]) known[i] = context[i];
    out = known;
    constexpr uint64_t kSeed = (uint64_t{3} << 32) + 7, kFirst = (uint64_t{1} << 32) - 1;
    all = {0, height, width, kSeed, kFirst, 1.0f, nullptr, out.data()};
    if (p.conditioned) all.context = context.data();
    if (completes) all.mask = mask.data();
    if (p.n_classes > 0) all.labels = labels.data();
    all.guidance = guidance;
  }
  Drawing(const Drawing&) = delete;
};

}  // namespace dsmooth::sampler
