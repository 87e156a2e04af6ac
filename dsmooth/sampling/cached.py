"""Cached incremental sampling in the native extension."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from .._extension import extension
from ..cuda import sampler_kernel
from ..fields import check_choices, check_one_of
from ..nn import PixelCNNpp
from ..nn.weights import changed_layer
from ..progress import advance_to
from .draw import Draw
from .operations import as_numpy
from .program import Program

InstructionSet = Literal["auto", "generic", "avx2", "avx512", "avx512bf16", "amx", "neon"]

# Fraction of the device's free memory that the caches of one call may use.
MEMORY_FRACTION = 0.8
# Launches, of a few rows each, that may be queued: about as much work as Ctrl-C waits for.
LAUNCHES_AHEAD = 8
POLL_SECONDS = 0.001


class PackedNetwork:
    """The weights of a network, packed for the native sampler. For users: `CachedSampler`."""

    def __init__(
        self,
        model: PixelCNNpp,
        dtype: torch.dtype = torch.float32,
        *,
        instruction_set: InstructionSet = "auto",
    ) -> None:
        if (reason := changed_layer(model)) is not None:
            raise TypeError(f"the cached sampler cannot run this model: {reason}")
        device = model.device
        dtypes = torch.float32, torch.bfloat16
        check_choices(device=(device.type, ("cpu", "cuda")), dtype=(dtype, dtypes))
        for name, parameter in model.named_parameters():
            if not np.isfinite(as_numpy(parameter)).all():
                raise ValueError(f"every parameter must be finite, got a NaN or infinity in {name}")
        self.config = model.config
        self.dtype, self.image_dtype = dtype, torch.float32
        self.device = device
        bf16 = dtype == torch.bfloat16
        program = Program(model, bf16=bf16)
        self._native: Any  # CpuSampler or CudaSampler
        if device.type == "cpu":
            self._native = extension().CpuSampler(program, bf16, instruction_set)
            return
        check_one_of("instruction_set", instruction_set, ("auto",))  # the others are of the CPU
        self._kernel = sampler_kernel(device, str(dtype).removeprefix("torch."))
        card = self._kernel.card
        # torch restores the previous device without creating a context there.
        with torch.cuda.device(device):
            self._native = extension().CudaSampler(
                program, bf16, card.index, card.processors, self._kernel.shared_limit
            )
            host = torch.empty(self._native.weight_words, dtype=torch.float32)
            self._weights = torch.empty_like(host, device=device)
            self._native.write_weights(host, self._weights)
            self._weights.copy_(host)
            # Then every stream may read them, including one that captures a graph.
            torch.cuda.current_stream(device).synchronize()
            self._free = _free_memory()

    def bytes_per_image(self, height: int, width: int) -> int:
        """Bytes of the caches of one image."""
        return int(self._native.bytes_per_image(height, width))

    @torch.no_grad()
    def run(self, draw: Draw, threads: int | None = None, max_slice: int | None = None) -> Tensor:
        """The images of a draw: (n, C, H, W) float32 on the network's device.

        threads, max_slice: see `CachedSampler.sample`.
        """
        out = torch.empty(
            len(draw.indices), *draw.shape, dtype=self.image_dtype, device=self.device
        )
        context, known, passes = draw.x_tilde, draw.known, draw.passes
        labels = [label for label in passes if label is not None]
        # The passes of an image are adjacent.
        repeat = partial(torch.repeat_interleave, repeats=len(passes), dim=0)
        if context is not None:
            context = repeat(context).detach().resolve_neg().contiguous()
        out = repeat(out if known is None else known.keep(out))
        arguments = {
            "out": out,
            "context": context,
            "mask": known and repeat(known.mask.contiguous().view(torch.uint8)),
            "labels": torch.stack(labels, 1).flatten() if labels else None,
            "seed": draw.seed,
            "first_index": draw.indices.start,
            "temperature": draw.temperature,
            "guidance": draw.guidance,
        }
        if self.device.type == "cuda":
            self._launch(out.shape, max_slice or 0, len(passes), arguments)
        else:
            threads = threads or torch.get_num_threads()
            self._native.sample(
                **arguments, threads=threads, slice=max_slice or 0, progress=advance_to
            )
        advance_to(1.0)
        return out[:: len(passes)].contiguous()

    def _launch(
        self,
        shape: tuple[int, ...],
        max_slice: int,
        passes: int,
        arguments: Mapping[str, Any],
    ) -> None:
        """Launch a kernel for every few rows, on the caller's current stream.

        shape, passes: of the images in `arguments`, which are the same for every launch.
        It waits only while more than LAUNCHES_AHEAD launches are queued, and never during the
        capture of a CUDA graph.
        """
        n, _, height, width = shape
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            capturing = torch.cuda.is_current_stream_capturing()
            if not capturing:  # a capture may not query the driver
                self._free = _free_memory()
            plan = self._native.plan(
                n, height, width, int(MEMORY_FRACTION * self._free), max_slice, passes
            )
            workspace = torch.empty(plan.workspace_words, dtype=torch.float32, device=self.device)
            for value in (*arguments.values(), self._weights):
                if isinstance(value, Tensor):
                    value.record_stream(stream)
            ahead: deque[torch.cuda.Event] = deque()
            for launch in range(plan.launches):
                self._kernel.launch(
                    plan.blocks,
                    self._native.lanes,
                    self._native.shared_bytes,
                    self._native.argument(
                        **arguments, workspace=workspace, plan=plan, launch=launch
                    ),
                    stream.cuda_stream,
                )
                if not capturing:
                    ahead.append(stream.record_event())
                if len(ahead) > LAUNCHES_AHEAD:
                    oldest = ahead.popleft()
                    while not oldest.query():  # Ctrl-C can interrupt this wait
                        time.sleep(POLL_SECONDS)


# For each network and dtype, the weights that were packed and their sampler.
_PACKED: WeakKeyDictionary[PixelCNNpp, dict[torch.dtype, tuple[Tensor, PackedNetwork]]] = (
    WeakKeyDictionary()
)


def packed_sampler(model: PixelCNNpp, dtype: torch.dtype) -> PackedNetwork:
    """The sampler of a network as it is now, packed again only if a weight has changed.

    Changes through `.data` show as well. It is packed from a copy: another thread may change the
    weights, as to their average and back.
    """
    kept, weights = _PACKED.setdefault(model, {}), _flat(model)
    if dtype in kept:
        own, sampler = kept[dtype]
        is_alike = own.dtype == weights.dtype and own.device == weights.device
        if is_alike and sampler.config == model.config and own.equal(weights):
            return sampler
    frozen = copy.deepcopy(model)
    kept[dtype] = _flat(frozen), PackedNetwork(frozen, dtype)
    return kept[dtype][1]


@torch.no_grad()
def _flat(model: PixelCNNpp) -> Tensor:
    """All weights in one tensor, so that a comparison waits for a GPU once."""
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def _free_memory() -> int:
    """Bytes that torch can still allocate on the current CUDA device."""
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
