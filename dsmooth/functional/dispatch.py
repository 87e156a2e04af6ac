"""Selection of an implementation, the conditions under which it runs, and operator registration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NoReturn, TypeVar, get_args

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad

from .. import _extension
from ..fields import check_one_of

Function = TypeVar("Function", bound=Callable[..., object])
Grads = list[Tensor | None]
Impl = Literal["auto", "reference", "triton", "native"]
_IMPLS = get_args(Impl)
MIN_CAPABILITY = (8, 0)
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Listed, as torch.compile of torch 2.11 cannot trace is_autocast_available.
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")

# One value for the process, not per thread: torch.compile can guard on a module global.
_current: Impl = "auto"


def resolve_impl(impl: Impl) -> Impl:
    """Return `impl`, or the one set by `use_impl` when `impl` is "auto"."""
    check_one_of("impl", impl, _IMPLS)
    return _current if impl == "auto" else impl


@contextmanager
def use_impl(impl: Impl) -> Iterator[None]:
    """Context manager that sets the `impl` of every op whose own `impl` is "auto".

    The setting applies to the whole process, not only to the current thread.
    """
    global _current
    previous = _current
    resolve_impl(impl)
    _current = impl
    try:
        yield
    finally:
        _current = previous


def choose(
    op: str, impl: Impl, device: torch.device, obstacle: Callable[[Impl], str | None]
) -> Impl:
    """The implementation of an op; "auto" is "triton" on cuda, else "native", else "reference".

    obstacle: returns the reason why an implementation cannot run, or None. Raises RuntimeError if
    an explicit `impl` cannot run.
    """
    impl = _current if impl == "auto" else impl
    chosen: Impl = impl if impl != "auto" else "triton" if device.type == "cuda" else "native"
    reason = None
    if chosen != "reference":
        reason = forward_mode_obstacle() or transform_obstacle() or obstacle(chosen)
    if reason is None:
        return chosen
    if impl == "auto":
        return "reference"
    raise RuntimeError(f"{op} cannot run with impl={chosen!r}: {reason}")


def forward_mode_obstacle() -> str | None:
    """The reason why an operator cannot run under forward-mode differentiation; None outside."""
    # The level, not tangents: inside an inner `torch.func.jvp` the outer tensors show no tangents.
    inside = forward_ad._current_level >= 0
    return "it has no forward-mode derivative; use impl='reference'" if inside else None


def transform_obstacle() -> str | None:
    """The reason why an operator cannot run inside `torch.func.grad` or `vmap`; None outside."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return None
    return "torch.func cannot transform it; use impl='reference'"


def constant_when_compiled(function: Function) -> Function:
    """Mark a function whose result torch.compile may treat as a constant."""
    # torch.compiler.assume_constant_result does the same, but imports the compiler: two seconds.
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def triton_obstacle(device: torch.device, *dtypes: torch.dtype, matmul: bool = True) -> str | None:
    """The reason why Triton kernels cannot run on tensors of this device and dtypes, or None.

    Under Triton's interpreter (TRITON_INTERPRET=1 before its import), for tests, they run on CPU
    tensors. matmul: whether they multiply matrices; the interpreter supports float64 matmuls, but
    not bfloat16.
    """
    try:
        from ..kernels.launch import INTERPRETED
    except ModuleNotFoundError:
        return "Triton is not installed"
    if INTERPRETED and matmul and torch.bfloat16 in dtypes:
        return "Triton's interpreter multiplies bfloat16 matrices wrongly"
    supported = (*TRITON_DTYPES, *[torch.float64] * (INTERPRETED and matmul))
    for dtype in dtypes:
        if dtype not in supported:
            return f"its kernels support {', '.join(map(str, supported))}, got {dtype}"
    if device.type != ("cpu" if INTERPRETED else "cuda"):
        return (
            f"Triton runs on cuda tensors, got {device.type} (in a process started with "
            "TRITON_INTERPRET=1 only on cpu tensors)"
        )
    if device.type == "cuda" and (
        torch.version.hip is not None or torch.cuda.get_device_capability(device) < MIN_CAPABILITY
    ):
        return "the Triton kernels need an NVIDIA GPU of compute capability 8.0"
    return None


@constant_when_compiled
def native_obstacle(device_type: str, dtype: torch.dtype | None = None) -> str | None:
    """The reason why the extension cannot compute on this device type, or in `dtype`; or None."""
    if device_type != "cpu":
        return f"the extension runs on cpu tensors, got {device_type}"
    if dtype not in (None, torch.float32, torch.float64, torch.bfloat16):
        return f"the extension supports float32, float64 and bfloat16, got {dtype}"
    reason = _extension.unavailable_reason()
    if reason is not None:
        _extension.warn_once("operations run in PyTorch, which is slower: %s", reason)
    return reason


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype to which autocast casts x for an op, or None."""
    device = x.device.type
    if x.dtype == torch.float64 or device not in _AUTOCAST_DEVICES:
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def register_op(
    name: str,
    tensors: Sequence[str],
    options: str,
    saved: int,
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., Grads],
) -> tuple[OpOverload, OpOverload]:
    """Register an operator and the one of its gradients; return both.

    dsmooth::NAME returns a result, which is differentiable, and `saved` tensors for the backward;
    dsmooth::NAME_backward returns the gradients. Unlike `torch.library.custom_op`, this does not
    import torch's compiler. Each tensor is an argument: torch unpacks lists of tensors in Python at
    every call.

    tensors, options: declarations of the arguments. forward(compute, *tensors, *options) returns
    the results; without `compute` they are uninitialised, for torch's tracers. backward(compute,
    grad, *saved, *tensors, *options, needs) returns the gradient of each tensor, or None.
    """
    results, grads = (", ".join(["Tensor"] * n) for n in (1 + saved, len(tensors)))
    forward_op = _define(name, f"({', '.join(tensors)}, {options}) -> ({results})", forward)

    def filled(compute: bool, grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        """The gradients, with an empty tensor in place of None."""
        grads = backward(compute, grad, *args)
        return tuple([grad.new_empty(0) if tensor is None else tensor for tensor in grads])

    kept = ", ".join([*(f"Tensor saved_{i}" for i in range(saved)), *tensors])
    declared = f"(Tensor grad, {kept}, {options}, bool[] needs) -> ({grads})"
    backward_op = _define(f"{name}_backward", declared, filled)
    count = len(tensors)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)  # of the saved tensors
        ctx.save_for_backward(*output[1:], *inputs[:count])
        ctx.options = inputs[count:]

    def differentiate(ctx: Any, grad: Tensor, *unused: None) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:count])
        grads = backward_op(grad, *ctx.saved_tensors, *ctx.options, needs)
        wanted = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
        return *wanted, *[None] * len(ctx.options)

    def refuse(*_: Any) -> NoReturn:
        raise NotImplementedError(
            f"the operator {name} cannot be differentiated twice; use impl='reference' "
            "or a use_impl('reference') block"
        )

    torch.library.register_autograd(f"dsmooth::{name}", differentiate, setup_context=keep)
    torch.library.register_autograd(f"dsmooth::{name}_backward", refuse)
    return forward_op, backward_op


def _define(op: str, schema: str, function: Callable[..., object]) -> OpOverload:
    """The operator dsmooth::OP, for every device."""
    qualified = f"dsmooth::{op}"
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, "default", functools.partial(function, True))
    torch.library.register_fake(qualified, functools.partial(function, False))
    overload: OpOverload = getattr(torch.ops.dsmooth, op).default
    return overload


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Context manager that disables autocast on a device type."""
    if device_type in _AUTOCAST_DEVICES:
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
