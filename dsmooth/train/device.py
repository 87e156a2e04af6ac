"""How a device computes a step: precision, compiled modules, one CUDA graph, gates kept or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from ..config import KeepGates, Precision, TrainConfig
from ..data import ImageDataset
from ..distributed import broadcast_int, rank_and_size
from ..nn import PixelCNNpp
from ..nn.layers import GatedResnet
from .ranks import share_of_batch

# Calls that run as they are before one is recorded: they make the optimiser's state, choose
# algorithms and compile kernels, none of which may happen while a graph is recorded.
WARM_UP = 3
# Parts of the device's free memory before a run begins that kept gates and all images may take.
MEMORY_FRACTION = 0.25
IMAGES_FRACTION = 0.5


def with_device(config: TrainConfig, device: torch.device, size: tuple[int, int]) -> TrainConfig:
    """The settings with precision and keep_gates as `device` has them, which becomes torch's own.

    size: (H, W) of the images.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    config = replace(config, precision=resolve_precision(config, device))
    return replace(config, keep_gates=resolve_keep_gates(config, device, size))


def resolve_precision(config: TrainConfig, device: torch.device) -> Precision:
    """Replace "auto" by bfloat16 where the machine multiplies it fast, else by float32."""
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if fast else "float32"


def holds(device: torch.device, dataset: ImageDataset) -> bool:
    """Whether all images of a data set are to lie on `device` during a run."""
    if device.type != "cuda":
        return True
    return dataset.images.nbytes <= IMAGES_FRACTION * torch.cuda.mem_get_info(device)[0]


def compile_gated_resnets(model: PixelCNNpp) -> None:
    """Compile each gated resnet by itself: equal shapes share one compilation of seconds."""
    for module in model.modules():
        if isinstance(module, GatedResnet):
            module.compile()


def graph_obstacle(config: TrainConfig, device: torch.device) -> str | None:
    """Why the steps of a run cannot be replayed as a CUDA graph; None if they can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, and this run computes on {device.type}"
    if rank_and_size()[1] > 1:
        return "several processes exchange gradients in every step, which is not recorded"
    if config.compile:
        return "compile=True launches kernels of its own, which are not recorded"
    return None


def uses_graph(config: TrainConfig, device: torch.device) -> bool:
    """Whether the steps of a run are replayed. Raises ValueError if they must be and cannot."""
    obstacle = graph_obstacle(config, device)
    if config.graph == "on" and obstacle is not None:
        raise ValueError(f'graph="on" is not possible: {obstacle}; take "auto" or "off"')
    return config.graph != "off" and obstacle is None


class ReplayedStep:
    """Calls `step`, a function of tensors that stay where they are, and later replays it.

    step: takes and returns nothing, reads nothing back, and sends nothing from the host. The first
    WARM_UP calls run on a side stream, as torch asks of what is to be recorded; the next one is
    recorded. A recording executes nothing, so each call is one step. Source: the section on whole
    networks in torch's notes on CUDA graphs.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self.step = step
        self.device = device
        self.calls = 0
        self.side: torch.cuda.Stream | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """One step, on the current stream."""
        with torch.cuda.device(self.device):
            if self.calls < WARM_UP:
                self._warm_up()
            else:
                if self.graph is None:
                    self.graph = self._record()
                self.graph.replay()
        self.calls += 1

    def _warm_up(self) -> None:
        # One stream for all of them and the recording: torch keeps freed memory for each stream.
        self.side = self.side or torch.cuda.Stream()
        current = torch.cuda.current_stream()
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            self.step()
        current.wait_stream(self.side)

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.side):
                self.step()
        except RuntimeError as error:
            raise RuntimeError(
                f'a step could not be recorded as a CUDA graph; take graph="off" ({error})'
            ) from error
        return graph


def gate_bytes(config: TrainConfig, height: int, width: int) -> int:
    """Memory of all A and G of what a process computes at once, of images of this size."""
    with torch.device("meta"):
        model = PixelCNNpp(config.model)
    filters = sum(
        2 * block.conv_in.weight_v.shape[0] / 4**level
        for level, blocks in _levels(model)
        for block in blocks.modules()
        if isinstance(block, GatedResnet)
    )
    rows = 2 * height if config.model.conditioning == "stack" else height
    images = share_of_batch(config)[1] // config.accumulate
    return int(filters * images * rows * width * (2 if config.precision == "bfloat16" else 4))


def _levels(model: PixelCNNpp) -> Iterable[tuple[int, nn.Module]]:
    """Modules, and how often the images they see were halved."""
    yield from zip((0, 1, 2), cast("Iterable[nn.Module]", model.up), strict=True)
    yield from zip((2, 1, 0), cast("Iterable[nn.Module]", model.down), strict=True)
    if model.encoder is not None:
        yield 0, model.encoder


def resolve_keep_gates(
    config: TrainConfig, device: torch.device, size: tuple[int, int]
) -> KeepGates:
    """Replace "auto": "on" where the Triton kernels compute and a quarter of the free memory holds
    A and G of images of this size (height, width)."""
    if config.keep_gates != "auto":
        return config.keep_gates
    if device.type != "cuda":
        return "off"
    free, _ = torch.cuda.mem_get_info(device)
    fits = gate_bytes(config, *size) <= MEMORY_FRACTION * free
    return "on" if broadcast_int(fits) else "off"


def set_keep_gates(model: PixelCNNpp, keep: bool) -> None:
    """Have all gated resnets of a model keep A and G, or not."""
    for module in model.modules():
        if isinstance(module, GatedResnet):
            module.keep_gates = keep
