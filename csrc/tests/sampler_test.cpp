// Laws of the sampler that need no Python, run under the sanitizers (run.sh):
//   sampler_test          all laws
//   sampler_test plant N  draws as CUDA does with sync N left out, threads as lanes:
//                         ThreadSanitizer must object
//   sampler_test images   writes images drawn with FMA, which are the same bits on all processors
#include <algorithm>
#include <climits>
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

namespace dsmooth::sampler {
namespace {

constexpr int kHeight = 4, kWidth = 8;

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
  Drawing drawing(c.program(), first + n, kHeight, kWidth, c.completes);
  sampler.sample({n, drawing.all.part(sampler.network(), first, first + n), threads, slice},
                 [](double) {});
  const auto begin = static_cast<ptrdiff_t>(c.size(first));
  const std::vector<float> out(drawing.out.begin() + begin, drawing.out.end());
  for (size_t i = 0; i < out.size(); ++i)
    if (const float known = drawing.known[c.size(first) + i]; !std::isnan(known))
      expect(out[i] == known, "a known pixel changed");
  return out;
}

bool same(const std::vector<float>& a, const float* b) {
  return std::memcmp(a.data(), b, a.size() * sizeof(float)) == 0;
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
    expect(same(part, all.data() + c.size(w.first)),
           set + ": other bits with " + std::to_string(w.threads) + " threads");
  }
}

// The images of a call of the CUDA sampler, played.
template <class T, int kWarps, int kWarpLanes>
std::vector<float> draw_as_cuda(const Case& c, int n, const Device& device, int max_slice,
                                Mode mode, int64_t omit = -1) {
  Drawing drawing(c.program(), n, kHeight, kWidth, c.completes);
  draw_as_cuda<T, kWarps, kWarpLanes>(c.program(), drawing.all, n, device, max_slice, mode, omit);
  return drawing.out;
}

void plant(int64_t omit) {
  draw_as_cuda<float, 4, 1>(kCases[0], 3, {1, 64 << 10}, 0, Mode::kThreads, omit);
}

// The set of vectors with FMA and no other arithmetic; empty where there is none.
std::string fma_set() {
  for (const char* set : {"avx2", "neon"})
    if (has_instruction_set(set)) return set;
  return "";
}

// Sums in the order of CUDA's emulated fragments, one rounding per product, are those of the CPU
// where it has FMA: the images are then the same bits.
template <class T, int kWarps, int kWarpLanes>
void cuda_equals_cpu(const Case& c, const Device& device, int max_slice, Mode mode) {
  constexpr int kImages = 5;
  const bool bf16 = sizeof(T) == sizeof(Bf16);
  const CpuSampler sampler(c.program(), fma_set(), bf16);
  const std::vector<float> expected = draw(sampler, c, 0, kImages, 1, 0);
  const auto out = draw_as_cuda<T, kWarps, kWarpLanes>(c, kImages, device, max_slice, mode);
  expect(same(out, expected.data()),
         "the worker of CUDA gives other bits than the CPU, " + std::to_string(c.filters) +
             " filters, " + std::to_string(sizeof(T)) + " bytes, " +
             std::to_string(device.shared_bytes) + " bytes of shared memory");
}

void cuda_equals_cpu_on_all_shapes() {
  if (fma_set().empty()) return;
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

// 1e-30 to 200 and their negatives, whole vectors of 8.
std::vector<float> all_magnitudes() {
  std::vector<float> x;
  for (float magnitude = 1e-30f; magnitude < 200; magnitude *= 1.0007f)
    for (const float sign : {1.0f, -1.0f}) x.push_back(sign * magnitude);
  x.resize(x.size() / 8 * 8);
  return x;
}

double elu(double v) { return v > 0 ? v : std::expm1(v); }

// The activation and the gate against double precision.
void activations_are_accurate(const TileKernels& kernels) {
  const std::vector<float> x = all_magnitudes();
  const int n = static_cast<int>(x.size()) / 8;
  std::vector<float> act(2 * x.size()), value(x.size()), sums(2 * x.size()), zeros(x.size());
  const Panel panel{nullptr, 2, 0, 0, 8};
  Job job{};
  job.epilogue.channels = 8;
  job.epilogue.act_out = {act.data(), 16};
  kernels.finish(job, panel, 0, n, x.data(), 8);
  // With A = 1 and no residual the value is the gate.
  for (size_t i = 0; i < x.size(); ++i) {
    sums[i / 8 * 16 + i % 8] = 1.0f;
    sums[i / 8 * 16 + 8 + i % 8] = x[i];
  }
  job.epilogue = Epilogue{};
  job.epilogue.gate = true;
  job.epilogue.channels = 8;
  job.epilogue.residual_in = {zeros.data(), 8};
  job.epilogue.residual_out = {value.data(), 8};
  kernels.finish(job, panel, 0, n, sums.data(), 16);
  double elu_error = 0, gate_error = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double v = x[i];
    for (const size_t side : {0, 1}) {
      const double got = act[i / 8 * 16 + i % 8 + 8 * side];
      elu_error = std::max(elu_error, std::abs(got / elu(side ? -v : v) - 1));
    }
    if (v < -87) continue;  // there the gate stays at e^-87, 1e-38
    gate_error = std::max(gate_error, std::abs(value[i] * (1 + std::exp(-v)) - 1));
  }
  std::printf("%s: elu within %.2g, sigmoid within %.2g, relative\n", kernels.instruction_set,
              elu_error, gate_error);
  expect(elu_error < 2.4e-7 && gate_error < 2.4e-7, "elementary functions are inaccurate");
}

