// Invariants of the sampler that need no Python, run under the sanitizers (run.sh):
//   sampler_test          all invariants
//   sampler_test plant N  draws like CUDA without sync N, with threads as lanes:
//                         ThreadSanitizer must report it
//   sampler_test images   writes images drawn with FMA, which have the same bits on all processors
#include "../sampler/cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/isa.h"
#include "../sampler/cpu/worker.h"
#include "expect.h"
#include "sampler_block.h"
#include "sampler_toy.h"

namespace dsmooth::sampler {
namespace {

constexpr int kHeight = 4, kWidth = 8, kAllRows = 2 * kHeight;
constexpr Likelihood kDiscretized = Likelihood::kDiscretized;

struct Case {
  Program program;
  bool completes = false;  // some pixels are known
  float guidance = 0.0f;   // if nonzero, of pairs of images with different contexts
  int64_t images(int64_t n) const { return guidance > 0 ? 2 * n : n; }
  int64_t size(int64_t n) const { return images(n) * program.image_channels * kHeight * kWidth; }
};
const Case kCases[] = {
    {Toy(12, 1, Conditioning::kNone)},
    {Toy(9, 3, Conditioning::kStack, 0, Likelihood::kGaussian)},
    {Toy(20, 1, Conditioning::kConcat)},
    {Toy(7, 3, Conditioning::kNone, 0, kDiscretized)},
    {Toy(10, 3, Conditioning::kStack), true},
    {Toy(11, 1, Conditioning::kNone), true},
    {Toy(13, 1, Conditioning::kNone, 3)},
    {Toy(9, 3, Conditioning::kStack, 1)},
    {Toy(9, 1, Conditioning::kNone, 2), true},
    {Toy(12, 1, Conditioning::kConcat, 2)},
    {Toy(6, 1, Conditioning::kNone, 0, kDiscretized, {true, 4, 5}), true},
    {Toy(5, 3, Conditioning::kStack, 0, kDiscretized, {false, 2, 3})},
    {Toy(4, 1, Conditioning::kStack, 0, Likelihood::kContinuous, {false, 0, 3})},
    {Toy(3, 1, Conditioning::kConcat, 2, kDiscretized, {true, 16, 0})},
    {Toy(12, 1, Conditioning::kConcat, 2), false, 0.5f},
    {Toy(6, 1, Conditioning::kNone, 3, kDiscretized, {true, 4, 5}), false, 2.0f}};

std::vector<float> draw(const CpuSampler& sampler, const Case& c, int64_t first, int64_t n,
                        int threads, int slice) {
  const int64_t begin = c.images(first), end = c.images(first + n);
  Drawing drawing(c.program, end, kHeight, kWidth, c.completes, c.guidance);
  sampler.sample({end - begin, drawing.all.images(sampler.network(), begin, end), threads, slice},
                 [](double) {});
  const std::vector<float> out(drawing.out.begin() + c.size(first), drawing.out.end());
  for (size_t i = 0; i < out.size(); ++i)
    if (const float known = drawing.known[c.size(first) + i]; !std::isnan(known))
      expect(out[i] == known, "a known pixel changed");
  return out;
}

bool same(const std::vector<float>& a, const float* b) {
  return std::memcmp(a.data(), b, a.size() * sizeof(float)) == 0;
}

void same_bits_however_shared(const Case& c, const std::string& set, bool bf16) {
  const CpuSampler sampler(c.program, set, bf16);
  const std::vector<float> all = draw(sampler, c, 0, 9, 1, 0);
  expect(std::all_of(all.begin(), all.end(), [](float x) { return std::isfinite(x); }),
         set + ": a pixel is not finite");
  struct {
    int first, n, threads, slice;
  } ways[] = {{0, 9, 2, 0}, {0, 9, 3, 1}, {0, 1, 3, 0}, {8, 1, 2, 0}, {2, 2, 4, 0}, {1, 7, 1, 3}};
  for (const auto& w : ways)
    expect(same(draw(sampler, c, w.first, w.n, w.threads, w.slice), all.data() + c.size(w.first)),
           set + ": different bits with " + std::to_string(w.threads) + " threads");
}

// The images of an emulated call of the CUDA sampler.
template <class T, int kWarps, int kWarpLanes>
std::vector<float> draw_as_cuda(const Case& c, int n, const Card& device, int max_slice, Mode mode,
                                int64_t omit = -1) {
  Drawing drawing(c.program, c.images(n), kHeight, kWidth, c.completes, c.guidance);
  draw_as_cuda<T, kWarps, kWarpLanes>(c.program, drawing.all, c.images(n), device, max_slice, mode,
                                      omit);
  return drawing.out;
}

// The instruction set with FMA and no other arithmetic; empty if there is none.
std::string fma_set() {
  for (const char* set : {"avx2", "neon"})
    if (has_instruction_set(set)) return set;
  return "";
}

// Sums in the order of CUDA's emulated fragments, with one rounding per product, equal those of the
// CPU if it has FMA: the images then have the same bits.
template <class T, int kWarps, int kWarpLanes>
void cuda_equals_cpu(const Case& c, const Card& device, int max_slice, Mode mode) {
  constexpr int kImages = 5;
  const CpuSampler sampler(c.program, fma_set(), sizeof(T) == sizeof(Bf16));
  const std::vector<float> expected = draw(sampler, c, 0, kImages, 1, 0);
  const auto out = draw_as_cuda<T, kWarps, kWarpLanes>(c, kImages, device, max_slice, mode);
  expect(same(out, expected.data()),
         "the CUDA worker gives different bits than the CPU, " +
             std::to_string(c.program.ops[0].n) + " filters, " + std::to_string(sizeof(T)) +
             " bytes, " + std::to_string(device.shared_limit) + " bytes of shared memory");
}

void cuda_equals_cpu_on_all_shapes() {
  if (fma_set().empty()) return;
  constexpr Card kRoomy{2, 227 << 10, 3}, kTight{1, 40 << 10, kAllRows};
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
  const Case wide{Toy(136, 1, Conditioning::kNone)};
  cuda_equals_cpu<Bf16, 4, 1>(wide, {1, 227 << 10, kAllRows}, 0, Mode::kTurns);
#endif
}

// elu, split or not, and the gate against double precision, from 1e-30 to 200 and their negatives.
// Three bfloat16 hold elu as float32 does.
void epilogues_are_accurate(const CpuKernels& kernels) {
  std::vector<float> x;
  for (float magnitude = 1e-30f; magnitude < 200; magnitude *= 1.0007f)
    for (const float sign : {1.0f, -1.0f}) x.push_back(sign * magnitude);
  const int n = static_cast<int>(x.size()) / 8;
  x.resize(n * 8);
  std::vector<float> act(2 * x.size()), value(x.size()), sums(2 * x.size()), zeros(x.size());
  const Panel panel{nullptr, 2 * kUnit, kMaxPiece, 2, 0, 0, 8};
  Job job{};
  job.epilogue.channels = 8;
  job.epilogue.split = kernels.bf16;
  job.epilogue.act_out = {act.data(), kernels.bf16 ? 8 * kAddends / 2 : 16};
  kernels.finish(job, panel, 0, n, x.data(), 8);
  // With A = 1 and no residual the value is the gate.
  for (size_t i = 0; i < x.size(); ++i) {
    sums[i / 8 * 16 + i % 8] = 1.0f;
    sums[i / 8 * 16 + 8 + i % 8] = x[i];
  }
  job.epilogue = {true, false, 8, {zeros.data(), 8}, {}, {value.data(), 8}, {}, {}};
  kernels.finish(job, panel, 0, n, sums.data(), 16);
  double elu_error = 0, gate_error = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const auto check_elu = [&](double v, double got) {
      elu_error = std::max(elu_error, std::abs(got / (v > 0 ? v : std::expm1(v)) - 1));
    };
    if (kernels.bf16) {
      const auto* addends = reinterpret_cast<const bfloat16*>(act.data()) + i / 8 * 8 * kAddends;
      double sum = 0;
      for (size_t addend = 0; addend < kAddends; ++addend)
        sum += from_bfloat16(addends[addend * 8 + i % 8]);
      check_elu(x[i], sum);
    } else {
      check_elu(x[i], act[i / 8 * 16 + i % 8]);
      check_elu(-x[i], act[i / 8 * 16 + 8 + i % 8]);
    }
    if (x[i] < -87) continue;  // there the gate stays at e^-87, 1e-38
    gate_error = std::max(gate_error, std::abs(value[i] * (1 + std::exp(-double{x[i]})) - 1));
  }
  std::printf("%s: elu within %.2g, sigmoid within %.2g, relative\n", kernels.instruction_set,
              elu_error, gate_error);
  expect(elu_error < 2.4e-7 && gate_error < 2.4e-7, "elementary functions are inaccurate");
}

// Compared with the inverse in double precision, at every uniform that a word gives.
void ndtri_inverts_the_normal_distribution() {
  double error = 0;
  for (uint32_t word = 0; word < 1u << 23; ++word) {
    const float u = philox_uniform(word << 9);
    const double x = ndtri(u), tail = u < 0.5f ? u : 1.0 - u;
    const double below = 0.5 * std::erfc(std::abs(x) * std::sqrt(0.5));
    const double density = std::exp(-0.5 * x * x) * 0.3989422804014327;
    // In units of x; the second term of Newton's step is below 1e-12 here.
    error = std::max(error, std::abs((below - tail) / (density * x)));
    if ((u < 0.5f) != (x < 0) || x != -ndtri(1.0f - u)) error = INFINITY;
  }
  std::printf("ndtri within %.2g, relative\n", error);
  expect(error < 4e-7, "ndtri is inaccurate");  // torch.special.ndtri in float32: 3.8e-7
}

void batches_are_shared_out() {
  for (int64_t n : {1, 5, 131, 132, 133, 2112, 4300, 50000})
    for (int processors : {1, 84, 132})
      for (size_t images_that_fit : {1, 100, 5000, 1000000})
        for (int max_slice : {0, 1, 7})
          for (int passes : {1, 2}) {
            const size_t fit = passes * images_that_fit;
            const Partition s =
                partition_batch(passes * n, processors, 1000, 1000 * fit + 999, max_slice, passes);
            const int most = std::max(max_slice ? max_slice : kMostImages, passes);
            expect(s.workers >= 1 && s.workers <= processors && s.workers <= s.slices &&
                       s.slices <= n && (n + s.slices - 1) / s.slices * passes == s.largest &&
                       static_cast<size_t>(s.workers * s.largest) <= fit && s.largest <= most,
                   "slices of " + std::to_string(n) + " images");
          }
  // All processors of an H100 are busy, in one round if slices of 32 suffice.
  const Partition s = partition_batch(2112, 132, 1, 1 << 20, 0);
  expect(s.workers == 132 && s.slices == 132 && s.largest == 16, "2112 images on 132 processors");
  expect(partition_batch(5, 132, 1, 1 << 20, 0).workers == 5, "five images on five blocks");
  expect(throws([] { partition_batch(5, 132, 100, 99, 0); }), "an image that does not fit");
}

void blocks_fit_into_shared_memory() {
  for (bool bf16 : {false, true})
    for (int filters : {3, 40, 160, 400}) {
      const auto lay_out = [&](int limit) {
        return CudaSampler(Toy(filters, 3, Conditioning::kNone), bf16, {1, limit}).shared();
      };
      const int roomy = lay_out(1 << 20).bytes, smallest = lay_out(roomy - 1).bytes;
      expect(throws([&] { lay_out(smallest - 1); }), "a block that does not fit");
      for (int limit : {smallest, 227 << 10, roomy}) {
        if (limit < smallest) continue;
        const SharedLayout l = lay_out(limit);
        expect(l.bytes <= limit && l.tall == (limit >= roomy), "shared memory overflows");
        for (int at : {l.addresses, l.ops, l.rows, l.near, l.near_stride, l.near_raw, l.scratch})
          expect(at % kGranule == 0, "an area that is read in granules is not aligned");
      }
    }
}

// One image of 39 GB with a cache of 19 GB has few enough granules, but 2^32 words in that cache.
void caches_are_counted_by_32_bits() {
  const CudaSampler sampler(Toy(64, 1, Conditioning::kConcat), false, {1, 227 << 10});
  const auto plan = [&](int side) { return sampler.plan(1, side, side, SIZE_MAX, 0, 1); };
  expect(plan(4096).workspace.words > 0, "an image that fits");
  expect(throws([&] { plan(6144); }), "a cache whose words 32 bits do not count");
}

// In addition to those of tests/faults and tests/sampling/test_cached_sampler.py.
void bad_programs_are_refused() {
  const auto refused = [](auto change) {
    Program program = Toy(4, 1, Conditioning::kNone);
    change(program);
    return throws([&] { CudaSampler(program, true, {1, 227 << 10}); });
  };
  const auto projected = [&](int size, int missing) {
    return refused([&](Program& p) {
      p.n_classes = size;
      p.ops[2].projection.resize(p.ops[2].n * 3 - missing);
    });
  };
  expect(!refused([](Program&) {}) && !projected(3, 0), "a good program");
  expect(projected(3, 1) && projected(2, 0) && projected(0, 0) && projected(-1, 0), "a projection");
  expect(refused([](Program& p) { p.ops[1].terms[0].channels += 2; }), "channels of another cache");
  expect(refused([](Program& p) { p.image_again = true; }), "an image's cache without the second");
  expect(refused([](Program& p) { p.feature_table.resize(1); }), "a table without features");
  expect(refused([](Program& p) { p.params = p.image; }), "parameters in the image");
  expect(refused([](Program& p) { p.ops[p.ops.size() - 2].split = false; }),
         "a concat_elu where three addends fit");
  // Operation 0 is the vertical stem, 8 the horizontal one: a row part, then the pixels on the
  // left.
  expect(refused([](Program& p) { p.ops[0].terms[1].drow = 0; }) &&
             refused([](Program& p) { p.ops[8].terms[0].drow = 0; }) &&
             refused([](Program& p) { p.ops[8].terms[1].dcol = 0; }),
         "a pixel that is not drawn yet");
}

void an_exception_stops_the_workers() {
  const CpuSampler sampler(Toy(40, 1, Conditioning::kNone), "generic", false);
  std::vector<float> out(2u * 4096u * 64u);
  const Slice all{0, 4096, 64, 0, 0, 1.0f, nullptr, out.data()};
  const auto stop = [](double) { throw std::runtime_error("stop"); };
  for (int threads : {2, 3})
    expect(throws([&] { sampler.sample({2, all, threads, 0}, stop); }), "the call continued");
}

void late_lanes_sleep_for_some_rows() {
  constexpr bool kSolo = true, kEnds = true;
  struct {
    Pace now;
    int late;
    bool row_ends;
    Pace next;
  } table[] = {{{!kSolo, 4, 4}, 6, !kEnds, {!kSolo, 4, 4}},    // not late often enough
               {{!kSolo, 4, 4}, 7, !kEnds, {kSolo, 4, 4}},     // from the next barrier on
               {{kSolo, 4, 4}, 0, !kEnds, {kSolo, 4, 4}},      // a solo lasts to the end of a row
               {{kSolo, 4, 4}, 7, kEnds, {kSolo, 3, 4}},       // and for some rows
               {{kSolo, 1, 4}, 7, kEnds, {!kSolo, 8, 8}},      // the next one is twice as long
               {{kSolo, 1, 64}, 7, kEnds, {!kSolo, 64, 64}},   // at most 64 rows
               {{!kSolo, 8, 8}, 7, kEnds, {!kSolo, 16, 16}},   // late at the last barriers
               {{!kSolo, 16, 16}, 6, kEnds, {!kSolo, 4, 4}}};  // a row on time
  for (const auto& row : table)
    expect(decide(row.now, row.late, row.row_ends) == row.next,
           "the pace after " + std::to_string(&row - table) + " of the table");
}

void pixels_enter_to_16_bits() {
  NetworkView view{};
  view.image_channels = 3;
  view.image_addends = 2;
  view.bf16 = true;
  const Pixel pixel{{0.1234567f, -0.9876543f, 1 / 3.0f}};
  float to[4] = {};
  store_pixel(view, pixel, to);
  bfloat16 channels[8];
  std::memcpy(channels, to, sizeof(channels));
  for (int c = 0; c < 3; ++c) {
    const float sum = from_bfloat16(channels[c]) + from_bfloat16(channels[3 + c]);
    expect(std::abs(sum - pixel.value[c]) < 0x1p-16f, "a pixel lost bits on its way in");
  }
}

void write_images() {
  for (bool bf16 : {false, true})
    for (const Case& c : kCases) {
      const auto out = draw(CpuSampler(c.program, fma_set(), bf16), c, 0, 9, 1, 0);
      std::fwrite(out.data(), sizeof(float), out.size(), stdout);
    }
}

void run_all() {
  bad_programs_are_refused();
  ndtri_inverts_the_normal_distribution();
  pixels_enter_to_16_bits();
  late_lanes_sleep_for_some_rows();
  for (bool bf16 : {false, true})
    for (const std::string& set : instruction_sets()) {
      const CpuKernels& kernels = find_cpu_kernels(set, bf16);
      if (kernels.instruction_set != set) continue;  // another set's kernels
      epilogues_are_accurate(kernels);
      for (const Case& c : kCases) same_bits_however_shared(c, set, bf16);
    }
  cuda_equals_cpu_on_all_shapes();
  batches_are_shared_out();
  blocks_fit_into_shared_memory();
  caches_are_counted_by_32_bits();
  an_exception_stops_the_workers();
}

}  // namespace
}  // namespace dsmooth::sampler

int main(int argc, char** argv) {
  using namespace dsmooth::sampler;
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "plant")
    draw_as_cuda<float, 4, 1>(kCases[0], 3, {1, 64 << 10, kAllRows}, 0, Mode::kThreads,
                              std::atoll(argv[2]));
  else if (mode == "images")
    write_images();
  else
    run_all();
  return dsmooth::report();
}
