"""Several processes compute a step: the share of a batch, and gradients averaged over all."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import TrainConfig
from ..distributed import EXCHANGE, rank_and_size
from ..nn.layers import Nin


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
            # The strides of its gradient: for a 1x1 kernel they mean nothing, but torch compares
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
