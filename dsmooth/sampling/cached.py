"""Cached incremental sampling in the native extension, with forward passes as the fallback."""

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
from typing_extensions import Unpack

from .._extension import extension, warn_once
from ..config import Precision
from ..cuda import sampler_kernel, sampler_obstacle
from ..fields import check_number, check_one_of
from ..machine import has_fast_bfloat16, torch_threads
from ..nn import PixelCNNpp
from ..nn.condition import check_context
from ..nn.weights import changed_layer
from ..progress import advance_to
from .operations import as_numpy
from .program import Program
from .request import Choices, Request, checked_shape
from .sequential import draw_sequentially

InstructionSet = Literal["auto", "generic", "avx2", "avx512", "avx512bf16", "amx", "neon"]

# Fraction of the device's free memory that the caches of one call may use.
MEMORY_FRACTION = 0.8
# Launches, of a few rows each, that may be queued: about as much work as Ctrl-C waits for.
LAUNCHES_AHEAD = 8
POLL_SECONDS = 0.001


class CachedSampler:
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
        check_one_of("device", device.type, ("cpu", "cuda"))
        for name, parameter in model.named_parameters():
            if not np.isfinite(as_numpy(parameter)).all():
                raise ValueError(f"every parameter must be finite, got a NaN or infinity in {name}")
        check_one_of("dtype", dtype, (torch.float32, torch.bfloat16))
        self.config = model.config
        self.dtype = dtype
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
        request = Request.make(n, choices)
        return self.run(request, (height, width), context, threads, max_slice)

    def run(
        self,
        request: Request,
        size: tuple[int, int],
        context: Tensor | None = None,
        threads: int | None = None,
        max_slice: int | None = None,
    ) -> Tensor:
        """Draw a request for images of `size` (H, W), like `sample`."""
        shape = checked_shape(request.count, self.config.image_channels, *size)
        out, mask = torch.empty(shape, dtype=torch.float32, device=self.device), None
        check_context(context, self.config.conditioning, out)
        if request.known is not None:
            out = request.known.keep(out, as_bytes=self.config.fourier_features > 0)
            mask = request.known.mask.contiguous().view(torch.uint8)
        passes = request.passes(self.config, out)
        labels = [label for label in passes if label is not None]
        # The passes of an image are adjacent.
        repeat = partial(torch.repeat_interleave, repeats=len(passes), dim=0)

        out = repeat(out)
        if context is not None:
            context = repeat(context).detach().resolve_neg().contiguous()
            if self.device.type == "cpu" and not np.isfinite(context.numpy()).all():
                raise ValueError("context must be finite, got a NaN or an infinity")
        mask = None if mask is None else repeat(mask)
        label = torch.stack(labels, 1).flatten() if labels else None
        arguments = {
            "out": out,
            "context": context,
            "mask": mask,
            "labels": label,
            "seed": request.seed,
            "first_index": request.first_index,
            "temperature": request.temperature,
            "guidance": request.guidance,
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


def sampler_on(device: torch.device, precision: Precision = "auto") -> tuple[Precision, str | None]:
    """The precision of the cached sampler on `device`, and why it cannot run; None if it can.

    "auto" is bfloat16 where it is faster.
    """
    if precision == "auto":
        is_fast = sampler_obstacle(device) is None and has_fast_bfloat16(device)
        precision = "bfloat16" if is_fast else "float32"
    return precision, sampler_obstacle(device, precision)


# For each network and dtype, the weights that were packed and their sampler.
_PACKED: WeakKeyDictionary[PixelCNNpp, dict[torch.dtype, tuple[Tensor, CachedSampler]]] = (
    WeakKeyDictionary()
)


def draw_network(
    model: PixelCNNpp,
    request: Request,
    size: tuple[int, int],
    context: Tensor | None = None,
) -> Tensor:
    """The images (count, C, H, W) of a request, drawn by `CachedSampler` if it can run.

    Otherwise they are drawn by one forward pass per pixel.
    """
    weight, change = model.head.bias, changed_layer(model)
    operands, obstacle = sampler_on(weight.device, request.precision)
    if change is None and weight.dtype == torch.float64:
        change = "the weights are float64: .float() rounds"
    reason = change or obstacle
    if context is not None and context.is_floating_point():
        context = context.to(torch.float32 if reason is None else weight.dtype)
    if reason is None:
        return packed_sampler(model, getattr(torch, operands)).run(request, size, context)
    if request.precision == "bfloat16":
        raise ValueError(f"precision bfloat16 needs the cached sampler: {reason}")
    hint = "" if change else "; `dsmooth doctor` says more"
    warn_once("one forward pass per pixel: %s%s", reason, hint)
    return draw_sequentially(model, request, size, context)


def packed_sampler(model: PixelCNNpp, dtype: torch.dtype) -> CachedSampler:
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
    kept[dtype] = _flat(frozen), CachedSampler(frozen, dtype)
    return kept[dtype][1]


@torch.no_grad()
def _flat(model: PixelCNNpp) -> Tensor:
    """All weights in one tensor, so that a comparison waits for a GPU once."""
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


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
    request = Request.make(n, choices, precision=precision)
    with torch_threads(threads):
        return draw_network(model, request, (height, width), context)


def _free_memory() -> int:
    """Bytes that torch can still allocate on the current CUDA device."""
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
