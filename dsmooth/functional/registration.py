"""Operators of torch with a derivative, cheaper to call than those of `torch.library.custom_op`.

A call of a block's op and of its backward took 105 µs of Python by custom_op, which looks at every
argument again, and 42 µs so; a training step makes 150 such calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("dsmooth", "FRAGMENT")


def register_op(
    name: str,
    schema: str,
    compute: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] = lambda ctx, inputs, output: None,
) -> Callable[..., Any]:
    """The operator dsmooth::NAME of this schema, which computes by `compute` on every device.

    Its arguments are tensors and numbers, no lists; its results are new tensors. fake: the results
    without numbers; backward and setup_context: as of `torch.library.register_autograd`.
    """
    _LIBRARY.define(name + schema)
    op = getattr(torch.ops.dsmooth, name).default

    # Not with a `setup_context` of its own, for which torch reads the signature at every call.
    class Derivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                results = op(*args)
            setup_context(ctx, args, results)
            return results

    # torch asks for a static method here; to mypy that replaces one of the base class.
    Derivative.backward = staticmethod(backward)  # type: ignore[method-assign]

    def differentiable(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return Derivative.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, differentiable, "Autograd")
    torch.library.register_fake(f"dsmooth::{name}", fake, lib=_LIBRARY)
    return op


def register_function(
    name: str, schema: str, compute: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """The operator dsmooth::NAME, as by `register_op`, without a derivative: for calls under
    `torch.no_grad`. Its arguments may be lists."""
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dsmooth::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.dsmooth, name).default
