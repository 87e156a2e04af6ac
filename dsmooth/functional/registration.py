"""Operators of torch with a derivative, cheaper to call than those of `torch.library.custom_op`.

A call of a block's op and of its backward took 105 µs of Python by custom_op, which looks at every
argument again, 42 µs by the dispatcher, and 12 µs past it, by `call`; a training step makes 150
such calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("dsmooth", "FRAGMENT")
_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None), str, int, float, bool))


class _Eager(NamedTuple):
    """An operator without the dispatcher: its computation, and that with a derivative."""

    compute: Callable[..., Any]
    derivative: type[torch.autograd.Function]


_eager: dict[Any, _Eager] = {}


def register_op(
    name: str,
    schema: str,
    compute: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] = lambda ctx, inputs, output: None,
    check: Callable[..., None] = lambda *args: None,
) -> Callable[..., Any]:
    """The operator dsmooth::NAME of this schema, which computes by `compute` on every device.

    Its arguments are tensors and numbers, no lists; its results are new tensors. fake: the results
    without numbers; backward and setup_context: as of `torch.library.register_autograd`. check:
    raises for arguments that `compute` must not get.
    """
    _LIBRARY.define(name + schema)
    op = getattr(torch.ops.dsmooth, name).default

    def checked(*args: Any) -> Any:
        check(*args)
        return compute(*args)

    def below_autograd(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    dispatched = _Eager(below_autograd, _derivative(name, below_autograd, backward, setup_context))
    _eager[op] = _Eager(compute, _derivative(name, compute, backward, setup_context))
    _LIBRARY.impl(name, checked, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, lambda *args: _differentiable(dispatched, args), "Autograd")
    torch.library.register_fake(f"dsmooth::{name}", fake, lib=_LIBRARY)
    return op


def call(op: Callable[..., Any], *args: Any) -> Any:
    """op(*args), for arguments that were checked.

    Past torch's dispatcher where it has nothing to decide: no compiler, transform or mode is at
    work, and the tensors are torch's own. It would take and give back each argument four times.
    """
    intervenes = (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state()
    )
    if intervenes or not _PLAIN.issuperset(map(type, args)):
        return op(*args)
    return _differentiable(_eager[op], args)


def _differentiable(eager: _Eager, args: tuple[Any, ...]) -> Any:
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
        return eager.derivative.apply(*args)
    return eager.compute(*args)


def _derivative(
    name: str,
    compute: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
) -> type[torch.autograd.Function]:
    # Not with a `setup_context` of its own, for which torch reads the signature at every call.
    def forward(ctx: Any, *args: Any) -> Any:
        results = compute(*args)
        setup_context(ctx, args, results)
        return results

    # A profiler shows the name, and the derivative by the name that torch makes of it.
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), methods)
