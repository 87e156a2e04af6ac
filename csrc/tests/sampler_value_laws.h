// Laws of single values: the functions between products, and the draw of a pixel.
#pragma once

#include "../sampler/tile_kernels.h"

namespace dsmooth::sampler {

void activations_are_accurate(const TileKernels& kernels);
void split_elu_loses_nothing(const TileKernels& kernels);
void ndtri_inverts_the_normal_distribution();
void atoms_are_drawn_as_often_as_they_weigh();

}  // namespace dsmooth::sampler