// Three bfloat16 hold elu as float32 does.
void split_elu_loses_nothing(const TileKernels& kernels) {
  const std::vector<float> x = all_magnitudes();
  std::vector<uint16_t> act(kSplitParts * x.size());
  const Panel panel{nullptr, 1, 0, 0, 8};
  Job job{};
  job.epilogue.channels = 8;
  job.epilogue.split = true;
  job.epilogue.act_out = {reinterpret_cast<float*>(act.data()), 8 * kSplitParts / 2};
  kernels.finish(job, panel, 0, static_cast<int>(x.size()) / 8, x.data(), 8);
  double error = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    double sum = 0;
    for (size_t part = 0; part < kSplitParts; ++part)
      sum += from_bfloat16(act[(i / 8 * kSplitParts + part) * 8 + i % 8]);
    error = std::max(error, std::abs(sum / elu(x[i]) - 1));
  }
  std::printf("%s: split elu within %.2g, relative\n", kernels.instruction_set, error);
  expect(error < 2.4e-7, "a split elu is inaccurate");
}

// Through the inverse in double precision, at every uniform that a word gives.
void ndtri_inverts_the_normal_distribution() {
  double error = 0, asymmetry = 0;
  for (uint32_t word = 0; word < 1u << 23; ++word) {
    const float u = philox_uniform(word << 9);
    const double x = ndtri(u);
    const double tail = u < 0.5f ? u : 1.0 - u;
    const double below = 0.5 * std::erfc(std::abs(x) * std::sqrt(0.5));
    const double density = std::exp(-0.5 * x * x) * 0.3989422804014327;
    // In units of x; the second term of Newton's step is below 1e-12 here.
    error = std::max(error, std::abs((below - tail) / (density * x)));
    asymmetry = std::max(asymmetry, std::abs(x + ndtri(1.0f - u)));
    if ((u < 0.5f) != (x < 0)) error = INFINITY;
  }
  std::printf("ndtri within %.2g, relative\n", error);
  expect(error < 4e-7, "ndtri is inaccurate");  // torch.special.ndtri in float32: 3.8e-7
  expect(asymmetry == 0, "ndtri is not odd about 1/2");
}

void batches_are_shared_out() {
  for (int64_t n : {1, 5, 131, 132, 133, 1056, 2112, 4300, 50000})
    for (int processors : {1, 84, 132})
      for (size_t images_that_fit : {1, 100, 5000, 1000000})
        for (int max_slice : {0, 1, 7}) {
          const Partition s =
              partition_batch(n, processors, 1000, 1000 * images_that_fit + 999, max_slice);
          const std::string what = " for " + std::to_string(n) + " images";
          expect(s.workers >= 1 && s.workers <= processors && s.workers <= s.slices,
                 "blocks" + what);
          expect(s.slices <= n && s.largest * s.slices >= n, "images left over" + what);
          expect((n + s.slices - 1) / s.slices == s.largest, "the largest slice" + what);
          expect(static_cast<size_t>(s.workers) * static_cast<size_t>(s.largest) <= images_that_fit,
                 "more than memory holds" + what);
          expect(s.largest <= (max_slice ? max_slice : kMostImages), "a slice too large" + what);
        }
  // The processors of an H100 all busy, in one round if slices of 32 suffice.
  const Partition s = partition_batch(2112, 132, 1, 1 << 20, 0);
  expect(s.workers == 132 && s.slices == 132 && s.largest == 16, "2112 images on 132 processors");
  expect(partition_batch(5, 132, 1, 1 << 20, 0).workers == 5, "five images on five blocks");
  expect(throws([] { partition_batch(5, 132, 100, 99, 0); }), "an image that does not fit");
}

