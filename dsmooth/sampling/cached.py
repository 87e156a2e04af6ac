"""Cached incremental sampling in the native extension, on the CPU or a CUDA device."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .._extension import extension
from ..machine import check_memory
from ..nn import PixelCNNpp
from ..nn.condition import condition_vectors
from ..nn.pixelcnnpp import is_given
from .builder import build_program
from .cuda import CudaDrawer
from .draw import Draw, Label, Progress, check_size, chosen_seed
from .folding import as_float64
from .known import known_pixels

InstructionSet = Literal["auto", "generic", "avx2", "avx512", "avx512bf16"]


class CachedSampler:
    """Draws images from a PixelCNNpp where it lies; each activation is computed once per image.

    It draws the images of `sequential_sample`, up to rounding, from the same noise (see there). The
    work is one forward per image instead of one per pixel. On one dtype and instruction set the
    images are bitwise the same for any batch size, first_index, slicing and number of threads.

    model: on the CPU or a CUDA device, in evaluation or training mode (it samples without
    dropout). Its weights are copied and packed here, once: later changes to the model do not reach
    the sampler. dtype: torch.float32, or torch.bfloat16 for weights and activations with sums in
    float32, and the head in float32 as everywhere; on a CUDA device bfloat16 is the fast one, on
    tensor cores, and float32 is for comparison. instruction_set: of the CPU; "auto" takes the best
    that there is, as "avx512" takes "avx512bf16" for bfloat16.

    Raises TypeError for what is not a PixelCNNpp and for another dtype; ValueError for a model on
    several or on other devices, for a parameter that is not finite and for an instruction set on a
    CUDA device; RuntimeError, with the reason, if the extension is missing, was built without CUDA
    or cannot use the device, or if the CPU lacks the instruction set.
    """

    def __init__(
        self,
        model: PixelCNNpp,
        dtype: torch.dtype = torch.float32,
        *,
        instruction_set: InstructionSet = "auto",
    ) -> None:
        device = _check_model(model)
        if dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
        if device.type == "cuda" and instruction_set != "auto":
            raise ValueError(f'instruction_set must be "auto" on {device}, got {instruction_set!r}')
        self.config = model.config
        self.dtype = dtype
        self.device = device
        settings = native_settings(model, bf16=dtype == torch.bfloat16)
        self._cuda = CudaDrawer(device, settings) if device.type == "cuda" else None
        self._native: Any = None
        if self._cuda is None:
            self._native = extension().CpuSampler(**settings, instruction_set=instruction_set)

    @property
    def instruction_set(self) -> str:
        """The instruction set in use: "generic", "avx2", "avx512" or "avx512bf16", or "cuda"."""
        return "cuda" if self._cuda is not None else str(self._native.instruction_set)

    def bytes_per_image(self, height: int, width: int) -> int:
        """Memory that the caches of one image take, in bytes."""
        return int((self._cuda or self._native).bytes_per_image(height, width))

    def sample(
        self,
        n: int,
        height: int,
        width: int,
        seed: int | None = 0,
        first_index: int = 0,
        context: Tensor | None = None,
        temperature: float = 1.0,
        threads: int | None = None,
        progress: Progress | None = None,
        max_slice: int | None = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        label: Label = None,
    ) -> Tensor:
        """Draw images first_index .. first_index + n - 1 of the stream that `seed` names.

        height, width: multiples of 4. context: (n, C, height, width) for a conditioned model, where
        the model was. temperature: > 0; divides the logits and multiplies the scales. threads: None
        for torch's setting. progress: called with the fraction done, some ten times a second, and
        with 1.0 at the end. max_slice: images at most that a thread (a thread block) draws at a
        time, which bounds the memory; None for a size that suits the device. known, mask: pixels
        that are kept, as of `sequential_sample`; known is float32, both where the model was. label:
        for a model with classes, one for all images or one for each (see `Draw`).
        Returns (n, C, height, width) float32 on the sampler's device; one of the 256 levels for a
        discretized likelihood, unclamped for the others.

        On the CPU, Ctrl-C ends the call within a second with KeyboardInterrupt. On a CUDA device
        the call launches a kernel for every few rows on the current stream and returns while the
        last ones are on their way: threads and progress are not used, and a context that is not
        finite gives images that are not. Ctrl-C is heard between launches. A CUDA graph can capture
        the call; it draws the same images again, as long as the sampler lives.

        Raises ValueError for a count, size, seed, index, temperature, context or known pixels out
        of range, before any work; MemoryError, or torch.cuda.OutOfMemoryError, if the caches do not
        fit.
        """
        draw = Draw(
            n,
            chosen_seed(seed),
            first_index,
            temperature=temperature,
            threads=threads,
            max_slice=max_slice,
            known=known_pixels(known, mask, n),
            label=label,
        )
        return self.draw(draw, (height, width), context, progress)

    def draw(
        self,
        draw: Draw,
        size: tuple[int, int],
        context: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Sample a draw of images of `size` (H, W), as `sample` does."""
        check_size(size)
        shape = (draw.count, self.config.image_channels, *size)
        check_memory(shape)
        self._check_context(context, shape)
        condition = self._condition(draw)
        if self._cuda is not None:
            return self._cuda.draw(draw, shape, context, condition)
        out, known = torch.empty(shape, dtype=torch.float32), draw.known
        if known is not None:
            out = known.keep(out)
        self._native.sample(
            out=out,
            context=None if context is None else context.contiguous(),
            mask=None if known is None else known.mask.contiguous().view(torch.uint8),
            condition=condition,
            seed=draw.seed,
            first_index=draw.first_index,
            temperature=draw.temperature,
            threads=draw.threads or torch.get_num_threads(),
            slice=draw.max_slice or 0,
            progress=progress,
        )
        if progress is not None:
            progress(1.0)
        return out

    def _condition(self, draw: Draw) -> Tensor | None:
        """The vector of each image: (count, D) float32, contiguous; None for a model without."""
        label = draw.labels(self.config.condition_size, self.device)
        like = torch.empty(0, dtype=torch.float32, device=self.device)
        vectors = condition_vectors(label, None, self.config, draw.count, like)
        if vectors is None:
            return None
        if self._cuda is None and not np.isfinite(vectors.detach().numpy()).all():
            raise ValueError("label must be finite, got a NaN or an infinity")
        return vectors.detach().contiguous()

    def _check_context(self, context: Tensor | None, shape: tuple[int, ...]) -> None:
        if not is_given(context, self.config.conditioning):
            return
        if tuple(context.shape) != shape:
            raise ValueError(f"context must have shape {shape}, got {tuple(context.shape)}")
        if context.dtype != torch.float32 or context.device != self.device:
            raise TypeError(
                f"context must be float32 on {self.device}, got {context.dtype} on {context.device}"
            )
        if self._cuda is None and not np.isfinite(context.detach().numpy()).all():
            raise ValueError("context must be finite, got a NaN or an infinity")


def native_settings(model: PixelCNNpp, *, bf16: bool) -> dict[str, Any]:
    """The arguments that every native sampler of a model takes."""
    config = model.config
    return {
        "program": build_program(model, bf16=bf16),
        "image_channels": config.image_channels,
        "n_mix": config.n_mix,
        **config.mixture,
        "conditioned": config.conditioning != "none",
        "bf16": bf16,
    }


def _check_model(model: PixelCNNpp) -> torch.device:
    """Where the model lies. Raises as `CachedSampler` does."""
    if not isinstance(model, PixelCNNpp):
        raise TypeError(f"model must be a PixelCNNpp, got {type(model).__name__}")
    device = model.head.bias.device
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the model must be on the CPU or a CUDA device, got {device}")
    if model.config.noise_levels:
        raise ValueError("the model has several noise_levels: give it at one of them, by at_level")
    for name, parameter in model.named_parameters():
        if parameter.device != device:
            raise ValueError(
                f"the model must be on one device, got {name} on {parameter.device} "
                f"and head.bias on {device}"
            )
        if not np.isfinite(as_float64(parameter)).all():
            raise ValueError(f"every parameter must be finite, got a NaN or infinity in {name}")
    return device
