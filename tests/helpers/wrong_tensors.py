"""Tensors between canaries, and all that is wrong about a tensor in one way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

MARGIN = 32
CANARY = 7
DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int32, torch.int64, torch.bool, torch.complex64),
]


def guarded(tensor: Tensor) -> Tensor:
    """Copy of a dense tensor, in the same memory order, between canaries."""
    whole = torch.full((tensor.numel() + 2 * MARGIN,), CANARY, dtype=tensor.dtype)
    inside = whole.as_strided(tensor.shape, tensor.stride(), MARGIN)
    return inside.copy_(tensor)


def unwritten(*shape: int) -> Tensor:
    return guarded(torch.full(shape, torch.nan))


def assert_untouched(arguments: Mapping[str, Any]) -> None:
    for tensor in (value for value in arguments.values() if isinstance(value, Tensor)):
        whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        for edge in (whole[:MARGIN], whole[-MARGIN:]):
            assert torch.equal(edge, torch.full_like(edge, CANARY))


def without_memory(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def misaligned(tensor: Tensor) -> Tensor:
    """In memory that begins with the second byte of an element."""
    whole = bytearray(tensor.numel() * tensor.element_size() + 1)
    return torch.frombuffer(whole, dtype=tensor.dtype, offset=1).view(tensor.shape)


def wrong_tensors(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    """Words, and a tensor of another shape, dtype, device or memory order, or no tensor."""
    changes: dict[str, Callable[[], Any]] = {
        "None": lambda: None,
        "a number": lambda: 2.5,
        "a list": lambda: [1.0, 2.0],
        "empty": lambda: tensor.new_empty(0),
        "no dimensions": lambda: tensor.new_ones(()),
        "a dimension more": lambda: tensor.unsqueeze(0),
        "flat": lambda: tensor.flatten(),
        "meta": lambda: tensor.to("meta"),
        "sparse": lambda: tensor.to_sparse(),
        "every second number": lambda: torch.stack([tensor, tensor], dim=-1)[..., 0],
        "reversed dimensions": lambda: tensor.permute(tuple(reversed(range(tensor.ndim)))),
        "a negative view": lambda: torch._neg_view(tensor),
        "requires grad": lambda: tensor.clone().requires_grad_(),
        "huge and empty": lambda: tensor.new_empty((0, *(2**15,) * (tensor.ndim - 1))),
        "transposed memory": lambda: tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
        "channels_last": lambda: tensor.contiguous(memory_format=torch.channels_last),
        "contiguous": lambda: tensor.contiguous(),
        "no memory": lambda: without_memory(tensor),
        "misaligned": lambda: misaligned(tensor),
    }
    for dim, extent in enumerate(tensor.shape):
        before, after = tensor.shape[:dim], tensor.shape[dim + 1 :]
        changes |= {
            f"dimension {dim} of {n}": lambda s=(*before, n, *after): tensor.new_ones(s)
            for n in {0, 1, extent - 1, extent + 1}
        }
        changes |= {
            f"dimension {dim} repeated": lambda d=dim: tensor.narrow(d, 0, 1).expand(tensor.shape),
            f"without dimension {dim}": lambda d=dim: tensor.select(d, 0),
        }
    changes |= {str(dtype): lambda dtype=dtype: tensor.to(dtype) for dtype in DTYPES}
    for word, change in changes.items():
        try:
            yield word, change()
        except (RuntimeError, IndexError):  # a change that such a tensor does not have
            continue
