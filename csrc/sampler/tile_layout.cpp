#include "tile_layout.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace dsmooth::sampler {
namespace {

int padded(int bytes) { return (bytes + 127) / 128 * 128; }

}  // namespace

SharedLayout lay_out_shared(int row_columns, int pixel_columns, int table_bytes, int operand,
                            int limit) {
  const int table = padded(table_bytes);
  const auto largest = [&](int most_rows, int columns) {
    Tile tile{};
    for (int rows = most_rows; rows >= kFragment; rows /= 2)
      for (int depth = 64; depth >= kFragment; depth /= 2) {
        tile = {rows, depth, columns, operand};
        if (table + tile.bytes() <= limit) return tile;
      }
    throw std::runtime_error("the network is too wide for this device: a block needs " +
                             std::to_string(table + tile.bytes()) +
                             " bytes of shared memory, and has " + std::to_string(limit));
  };
  SharedLayout layout{largest(128, row_columns), largest(kPixelRows, pixel_columns), table, 0};
  layout.bytes = table + std::max(layout.row.bytes(), layout.pixel.bytes());
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