void blocks_fit_into_shared_memory() {
  for (bool bf16 : {false, true})
    for (int filters : {3, 40, 160, 400}) {
      const DevicePlan plan(Toy(filters, 3, Conditioning::kNone).take(), bf16);
      const auto lay_out = [&](int limit) { return plan.shared(8, limit); };
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

// The worker of CUDA loads a summand while the operation before writes its results.
void a_fresh_summand_is_refused() {
  Program program = Toy(4, 1, Conditioning::kNone).take();
  expect(!throws([&] { DevicePlan(program, true); }), "a good plan");
  for (size_t i = 1; i < program.ops.size(); ++i)
    if (program.ops[i].phase == Phase::kHorizontal && program.ops[i].gate)
      program.ops[i - 1].residual_out = program.ops[i].residual_in;
  checked(program);
  expect(throws([&] { DevicePlan(program, true); }), "a summand that was just written");
}

// Beside those of tests/faults and tests/test_cached_sampler.py.
void bad_programs_are_refused() {
  const auto refused = [](auto change) {
    Program program = Toy(4, 1, Conditioning::kNone).take();
    change(program);
    return throws([&] { checked(program); });
  };
  const auto classes = [&](int size, size_t numbers, float value = 0.5f) {
    return refused([&](Program& p) {
      p.condition_size = size;
      p.ops[2].projection.assign(numbers, value);
    });
  };
  const size_t n = static_cast<size_t>(Toy(4, 1, Conditioning::kNone).take().ops[2].n);
  expect(!classes(3, 3 * n) && !classes(3, 0) && !refused([](Program&) {}), "a good program");
  for (const auto& [size, numbers] : {std::pair{3, 3 * n - 1}, {2, 3 * n}, {0, n}, {-1, n}})
    expect(classes(size, numbers), "a projection's size");
  expect(classes(1, n, NAN), "a projection that is not a number");
  expect(refused([](Program& p) { p.ops[1].terms[0].drow = -2; }), "a row that is gone");
  expect(refused([](Program& p) { p.ops[1].terms[0].dcol = 0; }), "a tap beyond the padding");
  expect(refused([](Program& p) { p.ops[1].terms[0].dcol = INT_MAX; }), "a sum that overflows");
  expect(refused([](Program& p) { p.n_mix = INT_MAX / 3 + 1; }), "a product that overflows");
  expect(refused([](Program& p) { p.ops.back().terms[0].dcol = 1; }), "a pixel to the right");
  expect(refused([](Program& p) { p.params = p.image; }), "parameters in the image");
  expect(refused([](Program& p) { p.ops[p.ops.size() - 2].split = false; }),
         "a concat_elu where three parts fit");
}

void an_exception_stops_the_workers() {
  const CpuSampler sampler(Toy(40, 1, Conditioning::kNone).take(), "generic", false);
  for (int threads : {2, 3}) {
    std::vector<float> out(2u * 4096u * 64u);
    try {
      const Slice all{0, 4096, 64, 0, 0, 1.0f, nullptr, out.data()};
      sampler.sample({2, all, threads, 0}, [](double) { throw std::runtime_error("stop"); });
      expect(false, "the call went on");
    } catch (const std::runtime_error&) {
    }
  }
}

int write_images() {
  for (bool bf16 : {false, true})
    for (const Case& c : kCases) {
      const auto out = draw(CpuSampler(c.program(), fma_set(), bf16), c, 0, 9, 1, 0);
      std::fwrite(out.data(), sizeof(float), out.size(), stdout);
    }
  return failures != 0;
}

int run_all() {
  bad_programs_are_refused();
  a_fresh_summand_is_refused();
  ndtri_inverts_the_normal_distribution();
  for (bool bf16 : {false, true})
    for (const std::string& set : instruction_sets()) {
      if (find_tile_kernels(set, bf16).instruction_set != set) continue;  // another set's kernels
      bf16 ? split_elu_loses_nothing(find_tile_kernels(set, bf16))
           : activations_are_accurate(find_tile_kernels(set, bf16));
      for (const Case& c : kCases) same_bits_however_shared(c, set, bf16);
    }
  cuda_equals_cpu_on_all_shapes();
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
  const bool images = argc == 2 && std::strcmp(argv[1], "images") == 0;
  return images ? dsmooth::sampler::write_images() : dsmooth::sampler::run_all();
}
