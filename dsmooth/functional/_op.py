"""What the ops of several files share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor


def refuse_second_derivative(op: str) -> Callable[..., NoReturn]:
    """The derivative of a backward op: an error that names `op`, such as "native gated block"."""

    def refuse(ctx: Any, *grads: Any) -> NoReturn:
        raise NotImplementedError(
            f"the {op} cannot be differentiated twice; use impl='reference' "
            "or a use_impl('reference') block"
        )

    return refuse


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Inside the block, operations compute in the dtype of their inputs."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def empty_channels_last(like: Tensor, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """Uninitialised, with the batch, dtype and device of `like` and, without `size`, its extent."""
    return torch.empty(
        (like.shape[0], channels, *(size or like.shape[2:])),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )
