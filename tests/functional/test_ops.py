"""What every op obeys, whatever computes it: memory, strides, threads, derivatives, tracing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.functional import gated_resnet_op, logistic_mixture_op
from dsmooth.machine import torch_threads
from tests.helpers.data_makers import refuses
from tests.helpers.gated_cases import (
    EPS,
    IMAGES,
    INTERPRETED,
    SETS,
    STRIDES,
    call,
    each_fast_impl,
    each_impl,
    make_case,
    needs_extension,
    pinned,
)
from tests.helpers.mixture_cases import CASES, log_prob_of, options_of, random_case
from tests.helpers.triton_canaries import guarded, guarded_memory


@dataclass(frozen=True)
class Op:
    """An op on one case. exact: inputs whose strides change no bit; others only an order of sums.
    parts: of the inputs, that may be all whose gradients are wanted."""

    module: Any
    tensors: dict[str, Tensor | None]
    options: tuple[Any, ...]
    flags: int  # of what the forward keeps
    exact: tuple[str, ...]
    parts: list[list[str]]
    compute: Callable[[str, dict[str, Any]], Tensor]

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {n: t for n, t in self.tensors.items() if t is not None and n != "seed"}

    def run(self, impl: str, prepare=lambda t: t, prepared=None, wanted=None) -> Any:
        """The value, and gradients of a weighted sum by the names of the inputs, all by default.

        impl: may name an instruction set. prepared: names of inputs that, as the weights, become
        what `prepare` makes of them.
        """
        inputs = {
            name: (prepare(t) if prepared is None or name in prepared else t).detach()
            for name, t in self.inputs.items()
        }
        leaves = {name: inputs[name].requires_grad_() for name in wanted or inputs}
        half = inputs["x"].dtype in (torch.bfloat16, torch.float16)
        with pinned(impl) as impl, torch.autocast("cpu", inputs["x"].dtype, enabled=half):
            y = self.compute(impl, self.tensors | inputs)
            grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype)
            grads = torch.autograd.grad(y, [*leaves.values()], prepare(grad))
        return {"y": y.detach(), **dict(zip(leaves, grads, strict=True))}


def gated(dtype: torch.dtype, size=(2, 3, 5), skips=(5, 2)) -> Op:
    """A block with all that it can have, or without skips."""
    case = make_case("down", size, 5, skips, 0.5, dtype, gains=True, image_bias=bool(skips))

    def compute(impl: str, given: dict[str, Any]) -> Tensor:
        return call(given | case.options._asdict(), impl=impl)

    images = [*IMAGES, "image_bias"]
    parts = [["skip_2", "conv_out"], ["x", "gain_nin"], ["bias_nin"], images, images[3:]]
    tensors = case.operands(dtype)
    return Op(gated_resnet_op, tensors, tuple(case.options[:4]), 1, IMAGES, parts, compute)


def mixture(channels: int, kind: str, dtype: torch.dtype, size=(2, 3, 5)) -> Op:
    x, params = (t.to(dtype) for t in random_case(channels, kind, size=size))

    def compute(impl: str, given: dict[str, Any]) -> Tensor:
        return log_prob_of(kind, impl)(*given.values())

    tensors, exact = {"x": x, "params": params}, ("x", "params") if INTERPRETED else ()
    mixture, parts = options_of(kind), [["x"], ["params"]]
    options = mixture["likelihood"], "atoms" in mixture, mixture.get("smoothing_scale", 0.0)
    return Op(logistic_mixture_op, tensors, options, 2, exact, parts, compute)


def row(make: Callable[..., Op], *arguments: Any, full: bool) -> Any:
    marks = [pytest.mark.full] * full
    return pytest.param(partial(make, *arguments), id="-".join(map(str, arguments)), marks=marks)


# Each block launches all kernels several times; the native op, whose operands are laid out by the
# same function, is their witness in the default tier. Atoms take the interpreter seconds.
HALF = torch.float16 if INTERPRETED else torch.bfloat16
WIDE = torch.float32 if INTERPRETED else torch.float64
GATED = [row(gated, d, full=INTERPRETED) for d in (torch.float64, torch.float32, HALF)]
MIXTURES = [row(mixture, *c, WIDE, full=INTERPRETED and c[1] == "atoms") for c in CASES]
each_op = pytest.mark.parametrize("make", [*GATED, *MIXTURES])


@pytest.mark.parametrize("impl", ["triton"] if INTERPRETED else SETS)
@each_op
def test_no_access_is_out_of_bounds(make: Callable[..., Op], impl: str) -> None:
    """Nor before it is written: new memory is NaN, and so are canaries around all that is used."""
    widths = (5, 33) if INTERPRETED else (1, 3, 15, 16, 17, 33)
    sizes = [(width, torch.contiguous_format) for width in widths]
    for width, layout in [*sizes, (5, torch.channels_last)]:
        op, prepare = make(size=(2, 2, width)), partial(guarded, layout=layout)
        plain = op.run(impl, prepare)
        with guarded_memory() as allocated:
            got = op.run(impl, prepare)
        assert len(allocated) > len(op.inputs) + 2
        for name, value in plain.items():
            assert torch.equal(got[name], value), name
            assert value.isfinite().all()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    **STRIDES,
    "of one pixel": lambda t: t[:1][..., :1].expand_as(t),
    "a part of channels": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]] if t.ndim > 1 else t,
}


@each_fast_impl
@pytest.mark.parametrize("layout", LAYOUTS)
@each_op
def test_strides_do_not_matter(make: Callable[..., Op], layout: str, impl: str) -> None:
    op = make()
    for prepared, band in ((op.exact, 0), (op.inputs, 8), ([*op.inputs][1:4], 8)):
        plain = op.run(impl, lambda t: LAYOUTS[layout](t).contiguous(), prepared)
        got = op.run(impl, LAYOUTS[layout], prepared)
        for name, value in plain.items():
            atol = band * EPS[value.dtype] * value.abs().max().item()
            torch.testing.assert_close(got[name], value, rtol=0, atol=atol, msg=name)


@pytest.mark.quick
@needs_extension
@pytest.mark.parametrize(
    "make", [*GATED, *(row(mixture, *c, torch.float32, full=0) for c in CASES)]
)
def test_the_number_of_threads_changes_no_bit(make: Callable[..., Op]) -> None:
    op, results = make(size=(7, 9, 14)), []
    for threads in (1, 2, 3, 5, 64):
        with torch_threads(threads):
            results.append(op.run("native"))
    for result in results[1:]:
        for name, value in result.items():
            assert torch.equal(value, results[0][name]), name


@each_fast_impl
@each_op
def test_a_gradient_does_not_depend_on_which_others_are_wanted(
    make: Callable[..., Op], impl: str
) -> None:
    """In part or wholly frozen networks have the same bits."""
    op = make()
    together = op.run(impl)
    for wanted in op.parts:
        for name, value in op.run(impl, wanted=wanted).items():
            assert torch.equal(value, together[name]), name


@each_impl
@pytest.mark.parametrize("make", [GATED[1], *MIXTURES[:1]])
def test_a_graph_that_is_kept_gives_its_gradient_again(make: Callable[..., Op], impl: str) -> None:
    op = make()
    leaves = [t.requires_grad_() for t in op.inputs.values()]
    y = op.compute(impl, op.tensors)
    grads = (torch.autograd.grad(y.square().sum(), leaves, retain_graph=True) for _ in range(2))
    for first, again in zip(*grads, strict=True):
        assert torch.equal(first, again)


@each_fast_impl
@pytest.mark.parametrize("make", [GATED[1], *MIXTURES[:1]])
def test_a_second_derivative_is_refused(make: Callable[..., Op], impl: str) -> None:
    op = make()
    x = op.inputs["x"].requires_grad_()
    y = op.compute(impl, op.tensors)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    words = "differentiated twice; use impl='reference'"
    refuses(words, grad.sum().backward, error=NotImplementedError)


SLOW = [row(mixture, *c, WIDE, full=INTERPRETED or c[1] != "atoms") for c in CASES]


@each_impl
@pytest.mark.parametrize("make", SLOW)
def test_compiles_without_a_break(make: Callable[..., Op], impl: str) -> None:
    torch.compiler.reset()  # which keeps eight variants of a function at most
    op = make()
    compute = torch.compile(op.compute, fullgraph=True, backend="aot_eager")
    got = replace(op, compute=compute).run(impl)
    for name, value in op.run(impl).items():
        torch.testing.assert_close(got[name], value)


@each_fast_impl
# opcheck reads .grad of the clones that it makes; the warning is about its own tensors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        row(gated, torch.float64, (2, 3, 5), (), full=INTERPRETED),
        *GATED[1:],
        *SLOW,
    ],
)
def test_opcheck(make: Callable[..., Op], impl: str) -> None:
    op = make()
    module, n = op.module, op.flags
    for layout in (torch.preserve_format, torch.channels_last)[:n]:  # of a mixture's parameters
        tensors = [t if t is None else t.clone(memory_format=layout) for t in op.tensors.values()]
        given = *tensors, *op.options, impl
        torch.library.opcheck(module.forward_op, (*given, *[False] * n))
        given = *given, *[True] * n
        torch.library.opcheck(module.forward_op, given)
        y, *saved = module.forward_op(*given)
        for part in ([*op.inputs], *op.parts[-n:]):
            needs = [name in part and name in op.inputs for name in op.tensors]
            inputs = torch.randn_like(y), *saved, *given, needs
            torch.library.opcheck(module.backward_op, inputs)
            got = module.backward_op(*inputs)
            assert [gradient.numel() > 0 for gradient in got] == needs
