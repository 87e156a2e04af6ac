"""How processes and a device compute a step: shares, precision, one CUDA graph, gates kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import TrainConfig
from ..distributed import EXCHANGE, broadcast_int, rank_and_size
from ..machine import has_fast_bfloat16
from ..nn import PixelCNNpp
from ..nn.layers import GatedResnet, Nin

# Calls that run as they are before one is recorded: they choose algorithms and compile kernels,
# neither of which may happen while a graph is recorded.
WARM_UP = 3
# A and G, if kept, may take this share of the memory that is free before a run begins.
MEMORY_FRACTION = 0.25


def with_device(config: TrainConfig, device: torch.device, size: tuple[int, int]) -> TrainConfig:
    """The settings with precision and keep_gates as `device` has them, for (H, W) images."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if config.precision == "auto":
        fast = broadcast_int(has_fast_bfloat16(device))  # machines may differ
        config = replace(config, precision="bfloat16" if fast else "float32")
    if config.keep_gates == "auto":
        fits = False
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            fits = bool(broadcast_int(gate_bytes(config, *size) <= MEMORY_FRACTION * free))
        config = replace(config, keep_gates="on" if fits else "off")
    return config


def share_of_batch(config: TrainConfig) -> tuple[int, int]:
    """The share of a batch that this process computes: its first image, and how many images."""
    rank, size = rank_and_size()
    unit = size * config.accumulate
    if config.batch_size % unit:
        below = config.batch_size // unit * unit
        sizes = " or ".join(str(n) for n in (below, below + unit) if n)
        raise ValueError(
            f"`batch_size` must be {sizes} to divide among {size} processes in {config.accumulate} "
            f"parts each, got {config.batch_size}"
        )
    count = config.batch_size // size
    return rank * count, count


def share_gradients(model: nn.Module, config: TrainConfig, device: torch.device) -> nn.Module:
    """`model`, or a wrapper whose backward averages gradients over all processes."""
    if rank_and_size()[1] == 1:
        return model
    for layer in model.modules():
        if isinstance(layer, Nin):
            # The strides of its gradient. Those of a 1x1 kernel mean nothing, but torch compares
            # them, and warns.
            v = layer.weight_v
            v.data = v.data.flatten(1)[:, :, None, None]
    # Counters, signals and results travel through the CPU; gradients from GPU to GPU.
    on_cuda = device.type == "cuda"
    group = dist.new_group(backend="nccl", timeout=EXCHANGE) if on_cuda else None
    return DistributedDataParallel(
        model,
        process_group=group,
        # torch's static graph and its no_sync do not go together (2.15: an internal assertion).
        static_graph=config.accumulate == 1,
        gradient_as_bucket_view=True,
    )


def uses_graph(config: TrainConfig, device: torch.device) -> bool:
    """Whether the steps of a run are replayed. Raises ValueError if they must be and cannot."""
    obstacle = None
    if device.type != "cuda":
        obstacle = f"it needs a CUDA device, and this run computes on {device.type}"
    elif rank_and_size()[1] > 1:
        obstacle = "several processes exchange gradients in every step, which is not recorded"
    elif config.compile:
        obstacle = "compile=True launches kernels of its own, which are not recorded"
    if config.graph == "on" and obstacle is not None:
        raise ValueError(f"`graph` cannot be on: {obstacle}; take auto or off")
    return config.graph != "off" and obstacle is None


class ReplayedStep:
    """Runs `step` WARM_UP times on a side stream, then records it as a CUDA graph and replays."""

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self.step = step
        self.device = device
        self.calls = 0
        self.side: torch.cuda.Stream | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """One step, on the current stream."""
        self.calls += 1
        with torch.cuda.device(self.device):
            # One stream for all of them and the recording: torch keeps freed memory for each.
            self.side = self.side or torch.cuda.Stream()
            if self.calls <= WARM_UP:
                current = torch.cuda.current_stream()
                self.side.wait_stream(current)
                with torch.cuda.stream(self.side):
                    self.step()
                current.wait_stream(self.side)
                return
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                try:
                    with torch.cuda.graph(self.graph, stream=self.side):
                        self.step()
                except RuntimeError as error:
                    raise RuntimeError(
                        f"a step could not be recorded as a CUDA graph: turn graph off ({error})"
                    ) from error
            self.graph.replay()


def gate_bytes(config: TrainConfig, height: int, width: int) -> int:
    """Memory of A and G of all gated resnets, for the images that a process computes at once."""
    with torch.device("meta"):
        model = PixelCNNpp(config.model)
    halvings = {"up": (0, 1, 2), "down": (2, 1, 0)}
    filters = 0.0
    for name, block in model.named_modules():
        if isinstance(block, GatedResnet):
            part, number, *_ = name.split(".")
            times = halvings[part][int(number)] if part in halvings else 0
            filters += 2 * block.conv_in.weight_v.shape[0] / 4**times
    rows = 2 * height if config.model.conditioning == "stack" else height
    images = share_of_batch(config)[1] // config.accumulate
    return int(filters * images * rows * width * (2 if config.precision == "bfloat16" else 4))


def set_keep_gates(model: PixelCNNpp, keep: bool) -> None:
    """Have all gated resnets of a model keep A and G, or not."""
    for module in model.modules():
        if isinstance(module, GatedResnet):
            module.keep_gates = keep
