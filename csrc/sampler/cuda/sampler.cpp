#include "sampler.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace dsmooth::sampler {
namespace {

constexpr size_t kAlignment = 128;

int ceil_of(int n, int d) { return (n + d - 1) / d; }

// The column that computes an output.
int column_of(const Op& op, int output) {
  return op.gate ? output % op.channels() * 2 + output / op.channels() : output;
}

// Output o of row r is values[o * rows + r]; packed rows of columns.
std::vector<float> pack_columns(const Op& op, const std::vector<float>& values, int rows,
                                const CudaOp& to) {
  const size_t depth = rows, columns = to.columns();
  std::vector<float> packed(depth * columns);
  for (int i = 0; i < op.n; ++i)
    for (size_t row = 0; row < depth; ++row)
      packed[row * columns + column_of(op, i)] = values[i * depth + row];
  return packed;
}

CudaOp without_matrices(const Op& op) {
  CudaOp to{};
  to.units = ceil_of(op.n, kColumns);
  to.channels = op.channels();
  to.added = op.gate ? op.residual_in : op.add;
  to.residual_out = op.residual_out;
  to.act_out = op.act_out;
  to.raw_out = op.raw_out;
  to.gate = op.gate;
  to.split = op.split;
  // The fewest tiles that hold the units, as even as possible.
  const int across = ceil_of(to.units, kWide);
  to.units_per_tile = ceil_of(to.units, across);
  to.tiles_across = ceil_of(to.units, to.units_per_tile);
  return to;
}

}  // namespace

template <class T>
const T* CudaSampler::append(const std::vector<T>& values) {
  const size_t offset = (image_.size() + kAlignment - 1) / kAlignment * kAlignment;
  image_.resize(offset + values.size() * sizeof(T));
  if (!values.empty())
    std::memcpy(image_.data() + offset, values.data(), values.size() * sizeof(T));
  return reinterpret_cast<const T*>(offset);
}

// Calls f(term, tap, granule) for every granule of k.
template <class F>
void CudaSampler::each_granule(const std::vector<const Term*>& terms, F f) const {
  for (const Term* term : terms)
    for (int tap = 0; tap < term->taps; ++tap)
      for (int i = 0; i < ceil_of(term->channels, per_granule()); ++i) f(*term, tap, i);
}

std::vector<Source> CudaSampler::sources(const Op& op,
                                         const std::vector<const Term*>& terms) const {
  std::vector<Source> sources;
  each_granule(terms, [&](const Term& term, int tap, int i) {
    const CacheView& cache = skeleton_.caches[term.cache];
    const int row = term.cache * kRowsInReach + term.drow - kRowAbove;
    sources.push_back({static_cast<uint16_t>(row), static_cast<uint8_t>(term.dcol + tap + 1),
                       static_cast<uint8_t>(1 + cache.resolution - op.resolution),
                       static_cast<uint32_t>(i)});
  });
  const int nowhere = network_.n_caches * kRowsInReach;
  while (sources.size() % kStepGranules != 0)
    sources.push_back({static_cast<uint16_t>(nowhere), 0, 0, 0});
  return sources;
}

std::vector<PixelSource> CudaSampler::pixel_sources(const Op& op, const OpView* before) const {
  std::vector<PixelSource> sources;
  each_granule(terms_of(op, Part::kPixel), [&](const Term& term, int tap, int i) {
    const bool own = term.dcol + tap == 0;
    const int column = own ? own_column(term.cache) : left_column(term.cache);
    if (own && before && term.cache == before->act_out)
      sources.push_back({0, i, 0});
    else if (own && before && term.cache == before->raw_out)
      sources.push_back({0, widest(&OpView::act_out) / kGranule + i, 0});
    else
      sources.push_back({column, kNone, static_cast<uint32_t>(i)});
  });
  while (sources.size() % (kWindow * kStepGranules) != 0) sources.push_back({0, kNone, 0});
  return sources;
}

std::vector<PixelStage> CudaSampler::list_stages(const Program& program) {
  std::vector<PixelStage> stages;
  std::map<std::array<int, 3>, const PixelSource*> known;  // operation, near caches
  const NetworkView& network = skeleton_.network;
  for (int list = 0; list < kPixelPeriod * kPixelPeriod; ++list) {
    const OpView* before = nullptr;
    for (int i = network.first_at_pixel[list]; i < network.first_at_pixel[list + 1]; ++i) {
      const int op = skeleton_.at_pixel[i];
      const auto [entry, is_new] = known.insert(
          {{op, before ? before->act_out : kNone, before ? before->raw_out : kNone}, nullptr});
      const OpView& now = network.ops[op];
      if (is_new) entry->second = append(pixel_sources(program.ops[op], before));
      stages.push_back({entry->second, op, now.resolution});
      before = &network.ops[op];
    }
  }
  return stages;
}

