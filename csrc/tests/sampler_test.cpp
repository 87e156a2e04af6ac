// Laws of the sampler that need no Python, run under the sanitizers (run.sh):
//   sampler_test          all laws
//   sampler_test plant N  draws with sync N left out, threads as lanes: ThreadSanitizer must object
//   sampler_test plant_cuda N  the same with the worker of CUDA
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/isa.h"
#include "../sampler/sampler_cpu.h"
#include "expect.h"
#include "sampler_block.h"
#include "sampler_toy.h"
#include "sampler_value_laws.h"

namespace dsmooth::sampler {
namespace {

constexpr int kHeight = 4, kWidth = 8;
constexpr uint64_t kSeed = (uint64_t{3} << 32) + 7, kFirst = (uint64_t{1} << 32) - 1;

struct Case {
  int filters, channels;
  Conditioning conditioning;
  Likelihood likelihood = Likelihood::kContinuous;
  std::vector<int> atoms = {};
  bool completes = false;  // some pixels are known
  int condition_size = 0;  // of the vector of each image
  Program program() const {
    return Toy(filters, channels, conditioning, likelihood, atoms, condition_size).take();
  }
  size_t size(int64_t n) const { return static_cast<size_t>(n * channels * kHeight * kWidth); }
  std::vector<float> context(int64_t n) const {
    std::vector<float> values(size(n));
    for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(0.7f * static_cast<float>(i));
    return values;
  }
  std::vector<float> condition(int64_t n) const {
    std::vector<float> values(static_cast<size_t>(n * condition_size));
    for (size_t i = 0; i < values.size(); ++i) values[i] = std::cos(1.3f * static_cast<float>(i));
    return values;
  }
  // Which pixels are known: the upper row in all images, other pixels image by image.
  std::vector<uint8_t> mask(int64_t n) const {
    std::vector<uint8_t> values(completes ? static_cast<size_t>(n * kHeight * kWidth) : 0);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = i / kWidth % kHeight == 0 || (i * i / 7) % 3 == 0;
    return values;
  }
  // Memory for images, with the known pixels in it.
  std::vector<float> canvas(int64_t n) const {
    const std::vector<uint8_t> known = mask(n);
    const std::vector<float> values = context(n);
    std::vector<float> out(values.size(), NAN);
    constexpr size_t kPlane = size_t{kHeight} * kWidth;
    for (size_t i = 0; completes && i < out.size(); ++i)
      if (known[i / kPlane / static_cast<size_t>(channels) * kPlane + i % kPlane])
        out[i] = values[i];
    return out;
  }
};
const Case kCases[] = {{12, 1, Conditioning::kNone},
                       {9, 3, Conditioning::kStack, Likelihood::kGaussian},
                       {20, 1, Conditioning::kConcat},
                       {7, 3, Conditioning::kNone, Likelihood::kDiscretized, {0, 255, 17}},
                       {10, 3, Conditioning::kStack, Likelihood::kContinuous, {}, true},
                       {11, 1, Conditioning::kNone, Likelihood::kContinuous, {}, true},
                       {13, 1, Conditioning::kNone, Likelihood::kContinuous, {}, false, 3},
                       {9, 3, Conditioning::kStack, Likelihood::kContinuous, {}, false, 1},
                       {9, 1, Conditioning::kNone, Likelihood::kContinuous, {}, true, 2},
                       {12, 1, Conditioning::kConcat, Likelihood::kContinuous, {}, false, 2}};

std::vector<float> draw(const CpuSampler& sampler, const Case& c, int64_t first, int64_t n,
                        int threads, int slice) {
  const std::vector<float> context = c.context(first + n), canvas = c.canvas(first + n);
  const std::vector<uint8_t> mask = c.mask(first + n);
  const std::vector<float> condition = c.condition(first + n);
  std::vector<float> out(canvas.begin() + static_cast<ptrdiff_t>(c.size(first)), canvas.end());
  const bool conditioned = c.conditioning != Conditioning::kNone;
  sampler.sample({n, kHeight, kWidth, kSeed, kFirst + static_cast<uint64_t>(first), 1.0f, threads,
                  slice, conditioned ? context.data() + c.size(first) : nullptr, out.data(),
                  c.completes ? mask.data() + first * kHeight * kWidth : nullptr,
                  c.condition_size ? condition.data() + first * c.condition_size : nullptr},
                 [](double) {});
  for (size_t i = 0; i < out.size(); ++i)
    if (const float known = canvas[c.size(first) + i]; !std::isnan(known))
      expect(out[i] == known, "a known pixel changed");
  return out;
}

void same_bits_however_shared(const Case& c, const std::string& set, bool bf16) {
  const CpuSampler sampler(c.program(), set, bf16);
  const std::vector<float> all = draw(sampler, c, 0, 9, 1, 0);
  expect(std::all_of(all.begin(), all.end(), [](float x) { return std::isfinite(x); }),
         set + ": a pixel is not finite");
  struct {
    int first, n, threads, slice;
  } ways[] = {{0, 9, 2, 0}, {0, 9, 3, 1}, {0, 1, 3, 0}, {8, 1, 2, 0}, {2, 2, 4, 0}, {1, 7, 1, 3}};
  for (const auto& w : ways) {
    const std::vector<float> part = draw(sampler, c, w.first, w.n, w.threads, w.slice);
    expect(std::memcmp(part.data(), all.data() + c.size(w.first), part.size() * sizeof(float)) == 0,
           set + ": other bits with " + std::to_string(w.threads) + " threads");
  }
}

// Three images drawn by the threads of the CPU and by a block of lanes, on the portable tiles.
struct BlockCall {
  explicit BlockCall(const Case& given)
      : c(given),
        plan(c.program(), find_tile_kernels("generic", false)),
        context(c.context(kImages)),
        condition(c.condition(kImages)),
        mask(c.mask(kImages)),
        expected(::dsmooth::sampler::draw(CpuSampler(c.program(), "generic", false), c, 0, kImages,
                                          1, 0)),
        out(c.canvas(kImages)) {}

