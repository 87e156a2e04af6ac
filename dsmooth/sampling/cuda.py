"""Cached incremental sampling on a CUDA device, for `CachedSampler`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._extension import cuda_obstacle, extension
from .draw import Draw

# Of the device's free memory, what the caches of one call may take.
MEMORY_FRACTION = 0.8


class CudaDrawer:
    """Draws images with one kernel launch per call, on the caller's current stream.

    The native half only computes sizes and launches; the weights, the workspace and the images are
    tensors. settings: the arguments that every native sampler takes.
    Raises RuntimeError, with the reason, if the extension cannot use the device.
    """

    def __init__(self, device: torch.device, settings: dict[str, Any]) -> None:
        obstacle = cuda_obstacle()
        if obstacle is not None:
            raise RuntimeError(f"CachedSampler cannot run on {device}: {obstacle}")
        self.device = device
        self._native = extension().CudaSampler(**settings, device=device.index)
        host = torch.empty(self._native.weight_words, dtype=torch.float32)
        self._weights = torch.empty_like(host, device=device)
        self._native.write_weights(host, self._weights)
        stream = torch.cuda.current_stream(device)
        with torch.cuda.stream(stream):
            self._weights.copy_(host)
            self._uploaded = stream.record_event()

    def bytes_per_image(self, height: int, width: int) -> int:
        """Memory that the caches of one image take, in bytes."""
        return int(self._native.bytes_per_image(height, width))

    def draw(
        self,
        draw: Draw,
        shape: tuple[int, int, int, int],
        context: Tensor | None,
    ) -> Tensor:
        """Images of `shape` (count, C, H, W) on the device, as soon as the stream comes to them.

        The workspace is freed when this returns and given out again in the order of the stream.
        Raises RuntimeError with CUDA's text, torch.cuda.OutOfMemoryError among them.
        """
        n, _, height, width = shape
        stream = torch.cuda.current_stream(self.device)
        sharing = self._native.share(n, height, width, self._memory(), draw.max_slice or 0)
        words = self._native.workspace_words(sharing, height, width)
        workspace = torch.empty(words, dtype=torch.float32, device=self.device)
        out = torch.empty(shape, dtype=torch.float32, device=self.device)
        stream.wait_event(self._uploaded)
        self._weights.record_stream(stream)
        if context is not None:
            context = context.detach().contiguous()
            context.record_stream(stream)
        self._native.sample(
            out=out,
            context=context,
            workspace=workspace,
            sharing=sharing,
            seed=draw.seed,
            first_index=draw.first_index,
            temperature=draw.temperature,
        )
        return out

    def _memory(self) -> int:
        """Bytes that torch can still hand out."""
        free, _ = torch.cuda.mem_get_info(self.device)
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(MEMORY_FRACTION * (free + kept))