MatrixView CudaSampler::pack(const Op& op, Part part, CudaOp& to) {
  const std::vector<const Term*> terms = terms_of(op, part);
  if (terms.empty()) return {nullptr, 0, to.columns()};
  const std::vector<Source> from = sources(op, terms);
  const size_t steps = from.size() / kStepGranules;
  const int step_operands = kStepGranules * per_granule();
  std::vector<Granule> weights(to.units * steps * kWeightGranules);
  for (int output = 0; output < op.n; ++output) {
    const int at = column_of(op, output), column = at % kColumns;
    int first = 0;  // operand of k
    each_granule(terms, [&](const Term& term, int tap, int i) {
      const float* weight =
          term.weight.data() + static_cast<size_t>(output * term.taps + tap) * term.channels;
      const int begin = i * per_granule(), end = std::min(begin + per_granule(), term.channels);
      for (int channel = begin; channel < end; ++channel) {
        const int k = first + channel - begin;
        const size_t step = at / kColumns * steps + k / step_operands;
        auto* bytes = reinterpret_cast<unsigned char*>(weights.data() + step * kWeightGranules);
        bytes += network_.bf16 ? weight_offset<Bf16>(column, k % step_operands)
                               : weight_offset<float>(column, k % step_operands);
        put_operand(reinterpret_cast<float*>(bytes), 0, weight[channel], network_.bf16);
      }
      first += per_granule();
    });
  }
  const int i = static_cast<int>(part);
  to.weights[i] = append(weights);
  to.sources[i] = append(from);
  to.steps[i] = steps;
  return {nullptr, 1, to.columns()};
}

CudaSampler::CudaSampler(Program unchecked, bool bf16, const Card& card) : card_(card) {
  const Program program = checked(std::move(unchecked));
  skeleton_ = Skeleton(program, bf16, kGranule / static_cast<int>(sizeof(float)));
  network_ = skeleton_.network;
  std::vector<CudaOp> cuda_ops;
  for (size_t i = 0; i < program.ops.size(); ++i) {
    const Op& op = program.ops[i];
    CudaOp to = without_matrices(op);
    skeleton_.ops[i].row = pack(op, Part::kRow, to);
    skeleton_.ops[i].pixel = pack(op, Part::kPixel, to);
    to.two_parts = skeleton_.ops[i].two_parts();
    to.bias = append(pack_columns(op, op.bias, 1, to));
    if (!op.projection.empty()) {
      // The sums of a row part start from the image biases.
      if (to.steps[static_cast<int>(Part::kRow)] == 0)
        throw std::invalid_argument(
            "sampler program: an operation with a projection needs a row part");
      to.projected = true;
      skeleton_.ops[i].by_column = true;
      skeleton_.ops[i].bias = to.bias;
      skeleton_.add_projection(i, append(pack_columns(op, op.projection, program.n_classes, to)));
    }
    cuda_ops.push_back(to);
  }
  std::vector<OpView> ops = skeleton_.ops;
  for (OpView& op : ops) op.terms = nullptr;  // the device reads sources instead
  network_.caches = append(skeleton_.caches);
  network_.ops = append(ops);
  network_.image_bias_columns = skeleton_.network.image_bias_columns;
  network_.features = append(skeleton_.features);
  network_.at_pixel = nullptr;  // and stages
  stages_ = append(list_stages(program));
  ops_ = append(cuda_ops);
  image_.resize((image_.size() + kAlignment - 1) / kAlignment * kAlignment);
  shared_ = lay_out();
}

void CudaSampler::write(void* to, uintptr_t address) {
  const auto move = [address](auto& pointer) {
    using Pointer = std::remove_reference_t<decltype(pointer)>;
    pointer = reinterpret_cast<Pointer>(reinterpret_cast<uintptr_t>(pointer) + address);
  };
  const auto in_image = [this]<class T>(const T* offset) {
    return reinterpret_cast<T*>(image_.data() + reinterpret_cast<uintptr_t>(offset));
  };
  for (int i = 0; i < network_.n_ops; ++i) {
    OpView& view = in_image(network_.ops)[i];
    CudaOp& op = in_image(ops_)[i];
    if (view.projection != nullptr) {
      move(view.bias);
      move(view.projection);
    }
    for (int part = 0; part < 2; ++part) {
      move(op.weights[part]);
      move(op.sources[part]);
    }
    move(op.bias);
  }
  for (size_t i = 0; i < skeleton_.at_pixel.size(); ++i) move(in_image(stages_)[i].sources);
  std::memcpy(to, image_.data(), image_.size());
  image_ = {};
  move(network_.caches);
  move(network_.ops);
  move(network_.features);
  move(ops_);
  move(stages_);
}