  // Returns the number of syncs.
  int64_t draw(int lanes, Mode mode, int64_t omit = -1, unsigned seed = 1) {
    const Slice slice{kImages,
                      kHeight,
                      kWidth,
                      kSeed,
                      kFirst,
                      1.0f,
                      c.conditioning == Conditioning::kNone ? nullptr : context.data(),
                      out.data(),
                      c.completes ? mask.data() : nullptr,
                      c.condition_size ? condition.data() : nullptr};
    return draw_with_block(plan, slice, lanes, mode, omit, seed);
  }
  bool equal() const {
    return std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)) == 0;
  }

  static constexpr int kImages = 3;
  const Case c;
  const Plan plan;
  const std::vector<float> context, condition;
  const std::vector<uint8_t> mask;
  const std::vector<float> expected;
  std::vector<float> out;
};

void block_equals_threads(const Case& c) {
  BlockCall call(c);
  call.draw(4, Mode::kThreads);
  expect(call.equal(), "a block of threads gives other bits");
  for (unsigned seed = 1; seed <= 3; ++seed) {
    call.draw(5, Mode::kTurns, -1, seed);
    expect(call.equal(), "a block of lanes in turn gives other bits");
  }
}

// Every sync that stands between a write and a read matters; all but a few do.
[[maybe_unused]] void missing_syncs_change_images(const Case& c) {
  BlockCall call(c);
  const int64_t syncs = call.draw(5, Mode::kTurns);
  int tried = 0, found = 0;
  for (int64_t omit = 1; omit < syncs - 1; omit += 1 + syncs / 40, ++tried) {
    bool differs = false;
    for (unsigned seed = 1; seed <= 3 && !differs; ++seed) {
      call.draw(5, Mode::kTurns, omit, seed);
      differs = !call.equal();
    }
    found += differs;
  }
  std::printf("missing syncs found by lanes in turn: %d of %d\n", found, tried);
  expect(found * 2 > tried, "most missing syncs go unnoticed");
}

// A call of the CUDA sampler, played.
struct CudaCall {
  CudaCall(const Case& given, int images, bool whole = false)
      : c(given),
        n(images),
        context(c.context(n)),
        condition(c.condition(n)),
        mask(c.mask(n)),
        out(c.canvas(n)) {
    if (whole) syncs = draw<float, 4, 1>({1, 64 << 10}, 0, Mode::kTurns);
  }

