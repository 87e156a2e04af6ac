"""Memory with canaries around it, which are NaN: writing beside it and reading beside it show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

CANARY = 64


@contextmanager
def guarded_memory() -> Iterator[list[Tensor]]:
    """Inside the block new memory lies between canaries and starts as they are: NaN, or 255 for
    uint8. Afterwards the canaries must be as they were.

    Yields the list of what was allocated, each with its canaries. A number read beside its tensor
    makes a sum NaN even if it is multiplied by zero.
    """
    allocated: list[Tensor] = []
    original, original_like = torch.empty, torch.empty_like

    def placed(shape: Tensor, **kw: Any) -> Tensor:
        whole = original(shape.numel() + 2 * CANARY, **kw)
        whole.fill_(float("nan") if whole.is_floating_point() else 255)
        allocated.append(whole)
        return whole.as_strided(shape.shape, shape.stride(), CANARY)

    def empty(size: Any, *, memory_format: Any = torch.contiguous_format, **kw: Any) -> Tensor:
        return placed(original(size, memory_format=memory_format, device="meta"), **kw)

    def empty_like(like: Tensor, **kw: Any) -> Tensor:
        return placed(original_like(like, device="meta", **kw), dtype=like.dtype)

    def new_empty(self: Tensor, size: Any, **kw: Any) -> Tensor:
        return empty(size, **{"dtype": self.dtype, **kw})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        patch.setattr(Tensor, "new_empty", new_empty)
        patch.setattr(torch, "empty_like", empty_like)
        yield allocated
    for whole in allocated:
        for edge in (whole[:CANARY], whole[-CANARY:]):
            assert edge.isnan().all() if whole.is_floating_point() else (edge == 255).all()


def guarded(tensor: Tensor) -> Tensor:
    """A copy in channels_last, between canaries inside a `guarded_memory` block."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, memory_format=layout).copy_(tensor)
