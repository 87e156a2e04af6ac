"""Cached incremental sampling on a CUDA device, for `CachedSampler`."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
from torch import Tensor

from .._extension import cuda_obstacle, extension
from .draw import Draw

# Of the device's free memory, what the caches of one call may take.
MEMORY_FRACTION = 0.8
# Launches, of a few rows each, that may be on their way: about as much work as Ctrl-C waits for.
LAUNCHES_AHEAD = 8
POLL_SECONDS = 0.001


class CudaDrawer:
    """Draws images with a kernel launch per group of rows, on the caller's current stream.

    The native half only computes sizes and launches; the weights, the workspace and the images are
    tensors. settings: the arguments that every native sampler takes. The weights are on the device
    when this returns, so every stream may read them, that of a graph's capture too.
    Raises RuntimeError, with the reason, if the extension cannot use the device.
    """

    def __init__(self, device: torch.device, settings: dict[str, Any]) -> None:
        obstacle = cuda_obstacle()
        if obstacle is not None:
            raise RuntimeError(f"CachedSampler cannot run on {device}: {obstacle}")
        self.device = device
        # torch makes the former device current again without making a context there.
        with torch.cuda.device(device):
            self._native = extension().CudaSampler(**settings, device=device.index)
            host = torch.empty(self._native.weight_words, dtype=torch.float32)
            self._weights = torch.empty_like(host, device=device)
            self._native.write_weights(host, self._weights)
            self._weights.copy_(host)
            torch.cuda.current_stream(device).synchronize()

    def bytes_per_image(self, height: int, width: int) -> int:
        """Memory that the caches of one image take, in bytes."""
        return int(self._native.bytes_per_image(height, width))

    def draw(
        self,
        draw: Draw,
        shape: tuple[int, int, int, int],
        context: Tensor | None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Images of `shape` (count, C, H, W) on the device, as soon as the stream comes to them.

        condition: (count, D) float32 on the device, for a model with vectors of images.
        Waits only while more than LAUNCHES_AHEAD launches are on their way, and never in the
        capture of a CUDA graph; a graph draws the same images again, as long as the sampler lives.
        The workspace is freed when this returns and given out again in the order of the stream.
        Raises RuntimeError with CUDA's text, torch.cuda.OutOfMemoryError among them.
        """
        n, _, height, width = shape
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            sharing = self._native.share(n, height, width, self._memory(), draw.max_slice or 0)
            words = self._native.workspace_words(sharing, height, width)
            workspace = torch.empty(words, dtype=torch.float32, device=self.device)
            out = torch.empty(shape, dtype=torch.float32, device=self.device)
            mask = None
            if draw.known is not None:
                out = draw.known.keep(out)
                mask = draw.known.mask.contiguous().view(torch.uint8)
                mask.record_stream(stream)
            self._weights.record_stream(stream)
            if context is not None:
                context = context.detach().contiguous()
            for given in (context, condition):
                if given is not None:
                    given.record_stream(stream)
            pace = None if torch.cuda.is_current_stream_capturing() else _Pace(stream)
            for launch in range(self._native.launches(sharing, height)):
                self._native.sample(
                    out=out,
                    context=context,
                    mask=mask,
                    workspace=workspace,
                    sharing=sharing,
                    launch=launch,
                    seed=draw.seed,
                    first_index=draw.first_index,
                    temperature=draw.temperature,
                    condition=condition,
                )
                if pace is not None:
                    pace.launched()
        return out

    def _memory(self) -> int:
        """Bytes that torch can still hand out."""
        free, _ = torch.cuda.mem_get_info(self.device)
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(MEMORY_FRACTION * (free + kept))


class _Pace:
    """Keeps at most LAUNCHES_AHEAD launches on their way, waiting where Ctrl-C is heard."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._ahead: deque[torch.cuda.Event] = deque()

    def launched(self) -> None:
        """Count a launch, and wait if they are too many."""
        self._ahead.append(self._stream.record_event())
        if len(self._ahead) > LAUNCHES_AHEAD:
            oldest = self._ahead.popleft()
            while not oldest.query():
                time.sleep(POLL_SECONDS)
