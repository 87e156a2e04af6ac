"""Cases of the gated block for every implementation, interpreted kernels among them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional import Shift, gated_resnet
from dsmooth.functional.gated_resnet_operands import FIELDS, GatedResnetCall

KERNELS: dict[Shift, tuple[int, int]] = {"down": (2, 3), "down_right": (2, 2), "none": (3, 3)}
EPS = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
OPTIONS = ("shift", "dropout", "layer", "first_image")
IMAGES = ("x", "skip", "skip_2")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# A build may leave the extension out, and its record says so; that it is there everywhere else is
# asserted by test_extension.py.
needs_extension = pytest.mark.skipif(
    _extension.unavailable_reason() is not None, reason=str(_extension.unavailable_reason())
)
NATIVE = pytest.param("native", marks=needs_extension)
FAST = ["triton"] if INTERPRETED else [NATIVE]
# The extension once for each instruction set of this machine, each an "impl" of `Case.run`.
SETS = [f"native:{name}" for name in _extension.instruction_sets()]
DTYPES = (
    [pytest.param(torch.float64, marks=pytest.mark.full), torch.float32, torch.float16]
    if INTERPRETED
    else [torch.float64, torch.float32, torch.bfloat16]
)
each_fast_impl = pytest.mark.parametrize("impl", FAST)
each_impl = pytest.mark.parametrize("impl", FAST if INTERPRETED else ["reference", NATIVE])
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda t: t.contiguous(),
    "channels_last": lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t,
    "every second column": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
}


def call(given: Mapping[str, Any], **options: Any) -> Tensor:
    """`gated_resnet` of arguments by the names of the field table and of the call."""
    skips = tuple(given[name] for name in ("skip", "skip_2") if given[name] is not None)
    gains = tuple(given[n] for n in ("gain_in", "gain_out", "gain_nin") if given[n] is not None)
    return gated_resnet(
        given["x"],
        (given["conv_in"], given["bias_in"]),
        (given["conv_out"], given["bias_out"]),
        skips or None,
        (given["nin_skip"], given["bias_nin"]) if given["nin_skip"] is not None else None,
        gains=gains,
        **{name: given[name] for name in ("image_bias", "seed", *OPTIONS)},
        **options,
    )


@contextmanager
def pinned(impl: str) -> Iterator[str]:
    """Inside the block the ops of the extension run by the instruction set that `impl` may name
    after a colon. Yields what comes before it."""
    impl, _, instruction_set = impl.partition(":")
    with pytest.MonkeyPatch.context() as patch:
        if instruction_set:
            names = ("gated_resnet_forward", "gated_resnet_backward", "logistic_mixture")
            own = {name: getattr(_extension.extension(), name) for name in names}
            for name, function in own.items():
                own[name] = partial(function, instruction_set=instruction_set)
            patch.setattr(_extension, "extension", lambda: SimpleNamespace(**own))
        yield impl


@dataclass
class Case:
    """A block's inputs in float64, rounded to the dtype they will be computed in."""

    given: dict[str, Any]  # by the names of the field table; None if absent
    options: GatedResnetCall
    grad_y: Tensor

    def run(
        self, impl: str, dtype, prepare=lambda t: t, device="cpu", prepared=IMAGES
    ) -> dict[str, Tensor]:
        """The output and all gradients by the names of the operands, on the CPU. prepared: names
        of operands that become what `prepare` makes of them."""
        given = self._cast(lambda t: t.to(device, dtype, copy=True), dtype, device)
        given |= {n: prepare(given[n]).detach() for n in prepared if given[n] is not None}
        leaves = {n: t.requires_grad_() for n, t in given.items() if t is not None and n != "seed"}
        half = dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(device, dtype if half else None, enabled=half), pinned(impl) as impl:
            y = call(given | self.options._asdict(), impl=impl)
            y.backward(self.grad_y.to(device, y.dtype))
        grads = {name: leaf.grad for name, leaf in leaves.items()}
        return {name: t.detach().cpu() for name, t in {"y": y, **grads}.items()}

    def operands(self, dtype: torch.dtype) -> dict[str, Any]:
        """The operands for images of `dtype`, which are channels_last."""
        last = torch.channels_last
        return self._cast(lambda t: t.to(dtype).clone(memory_format=last), dtype)

    def _cast(
        self, image: Callable[[Tensor], Tensor], dtype: torch.dtype, device: str = "cpu"
    ) -> dict[str, Any]:
        """Copies of the operands by name: images by `image`, weights for images of `dtype`."""
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        casts = dict.fromkeys(IMAGES, image) | {"seed": lambda t: t.to(device)}
        return {
            name: t if t is None else casts.get(name, lambda t: t.to(device, exact, copy=True))(t)
            for name, t in self.given.items()
        }


def make_case(
    shift: Shift = "down",
    size: tuple[int, int, int] = (2, 5, 7),
    filters: int = 5,
    skip_channels: tuple[int, ...] = (),
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    gains: bool = False,
    image_bias: bool = False,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, fan_in: int = 1) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64) / fan_in**0.5
        return values.to(dtype).double()

    batch, height, width = size
    kh, kw = KERNELS[shift]
    f, fan_in, s = filters, 2 * filters * kh * kw, 2 * sum(skip_channels)
    given: dict[str, Any] = dict.fromkeys(FIELDS)
    given["conv_in"], given["bias_in"] = draw(f, 2 * f, kh, kw, fan_in=fan_in), draw(f)
    given["conv_out"], given["bias_out"] = draw(2 * f, 2 * f, kh, kw, fan_in=fan_in), draw(2 * f)
    if skip_channels:
        given["nin_skip"], given["bias_nin"] = draw(f, s, 1, 1, fan_in=s), draw(f)
    given["x"] = draw(batch, f, height, width)
    for name, channels in zip(IMAGES[1:], skip_channels, strict=False):
        given[name] = draw(batch, channels, height, width)
    for part in ("in", "out", "nin") if gains else ():
        bias = given[f"bias_{part}"]
        given[f"gain_{part}"] = None if bias is None else draw(*bias.shape)
    grad_y = draw(batch, f, height, width)
    given["image_bias"] = draw(batch, 2 * f) if image_bias else None
    given["seed"] = torch.tensor(0x1234_5678_9ABC_DEF0) if dropout else None
    return Case(given, GatedResnetCall(shift, dropout, 3), grad_y)


def assert_as_good(
    got: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor], eps: float
) -> None:
    """The error against float64 is at most twice that of eager, and a band of rounding errors of
    the largest value: sums of a few terms may be lucky, dropout multiplies numbers by up to ten,
    and in float64 the judge is rounded."""
    band = (40 if eps == EPS[torch.float64] else 20) * eps
    for name, expected in exact.items():
        assert got[name].dtype == eager[name].dtype, name
        assert got[name].shape == expected.shape, name
        if expected.numel():
            scale = expected.abs().max().item()
            error, eager_error = ((t[name].double() - expected).abs().max() for t in (got, eager))
            assert error <= 2 * eager_error + band * max(scale, 0.05), (name, error, eager_error)
