"""Sampling by several processes, started by torchrun: each draws its share of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed import as_rank_0_has_it, exchange, process_group, rank_and_size
from .request import Progress, Request

# Draws a part of a drawing; reports the fraction of it that is done.
DrawPart = Callable[[Request, Progress], Tensor]


def share_of(count: int, rank: int, size: int) -> tuple[int, int]:
    """(offset, number) of the images that a rank draws of `count`: neighbours, as many as fit."""
    each = -(-count // size)
    offset = min(rank * each, count)
    return offset, min(each, count - offset)


def draw_in_chunks(
    draw_part: DrawPart,
    draw: Request,
    *,
    image_shape: tuple[int, int, int],
    chunk: int,
    within: int | None = None,
    done: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first image number, images) of one chunk of `draw` after another, in order.

    draw_part: called as draw_part(part, progress), returns (part.count, *image_shape); a function
    of the part alone, as every sampler here is, so that the images do not depend on the number of
    processes. chunk: images that a process draws at a time at most; no chunk crosses a multiple of
    `within`. done: images that are there already, which are skipped. progress: called with the
    number of images that are there, in fractions while a chunk is drawn.

    Without torchrun images stay where they were drawn. Under it every rank runs this with the same
    arguments, but for `done`, which rank 0 decides: rank 0 yields all images, float32 on the CPU,
    and the others draw their shares and yield nothing. A rank whose neighbour is lost draws its
    share to the end and then raises `dsmooth.distributed.ProcessLost`.
    """
    rank, size = rank_and_size()
    with process_group():
        if size > 1:
            done = as_rank_0_has_it(done)
        while done < draw.count:
            n = min(chunk * size, draw.count - done)
            if within is not None:
                n = min(n, within - done % within)
            part = draw.part(done, n)
            report = _image_counter(progress, done, n)
            images = (
                draw_part(part, report)
                if size == 1
                else _draw_shares(draw_part, part, image_shape, report)
            )
            done += n
            if rank == 0:
                yield part.first_index, images


def _image_counter(progress: Progress | None, done: int, n: int) -> Progress:
    """Turns the fraction of a chunk of `n` images behind `done` others into a number of images."""
    return lambda fraction: progress(done + fraction * n) if progress is not None else None


def _draw_shares(
    draw_part: DrawPart, part: Request, image_shape: tuple[int, int, int], progress: Progress
) -> Tensor:
    """Request this rank's share of a chunk; on rank 0 the shares of all ranks."""
    rank, size = rank_and_size()
    offset, number = share_of(part.count, rank, size)
    own = torch.zeros(-(-part.count // size), *image_shape)  # of one size on all ranks
    if number:
        own[:number] = draw_part(part.part(offset, number), progress)
    shares = [torch.empty_like(own) for _ in range(size)] if rank == 0 else []
    with exchange():
        dist.gather(own, shares or None, dst=0)
    return torch.cat(shares)[: part.count] if rank == 0 else own
