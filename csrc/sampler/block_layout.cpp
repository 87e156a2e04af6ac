#include "block_layout.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace dsmooth::sampler {
namespace {

int padded(int bytes) { return (bytes + 127) / 128 * 128; }

}  // namespace

SharedLayout lay_out_shared(const NetworkView& network, int header, int op_bytes, int act, int raw,
                            int warps, int limit) {
  SharedLayout layout{};
  int end = padded(header);
  const auto take = [&](int bytes) { return std::exchange(end, end + padded(bytes)); };
  const int n_places = network.n_caches + network.n_ops;
  layout.places = take(n_places * static_cast<int>(sizeof(float*)));
  layout.partials = layout.places + network.n_caches * static_cast<int>(sizeof(float*));
  layout.ops = take(network.n_ops * op_bytes);
  layout.rows = take((network.n_caches * kRowsInReach + 1) * static_cast<int>(sizeof(RowPlace)));
  layout.columns = take((2 * network.n_caches + 1) * static_cast<int>(sizeof(RowPlace)));
  // Two rows that lanes read at once lie in different banks.
  layout.near_raw = act;
  layout.near_stride = padded(act + raw) + kStepGranules * kGranule;
  layout.near = take(2 * layout.near_bytes());
  const int fragments = warps * kWide * kRows * kColumns * static_cast<int>(sizeof(float));
  layout.tall = end + kTall * fragments <= limit;
  layout.scratch = take((layout.tall ? kTall : kLow) * fragments);
  layout.bytes = end;
  if (end > limit)
    throw std::runtime_error("the network is too wide for this device: a block needs " +
                             std::to_string(end) + " bytes of shared memory, and has " +
                             std::to_string(limit));
  return layout;
}

Sharing share(int64_t n, int processors, size_t image_bytes, size_t memory, int max_slice) {
  const int64_t fit = static_cast<int64_t>(memory / image_bytes);
  if (fit < 1)
    throw std::runtime_error("the caches of one image take " + std::to_string(image_bytes) +
                             " bytes, and " + std::to_string(memory) + " are free");
  const int64_t blocks = std::min<int64_t>({n, processors, fit});
  int64_t most = std::min<int64_t>(kMostImages, fit / blocks);
  if (max_slice > 0) most = std::min<int64_t>(most, max_slice);
  const int64_t rounds = (n + blocks * most - 1) / (blocks * most);
  const int64_t slices = std::min(n, rounds * blocks);
  return {slices, static_cast<int>((n + slices - 1) / slices), static_cast<int>(blocks)};
}

}  // namespace dsmooth::sampler
