"""The arguments of a gated resnet's kernels. Needs no Triton."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Operands(NamedTuple):
    """The inputs of a gated resnet, in the order of the field table; None for what is absent."""

    x: Tensor
    skip: Tensor | None
    skip_2: Tensor | None
    conv_in: Tensor
    bias_in: Tensor
    conv_out: Tensor
    bias_out: Tensor
    nin_skip: Tensor | None
    bias_nin: Tensor | None
    gain_in: Tensor | None
    gain_out: Tensor | None
    gain_nin: Tensor | None
    image_bias: Tensor | None
    seed: Tensor | None

    @property
    def skips(self) -> list[Tensor]:
        """The skips that are there, of two at most."""
        return [skip for skip in (self.skip, self.skip_2) if skip is not None]

    @property
    def weights(self) -> list[Tensor]:
        """conv_in, conv_out and, with a skip, nin_skip."""
        nin = [] if self.nin_skip is None else [self.nin_skip]
        return [self.conv_in, self.conv_out, *nin]

    @property
    def gains(self) -> list[Tensor]:
        """One for each of the weights, or none."""
        gains = (self.gain_in, self.gain_out, self.gain_nin)
        return [gain for gain in gains if gain is not None]


class Dropout(NamedTuple):
    """The dropout of a gated resnet: none without a seed.

    keep_from: the least word >> 9 that is kept; scale: the factor of kept elements. first_image:
    where the images begin in a larger batch whose dropout they share.
    """

    seed: Tensor | None = None
    layer: int = 0
    keep_from: int = 0
    scale: float = 1.0
    first_image: int = 0
