"""The samplers of one network, for users."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from ..config import Precision
from ..fields import check_number
from ..machine import torch_threads
from ..nn import PixelCNNpp
from .cached import PackedNetwork
from .draw import Choices
from .resolve import resolve
from .sequential import ForwardPasses
from .two_step import draw


class CachedSampler(PackedNetwork):
    """Draws images from a PixelCNNpp on its device; each activation is computed once per image.

    It draws the images of `sequential_sample`, up to rounding, from the same noise. For a given
    dtype and instruction set they are bitwise the same for any batch size, first_index, slicing and
    number of threads.

    model: on the CPU or a CUDA device, in evaluation or training mode (it samples without dropout).
    Its weights are copied and packed once, here: later changes do not affect the sampler. dtype:
    torch.float32, or torch.bfloat16 for weights and activations; sums and the head are always
    float32. On a CUDA device bfloat16 is faster, since it uses tensor cores. instruction_set: of
    the CPU alone; "auto" is the best that the CPU has. For bfloat16 "avx512" includes "avx512bf16".

    Raises TypeError for a layer that is not the library's own or has forward hooks. Raises
    ValueError for another dtype, for a model on an unsupported device and for a parameter that is
    not finite. Raises RuntimeError, with the reason, if the extension is missing or cannot use the
    device, or if the CPU lacks the instruction set.

    For a CUDA device without packaged machine code, the first sampler compiles it, which takes
    about 20 seconds, and stores it in ~/.cache/dsmooth.
    """

    def sample(
        self,
        n: int,
        height: int,
        width: int,
        *,
        context: Tensor | None = None,
        threads: int | None = None,
        max_slice: int | None = None,
        **choices: Unpack[Choices],
    ) -> Tensor:
        """Draw n images.

        height, width: multiples of 4. context: (n, C, height, width) for a conditioned model, on
        the model's device. threads: None for torch's setting. max_slice: maximal number of images
        that a thread (a thread block) draws at a time, which bounds the memory. choices: see
        `Choices`; known is float32, and known and mask are on the model's device.
        Returns (n, C, height, width) float32 on the sampler's device; the value of a byte for a
        discretized likelihood, unclamped for the others.

        On the CPU, Ctrl-C ends the call within a second. On a CUDA device the call launches a
        kernel for every few rows on the current stream, and returns before the last kernels finish.
        It ignores threads. A context that is not finite gives images that are not
        finite. A CUDA graph can capture the call; the sampler must outlive the graph.

        Raises ValueError for arguments out of range, before any work; MemoryError, or
        torch.cuda.OutOfMemoryError, if the caches do not fit.
        """
        for name, value in (("threads", threads), ("max_slice", max_slice)):
            if value is not None:
                check_number(name, value)
        draw = resolve(self, n, size=(height, width), x_tilde=context, **choices)
        return self.run(draw, threads, max_slice)


def sample_images(
    model: PixelCNNpp,
    n: int,
    *,
    height: int,
    width: int,
    context: Tensor | None = None,
    threads: int | None = None,
    precision: Precision = "auto",
    **choices: Unpack[Choices],
) -> Tensor:
    """Draw n images by `CachedSampler` if it can run, else by `sequential_sample`.

    precision: of the cached sampler; "auto" is bfloat16 where it is faster (a CUDA device, a
    processor with AMX, an AMD processor with AVX512-BF16), else float32. Other arguments, result
    and errors: see `CachedSampler.sample`. A network is packed again if its weights have changed.
    """
    with torch_threads(threads):
        size = height, width
        return draw(resolve(model, n, size=size, precision=precision, x_tilde=context, **choices))


def sequential_sample(
    model: PixelCNNpp,
    n: int,
    *,
    height: int,
    width: int,
    context: Tensor | None = None,
    **choices: Unpack[Choices],
) -> Tensor:
    """Draw n images pixel by pixel in raster order, with one forward pass per pixel.

    The noise of pixel (r, c) of image i is Philox4x32-10 with key `seed` and counter
    (r * width + c, first_index + i low, high, stream), stream 0 without context and 1 with one. So
    an image depends only on its index and the seed, up to the rounding of the forward pass, which
    the batch may change. The model samples in evaluation mode, without dropout. It may be of a
    subclass, or have hooks and layers of its own.

    context: (n, C, height, width) for a conditioned model. choices: see `Choices`.
    Returns (n, C, height, width) in the model's dtype and device; drawn pixels are unclamped for a
    continuous likelihood, the value of a byte for a discretized one. Raises ValueError for
    arguments that are out of range or do not fit. Source: docs/math.md, section 3.
    """
    drawer = ForwardPasses(model)
    return drawer.run(resolve(drawer, n, size=(height, width), x_tilde=context, **choices))
