"""Training by several processes, started by torchrun: each computes its share of every batch.

Gradients are averaged by DistributedDataParallel, whose buckets travel while the backward goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import TrainConfig
from ..distributed import EXCHANGE, rank_and_size


def is_restarted() -> bool:
    """Whether torchrun started this process again after a failure (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def share_of_batch(config: TrainConfig) -> tuple[int, int]:
    """(first row, rows) of a batch that this process computes.

    Raises ValueError, naming sizes that would, if the batch does not divide.
    """
    rank, size = rank_and_size()
    unit = size * config.accumulate
    if config.batch_size % unit:
        below = config.batch_size // unit * unit
        sizes = " or ".join(str(n) for n in (below, below + unit) if n)
        raise ValueError(
            f"batch_size {config.batch_size} does not divide among {size} processes with "
            f"accumulate={config.accumulate}: take {sizes}"
        )
    rows = config.batch_size // size
    return rank * rows, rows


def share_gradients(model: nn.Module, config: TrainConfig, device: torch.device) -> nn.Module:
    """`model`, or a wrapper whose backward averages gradients over all processes."""
    if rank_and_size()[1] == 1:
        return model
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


def without_exchange(network: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Blocks in which gradients add up and do not travel: all parts of a batch but the last."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync
    return contextlib.nullcontext