  template <class T, int kWarps, int kWarpLanes>
  int64_t draw(const Device& device, int max_slice, Mode mode, int64_t omit = -1,
               unsigned seed = 1) {
    const bool conditioned = c.conditioning != Conditioning::kNone;
    const Slice all{0,
                    kHeight,
                    kWidth,
                    kSeed,
                    kFirst,
                    1.0f,
                    conditioned ? context.data() : nullptr,
                    out.data(),
                    c.completes ? mask.data() : nullptr,
                    c.condition_size ? condition.data() : nullptr};
    return draw_as_cuda<T, kWarps, kWarpLanes>(c.program(), all, n, device, max_slice, mode, omit,
                                               seed);
  }

  const Case c;
  const int n;
  const std::vector<float> context, condition;
  const std::vector<uint8_t> mask;
  std::vector<float> out;
  int64_t syncs = 0;
};

void plant_cuda(int64_t omit) {
  CudaCall(kCases[0], 3).draw<float, 4, 1>({1, 64 << 10}, 0, Mode::kThreads, omit);
}

void plant(int64_t omit) {
  const Case& c = kCases[0];
  const Plan plan(c.program(), find_tile_kernels("generic", false));
  std::vector<float> out(c.size(3));
  const Slice slice{3, kHeight, kWidth, kSeed, kFirst, 1.0f, nullptr, out.data()};
  draw_with_block(plan, slice, 4, Mode::kThreads, omit);
}

// Sums in the order of CUDA's emulated fragments, one rounding per product, are those of the CPU
// where it has FMA: the images are then the same bits.
template <class T, int kWarps, int kWarpLanes>
void cuda_equals_cpu(const Case& c, const Device& device, int max_slice, Mode mode) {
  constexpr int kImages = 5;
  const bool bf16 = sizeof(T) == sizeof(Bf16);
  const CpuSampler sampler(c.program(), "avx2", bf16);
  const std::vector<float> expected = draw(sampler, c, 0, kImages, 1, 0);
  CudaCall call(c, kImages);
  call.draw<T, kWarps, kWarpLanes>(device, max_slice, mode);
  expect(std::memcmp(call.out.data(), expected.data(), expected.size() * sizeof(float)) == 0,
         "the worker of CUDA gives other bits than the CPU, " + std::to_string(c.filters) +
             " filters, " + std::to_string(sizeof(T)) + " bytes, " +
             std::to_string(device.shared_bytes) + " bytes of shared memory");
}

void cuda_equals_cpu_on_all_shapes() {
  if (!has_instruction_set("avx2")) return;
  constexpr Device kRoomy{2, 227 << 10, 3}, kTight{1, 40 << 10};
#if defined(__SANITIZE_THREAD__)
  // Lanes that run at the same time mostly wait, so there are few of them.
  for (const Case& c : kCases) {
    cuda_equals_cpu<float, 4, 1>(c, kTight, 0, Mode::kThreads);
    cuda_equals_cpu<Bf16, 4, 1>(c, kRoomy, 2, Mode::kThreads);
  }
#else
  for (const Case& c : kCases) {
    cuda_equals_cpu<float, 4, 2>(c, kTight, 0, Mode::kTurns);
    cuda_equals_cpu<Bf16, 8, 1>(c, kRoomy, 2, Mode::kTurns);
    cuda_equals_cpu<Bf16, 4, 1>(c, kTight, 1, Mode::kTurns);
  }
  // The shape of the device.
  cuda_equals_cpu<float, 8, 32>(kCases[0], kRoomy, 0, Mode::kTurns);
  // Three panels for the row part of a gate, one of 18 fragments for its pixel part.
  const Case wide{136, 1, Conditioning::kNone};
  cuda_equals_cpu<Bf16, 4, 1>(wide, {1, 227 << 10}, 0, Mode::kTurns);
#endif
}

// The first ones stand before pointers, without which a lane would crash.
constexpr int64_t kFirstOmitted = 6;

[[maybe_unused]] void missing_syncs_of_cuda_change_images() {
  const CudaCall whole(kCases[0], 3, true);
  int tried = 0, found = 0;
  for (int64_t omit = kFirstOmitted; omit < whole.syncs - 1;
       omit += 1 + whole.syncs / 40, ++tried) {
    bool differs = false;
    for (unsigned seed = 1; seed <= 3 && !differs; ++seed) {
      CudaCall call(kCases[0], 3);
      call.draw<float, 4, 1>({1, 64 << 10}, 0, Mode::kTurns, omit, seed);
      differs = std::memcmp(call.out.data(), whole.out.data(), whole.out.size() * 4) != 0;
    }
    found += differs;
  }
  std::printf("missing syncs of CUDA's worker found by lanes in turn: %d of %d\n", found, tried);
  expect(found * 2 > tried, "most missing syncs of CUDA's worker go unnoticed");
}

void batches_are_shared_out() {
  for (int64_t n : {1, 5, 131, 132, 133, 1056, 2112, 4300, 50000})
    for (int processors : {1, 84, 132})
      for (size_t images_that_fit : {1, 100, 5000, 1000000})
        for (int max_slice : {0, 1, 7}) {
          const Sharing s = share(n, processors, 1000, 1000 * images_that_fit + 999, max_slice);
          const std::string what = " for " + std::to_string(n) + " images";
          expect(s.blocks >= 1 && s.blocks <= processors && s.blocks <= s.slices, "blocks" + what);
          expect(s.slices <= n && s.largest * s.slices >= n, "images left over" + what);
          expect((n + s.slices - 1) / s.slices == s.largest, "the largest slice" + what);
          expect(static_cast<size_t>(s.blocks) * static_cast<size_t>(s.largest) <= images_that_fit,
                 "more than memory holds" + what);
          expect(s.largest <= (max_slice ? max_slice : kMostImages), "a slice too large" + what);
        }
  // The processors of an H100 all busy, in one round if slices of 32 suffice.
  const Sharing s = share(2112, 132, 1, 1 << 20, 0);
  expect(s.blocks == 132 && s.slices == 132 && s.largest == 16, "2112 images on 132 processors");
  expect(share(5, 132, 1, 1 << 20, 0).blocks == 5, "five images on five blocks");
  expect(throws([] { share(5, 132, 100, 99, 0); }), "an image that does not fit");
}

void blocks_fit_into_shared_memory() {
  for (bool bf16 : {false, true})
    for (int filters : {3, 40, 160, 400}) {
      const DevicePlan plan(Toy(filters, 3, Conditioning::kNone).take(), bf16);
      const auto lay_out = [&](int limit) { return plan.shared(sizeof(BlockHead), 8, limit); };
      const int roomy = lay_out(1 << 20).bytes, smallest = lay_out(roomy - 1).bytes;
      for (int limit : {40 << 10, 99 << 10, 163 << 10, 227 << 10, smallest, roomy}) {
        SharedLayout l{};
        const bool refused = throws([&] { l = lay_out(limit); });
        expect(refused == (smallest > limit), "a block that fits is refused, or another is not");
        if (refused) continue;
        expect(l.bytes <= limit && l.tall == (limit >= roomy), "shared memory overflows");
        for (int at : {l.places, l.ops, l.rows, l.near, l.near_stride, l.near_raw, l.scratch})
          expect(at % kGranule == 0, "what is read by granules is not aligned");
      }
    }
}

