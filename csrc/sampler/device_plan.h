// A program made ready for a CUDA device: one image of memory that holds the views, the biases and
// the packed matrices, to be copied there as it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "packing.h"
#include "tile_layout.h"

namespace dsmooth::sampler {

// Words of memory that a block needs; the caches come first.
struct Workspace {
  size_t words, cache_words;
};

// A panel is stored as it is read: row after row of k, each as wide as the panel, a multiple of a
// fragment. The channels of a tap are padded with zeros to whole fragments, an image's place in a
// cache to whole granules. Biases and waiting sums have the order of the outputs, A's and G's each
// padded to whole fragments, whatever the panels.
class DevicePlan {
 public:
  DevicePlan(Program program, bool bf16);

  size_t bytes() const { return image_.size(); }
  // Writes the image of bytes() for a device that holds it at `address`, a multiple of 128; from
  // then on network() has addresses of the device. To be called once: the host's copy goes.
  void write(void* to, uintptr_t address);
  const NetworkView& network() const { return network_; }

  // Columns of the widest panels.
  int row_columns() const { return columns_[0]; }
  int pixel_columns() const { return columns_[1]; }
  // Of the caches and waiting sums of one image.
  size_t bytes_per_image(int height, int width) const {
    return sampler::bytes_per_image(skeleton_.network, height, width);
  }
  Workspace workspace(int images, int height, int width) const;

 private:
  // Appends an array and returns its place in the image, as a pointer.
  template <class T>
  const T* append(const std::vector<T>& values);
  // The pointers at `field` of an array in the image are places, to become addresses.
  template <class T>
  void relocate(const T* array, size_t n, size_t field);
  MatrixView pack(const Op& op, Part part);
  const float* pack_panel(const Op& op, const std::vector<const Term*>& terms, const Panel& panel);

  Skeleton skeleton_;
  NetworkView network_;
  std::vector<unsigned char> image_;
  std::vector<size_t> pointers_;
  int columns_[2] = {kFragment, kFragment};
};

}  // namespace dsmooth::sampler
