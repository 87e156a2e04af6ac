"""New tensors between canaries, which show reads and writes out of bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _get_current_dispatch_mode

CANARY = 64


@contextmanager
def allocating(make: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block new CPU tensors are those that `make` gives for the like on "meta"."""
    original = torch.empty

    def empty(*size: Any, **kw: Any) -> Tensor:
        like = original(*size, **{**kw, "device": "meta"})
        on_cpu = torch.device(kw.get("device") or "cpu").type == "cpu"
        is_traced = isinstance(_get_current_dispatch_mode(), FakeTensorMode)
        if not on_cpu or is_traced or like.numel() == 0:
            return original(*size, **kw)
        return make(like)

    def empty_like(given: Tensor, **kw: Any) -> Tensor:
        form = kw.pop("memory_format", torch.preserve_format)
        like = torch.zeros_like(given, device="meta", memory_format=form)
        kw = {"dtype": given.dtype, "device": given.device, **kw}
        return empty(like.shape, **kw).as_strided(like.shape, like.stride())

    def new_empty(self: Tensor, *size: Any, **kw: Any) -> Tensor:
        return empty(*size, **{"dtype": self.dtype, "device": self.device, **kw})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch, "empty_like", empty_like)
        patch.setattr(Tensor, "new_empty", new_empty)
        yield


@contextmanager
def guarded_memory() -> Iterator[list[Tensor]]:
    """Inside the block new memory lies between canaries and starts as they are: NaN, or 255 for
    uint8. Afterwards the canaries must be as they were.

    Yields the list of what was allocated, each with its canaries. A number read outside its tensor
    makes a sum NaN even if it is multiplied by zero.
    """
    allocated: list[Tensor] = []

    def placed(like: Tensor) -> Tensor:
        fill = float("nan") if like.is_floating_point() else 255
        whole = torch.full((like.numel() + 2 * CANARY,), fill, dtype=like.dtype)
        allocated.append(whole)
        return whole.as_strided(like.shape, like.stride(), CANARY)

    with allocating(placed):
        yield allocated
    for whole in allocated:
        for edge in (whole[:CANARY], whole[-CANARY:]):
            assert edge.isnan().all() if whole.is_floating_point() else (edge == 255).all()


def guarded(tensor: Tensor, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """A copy, images in this layout, between canaries inside a `guarded_memory` block."""
    layout = layout if tensor.ndim == 4 else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, memory_format=layout).copy_(tensor)
