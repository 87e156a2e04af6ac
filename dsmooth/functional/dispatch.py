"""Selection of an implementation, the conditions under which it runs, and operator registration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NoReturn, Protocol, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad

from .. import _extension
from ..fields import check_one_of

Function = TypeVar("Function", bound=Callable[..., object])
Operands = TypeVar("Operands", bound="tuple[Tensor | None, ...]")
Call = TypeVar("Call", contravariant=True)
Grads = TypeVar("Grads", bound="tuple[Tensor | None, ...]")  # of the operands
Tensors = tuple[Tensor, ...]
Needs = Sequence[bool]  # which gradients are needed
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


class Backend(Protocol[Operands, Call, Grads]):
    """An implementation of an op: what it allocates and what it computes.

    operands: a NamedTuple of the op's tensors, checked; call: one of its other arguments.
    """

    def obstacle(self, operands: Operands) -> str | None:
        """The reason why it cannot compute on these operands, or None."""

    def cast(self, operands: Operands) -> Operands:
        """The operands in the dtypes that the operator takes; differentiable."""

    def results(self, operands: Operands, call: Call) -> Tensors:
        """The result, then the tensors that the backward reads, all uninitialised."""

    def forward(self, operands: Operands, call: Call, results: Tensors) -> None:
        """Write the results."""

    def gradients(self, operands: Operands, call: Call, needs: Needs) -> Grads:
        """The tensors that `backward` writes, uninitialised: at least the needed gradients."""

    def backward(
        self, operands: Operands, call: Call, saved: Tensors, grad: Tensor, grads: Grads
    ) -> None:
        """Write the gradients. saved: the results but the first; grad: the gradient of that."""


def register_op(
    name: str,
    operands: Callable[..., Operands],
    call: Callable[..., Call],
    n_results: int,
    backends: Mapping[Impl, Backend[Operands, Call, Grads]],
) -> tuple[OpOverload, OpOverload]:
    """Register an operator and the one of its gradients; return both.

    dsmooth::NAME takes the fields of two NamedTuples, `operands` and then `call`, whose `impl`
    names the backend. It returns n_results tensors, of which the first is differentiable.
    dsmooth::NAME_backward takes the gradient of that, the other results, the arguments of
    dsmooth::NAME and which gradients are needed. It returns the gradients, empty if not needed.

    Unlike `torch.library.custom_op`, this does not import torch's compiler. Each tensor is an
    argument: torch unpacks lists of tensors in Python at every call.
    """
    tensors, options = _declared(operands), _declared(call)
    count, n_saved = len(tensors), n_results - 1

    def typed(flat: Sequence[Any]) -> tuple[Backend[Operands, Call, Grads], Operands, Call]:
        arguments: Any = call(*flat[count:])
        return backends[arguments.impl], operands(*flat[:count]), arguments

    def forward(compute: bool, *flat: Any) -> Tensors:
        """The results; without `compute` uninitialised, for torch's tracers."""
        backend, given, arguments = typed(flat)
        results = backend.results(given, arguments)
        if compute:
            backend.forward(given, arguments, results)
        return results

    def backward(compute: bool, grad: Tensor, *flat: Any) -> Tensors:
        saved, flat, needs = flat[:n_saved], flat[n_saved:-1], flat[-1]
        backend, given, arguments = typed(flat)
        grads = backend.gradients(given, arguments, needs)
        if compute:
            backend.backward(given, arguments, saved, grad, grads)
        pairs = zip(grads, needs, strict=True)
        return tuple([t if need and t is not None else grad.new_empty(0) for t, need in pairs])

    inputs = ", ".join([*tensors, *options])
    outputs, gradients = (", ".join(["Tensor"] * n) for n in (n_results, count))
    forward_op = _define(name, f"({inputs}) -> ({outputs})", forward)
    kept = "".join(f"Tensor saved_{i}, " for i in range(n_saved))
    declared = f"(Tensor grad, {kept}{inputs}, bool[] needs) -> ({gradients})"
    backward_op = _define(f"{name}_backward", declared, backward)

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


def _declared(kind: Callable[..., object]) -> list[str]:
    """The fields of a NamedTuple as a schema declares arguments."""
    names = {Tensor: "Tensor", Tensor | None: "Tensor?"}
    return [
        f"{'str' if get_origin(hint) is Literal else names.get(hint) or hint.__name__} {name}"
        for name, hint in get_type_hints(kind).items()
    ]


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