void bad_programs_are_refused() {
  const auto refused = [](auto change) {
    Program program = Toy(4, 1, Conditioning::kNone).take();
    change(program);
    try {
      check(program);
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  expect(!refused([](Program&) {}), "a good program is refused");
  expect(refused([](Program& p) { p.ops[1].terms[0].cache = 99; }), "a cache that is not there");
  expect(refused([](Program& p) { p.ops[1].terms[0].drow = -2; }), "a row that is gone");
  expect(refused([](Program& p) { p.ops[1].terms[0].drow = 1; }), "a row below");
  expect(refused([](Program& p) { p.ops[1].terms[0].dcol = 0; }), "a tap beyond the padding");
  expect(refused([](Program& p) { p.ops.back().terms[0].dcol = 1; }), "a pixel to the right");
  expect(refused([](Program& p) { p.ops[1].bias[0] = INFINITY; }), "an infinite bias");
  expect(refused([](Program& p) { p.params = p.image; }), "parameters in the image");
  expect(refused([](Program& p) { p.n_mix = 3; }), "too few parameters");
  const auto with_classes = [](Program& p, int size, size_t numbers) {
    p.condition_size = size;
    p.ops[2].projection.assign(numbers, 0.5f);
  };
  const size_t n = static_cast<size_t>(Toy(4, 1, Conditioning::kNone).take().ops[2].n);
  expect(!refused([&](Program& p) { with_classes(p, 3, 3 * n); }), "a projection is refused");
  expect(!refused([&](Program& p) { with_classes(p, 3, 0); }), "no projection is refused");
  for (const auto& [size, numbers] : {std::pair{3, 3 * n - 1}, {2, 3 * n}, {0, n}, {-1, n}})
    expect(refused([&](Program& p) { with_classes(p, size, numbers); }), "a projection's size");
  expect(refused([&](Program& p) {
           with_classes(p, 1, n);
           p.ops[2].projection[n - 1] = NAN;
         }),
         "a projection that is not a number");
  expect(refused([](Program& p) { p.ops[p.ops.size() - 2].split = false; }),
         "a concat_elu where three parts fit");
  const auto with_atoms = [](Program& p, std::vector<int> atoms) {
    p.likelihood = Likelihood::kDiscretized;
    p.caches[static_cast<size_t>(p.params)].channels += static_cast<int>(atoms.size());
    Op& head = p.ops.back();
    head.n += static_cast<int>(atoms.size());
    head.bias.resize(static_cast<size_t>(head.n));
    for (Term& t : head.terms)
      t.weight.resize(static_cast<size_t>(head.n) * static_cast<size_t>(t.taps * t.channels));
    p.atoms = std::move(atoms);
  };
  expect(!refused([&](Program& p) { with_atoms(p, {255, 0}); }), "good atoms are refused");
  expect(refused([&](Program& p) { with_atoms(p, {256, 0}); }), "an atom above 255");
  expect(refused([&](Program& p) { with_atoms(p, {-1}); }), "an atom below 0");
  expect(refused([&](Program& p) { with_atoms(p, {9, 3, 9}); }), "an atom twice");
  expect(refused([&](Program& p) {
           with_atoms(p, {0});
           p.likelihood = Likelihood::kContinuous;
         }),
         "an atom in a density");
  expect(refused([&](Program& p) {
           with_atoms(p, {0});
           p.atoms = {0, 1};
         }),
         "atoms without parameters");
  for (const float scale : {0.0f, -1.0f, INFINITY, NAN})
    expect(refused([&](Program& p) {
             p.likelihood = Likelihood::kGaussian;
             p.smoothing_scale = scale;
           }),
           "a bad smoothing_scale");
  expect(throws([] { likelihood_named("laplace"); }), "an unknown likelihood");
}

void an_exception_stops_the_workers() {
  const CpuSampler sampler(Toy(40, 1, Conditioning::kNone).take(), "generic", false);
  for (int threads : {2, 3}) {
    std::vector<float> out(2u * 4096u * 64u);
    try {
      sampler.sample({2, 4096, 64, 0, 0, 1.0f, threads, 0, nullptr, out.data()},
                     [](double) { throw std::runtime_error("stop"); });
      expect(false, "the call went on");
    } catch (const std::runtime_error&) {
    }
  }
}

int run_all() {
  bad_programs_are_refused();
  ndtri_inverts_the_normal_distribution();
  atoms_are_drawn_as_often_as_they_weigh();
  for (bool bf16 : {false, true})
    for (const std::string& set : instruction_sets()) {
      if (find_tile_kernels(set, bf16).instruction_set != set) continue;  // another set's kernels
      bf16 ? split_elu_loses_nothing(find_tile_kernels(set, bf16))
           : activations_are_accurate(find_tile_kernels(set, bf16));
      for (const Case& c : kCases) same_bits_however_shared(c, set, bf16);
    }
  for (const Case& c : kCases) block_equals_threads(c);
  cuda_equals_cpu_on_all_shapes();
#if !defined(__SANITIZE_THREAD__)  // lanes in turn are ordered by a mutex: it would learn nothing
  for (int plain : {0, 1, 4}) missing_syncs_change_images(kCases[plain]);
  missing_syncs_of_cuda_change_images();
#endif
  batches_are_shared_out();
  blocks_fit_into_shared_memory();
  an_exception_stops_the_workers();
  std::printf(failures ? "%d failures\n" : "all laws hold\n", failures);
  return failures != 0;
}

}  // namespace
}  // namespace dsmooth::sampler

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "plant") == 0) {
    dsmooth::sampler::plant(std::atoll(argv[2]));
    return 0;
  }
  if (argc == 3 && std::strcmp(argv[1], "plant_cuda") == 0) {
    dsmooth::sampler::plant_cuda(std::atoll(argv[2]));
    return 0;
  }
  return dsmooth::sampler::run_all();
}
