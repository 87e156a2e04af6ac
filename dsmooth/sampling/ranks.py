"""Sampling by several processes, started by torchrun: each draws its share of the images."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

Draw = Callable[[int, int], Tensor]


def rank_and_size() -> tuple[int, int]:
    """This process among those that torchrun started: (RANK, WORLD_SIZE), (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def share_of(count: int, rank: int, size: int) -> tuple[int, int]:
    """(offset, number) of the images that a rank draws of `count`: neighbours, as many as fit."""
    each = -(-count // size)
    offset = min(rank * each, count)
    return offset, min(each, count - offset)


def draw_together(
    draw: Draw, image_shape: tuple[int, int, int], work: Callable[[Draw], None]
) -> None:
    """Run work(draw) on rank 0 with a draw that all ranks share, so that work sees one process.

    draw: called as draw(first, count), returns (count, *image_shape); a function of the image
    numbers alone, as every sampler here is, so that the images do not depend on the number of
    processes. The other ranks draw their shares of what rank 0 asks for until its work is done; an
    exception in one rank breaks the connection, and so ends the others. Shared draws are float32 on
    the CPU. Without torchrun this is work(draw).
    """
    rank, size = rank_and_size()
    if size == 1:
        return work(draw)
    dist.init_process_group("gloo")  # images travel through the CPU, where they are written
    try:
        if rank == 0:
            work(lambda first, count: _draw_shares(draw, image_shape, first, count))
            _announce(0, 0)
        else:
            first, count = _announce()
            while count:
                _draw_own(draw, image_shape, first, count)
                first, count = _announce()
    finally:
        dist.destroy_process_group()


def _announce(first: int = 0, count: int = 0) -> tuple[int, int]:
    """Rank 0's images to draw next, on all ranks; none at the end."""
    wanted = torch.tensor([first, count])
    dist.broadcast(wanted, src=0)
    return int(wanted[0]), int(wanted[1])


def _draw_shares(draw: Draw, image_shape: tuple[int, int, int], first: int, count: int) -> Tensor:
    """What rank 0 gets for draw(first, count)."""
    _announce(first, count)
    return torch.cat(_draw_own(draw, image_shape, first, count))[:count]


def _draw_own(
    draw: Draw, image_shape: tuple[int, int, int], first: int, count: int
) -> list[Tensor]:
    """Draw this rank's share; on rank 0 the shares of all ranks, padded to one size."""
    rank, size = rank_and_size()
    offset, number = share_of(count, rank, size)
    own = torch.zeros(-(-count // size), *image_shape)
    if number:
        own[:number] = draw(first + offset, number)
    shares = [torch.empty_like(own) for _ in range(size)] if rank == 0 else []
    dist.gather(own, shares or None, dst=0)
    return shares
