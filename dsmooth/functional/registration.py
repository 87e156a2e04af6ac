"""Operators of torch, for compilers and exports to see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def register_op(
    name: str,
    schema: str,
    compute: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """The operator dsmooth::NAME of this schema, which computes by `compute` on every device.

    fake: the results without numbers; backward, setup_context: as of
    `torch.library.register_autograd`. Not by `torch.library.custom_op`, whose first call imports
    torch's compiler.
    """
    qualified = f"dsmooth::{name}"
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, "default", compute)
    torch.library.register_fake(qualified, fake)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
    return getattr(torch.ops.dsmooth, name).default