int CudaSampler::widest(int OpView::* cache) const {
  int bytes = 0;
  const NetworkView& network = skeleton_.network;
  for (int i = network.begin(Phase::kHorizontal); i < network.end(Phase::kHead); ++i)
    if (const int index = network.ops[i].*cache; index != kNone)
      bytes = std::max(bytes, skeleton_.caches[index].stride * 4);
  return bytes;
}

SharedLayout CudaSampler::lay_out() const {
  const NetworkView& network = skeleton_.network;
  const auto padded = [](int bytes) { return (bytes + 127) / 128 * 128; };
  SharedLayout layout{};
  int end = padded(sizeof(BlockHead));
  const auto take = [&](int bytes) { return std::exchange(end, end + padded(bytes)); };
  const int n_addresses = network.n_caches + network.n_ops;
  layout.addresses = take(n_addresses * static_cast<int>(sizeof(float*)));
  layout.partials = layout.addresses + network.n_caches * static_cast<int>(sizeof(float*));
  layout.ops = take(network.n_ops * static_cast<int>(sizeof(CudaOp)));
  layout.rows = take((network.n_caches * kRowsInReach + 1) * static_cast<int>(sizeof(RowAddress)));
  layout.columns = take((2 * network.n_caches + 1) * static_cast<int>(sizeof(RowAddress)));
  // Two rows that lanes read at once are in different banks.
  layout.near_raw = widest(&OpView::act_out);
  layout.near_stride =
      padded(layout.near_raw + widest(&OpView::raw_out)) + kStepGranules * kGranule;
  layout.near = take(2 * layout.near_bytes());
  const int fragments = card_.warps * kWide * kRows * kColumns * static_cast<int>(sizeof(float));
  layout.tall = end + kTall * fragments <= card_.shared_limit;
  layout.scratch = take((layout.tall ? kTall : kLow) * fragments);
  layout.bytes = end;
  if (end > card_.shared_limit)
    throw std::runtime_error("the network is too wide for this device: a block needs " +
                             std::to_string(end) + " bytes of shared memory, but has " +
                             std::to_string(card_.shared_limit));
  return layout;
}

Workspace CudaSampler::workspace(int images, int height, int width) const {
  check_size(height, width);
  const NetworkView& network = skeleton_.network;
  Workspace workspace{kZeroWords, 0};
  bool countable = true;  // granules and a cache's words by 32 bits, an operation's sums by 31
  for (int i = 0; i <= network.n_caches + network.n_ops; ++i) {
    if (i == network.n_caches) workspace.cache_words = workspace.words;
    const size_t words = workspace_words(network, i, images, height, width);
    countable &= words <= (i < network.n_caches ? UINT32_MAX : INT32_MAX);
    workspace.words += words;
  }
  if (!countable || workspace.words / (kGranule / sizeof(float)) > UINT32_MAX)
    throw std::runtime_error("the images are too large: a block's caches take " +
                             std::to_string(workspace.words * sizeof(float)) + " bytes");
  return workspace;
}

Partition partition_batch(int64_t n, int processors, size_t image_bytes, size_t memory,
                          int max_slice, int passes) {
  image_bytes *= passes;
  const int64_t fit = static_cast<int64_t>(memory / image_bytes);
  if (fit < 1)
    throw std::runtime_error("the caches of one image take " + std::to_string(image_bytes) +
                             " bytes, but only " + std::to_string(memory) + " are free");
  const int64_t blocks = std::min<int64_t>({n / passes, processors, fit});
  int64_t most = std::min<int64_t>(kMostImages, fit / blocks * passes);
  if (max_slice > 0) most = std::min<int64_t>(most, max_slice);
  return partition_among(n, blocks, most, passes);
}

int CudaSampler::launches_per_slice(int height) const {
  return ceil_of(network_.rows(height), card_.rows_per_launch);
}

CudaPlan CudaSampler::plan(int64_t n, int height, int width, size_t memory, int max_slice,
                           int passes) const {
  const Partition partition = partition_batch(n, card_.processors, bytes_per_image(height, width),
                                              memory, max_slice, passes);
  const int64_t rounds = (partition.slices + partition.workers - 1) / partition.workers;
  const Workspace needed = workspace(partition.largest, height, width);
  return {n, height, width, passes, partition, needed, rounds * launches_per_slice(height)};
}

BlockRun CudaSampler::argument(const CudaPlan& plan, const Slice& all, float* memory,
                               int64_t launch) const {
  const int per_slice = launches_per_slice(plan.height);
  const int first = static_cast<int>(launch % per_slice) * card_.rows_per_launch;
  const int end = std::min(first + card_.rows_per_launch, network_.rows(plan.height));
  return {plan.n,   all,  plan.partition, memory,  plan.workspace,
          network_, ops_, stages_,        shared_, launch / per_slice,
          first,    end};
}

}  // namespace dsmooth::sampler
