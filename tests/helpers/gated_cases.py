"""Cases of the gated block that the tests of every implementation judge.

A process that interprets Triton's kernels judges those by the same laws (tests/interpreted).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional import Shift, gated_resnet
from dsmooth.functional.gated_resnet_operands import Operands, Settings

KERNELS: dict[Shift, tuple[int, int]] = {"down": (2, 3), "down_right": (2, 2), "none": (3, 3)}
EPS = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# A machine without a C++ compiler has no extension, and its build record says so; that it is there
# everywhere else is asserted by test_extension.py.
needs_extension = pytest.mark.skipif(
    not _extension.is_available(), reason=str(_extension.unavailable_reason())
)
NATIVE = pytest.param("native", marks=needs_extension)
FAST = ["triton", "cudnn"] if INTERPRETED else [NATIVE]
DTYPES = [torch.float64, torch.float32, torch.float16 if INTERPRETED else torch.bfloat16]
each_fast_impl = pytest.mark.parametrize("impl", FAST)
each_impl = pytest.mark.parametrize("impl", FAST if INTERPRETED else ["reference", NATIVE])
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_shift = pytest.mark.parametrize("shift", list(KERNELS))
STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda t: t.contiguous(),
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "every second column": lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
    "transposed": lambda t: t.mT.contiguous().mT,
}


@dataclass
class Case:
    """A block's inputs in float64, rounded to the dtype they will be computed in."""

    shift: Shift
    x: Tensor
    skips: list[Tensor]
    weights: list[Tensor]
    gains: list[Tensor]
    grad_y: Tensor
    dropout: float
    seed: Tensor
    image_bias: Tensor | None = None

    def run(
        self,
        impl: str,
        dtype: torch.dtype,
        prepare: Callable[[Tensor], Tensor] = lambda t: t,
        device: str = "cpu",
        keep_gates: bool = False,
    ) -> dict[str, Tensor]:
        """The output and all gradients, on the CPU."""
        exact = exact_dtype(dtype)
        x, *skips = (
            prepare(t.to(device, dtype, copy=True)).detach().requires_grad_()
            for t in (self.x, *self.skips)
        )
        weights = [w.to(device, exact, copy=True).requires_grad_() for w in self.weights]
        gains = [g.to(device, exact, copy=True).requires_grad_() for g in self.gains]
        image_bias = self.image_bias
        if image_bias is not None:
            image_bias = image_bias.to(device, exact, copy=True).requires_grad_()
        half = dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(device, dtype if half else None, enabled=half):
            y = gated_resnet(
                x,
                (weights[0], weights[1]),
                (weights[2], weights[3]),
                tuple(skips) or None,
                (weights[4], weights[5]) if skips else None,
                gains=tuple(gains),
                image_bias=image_bias,
                shift=self.shift,
                dropout=self.dropout,
                seed=self.seed.to(device),
                layer=3,
                keep_gates=keep_gates,
                impl=impl,
            )
        y.backward(self.grad_y.to(device, y.dtype))
        names = ["conv_in", "bias_in", "conv_out", "bias_out", "nin", "bias_nin"]
        grads = dict(zip(names, (w.grad for w in weights), strict=False))
        grads |= {f"gain{i}": g.grad for i, g in enumerate(gains)}
        grads |= {f"skip{i}": s.grad for i, s in enumerate(skips)}
        grads |= {"y": y.detach(), "x": x.grad}
        grads |= {"image_bias": None if image_bias is None else image_bias.grad}
        return {name: value.cpu() for name, value in grads.items() if value is not None}

    def operands(self, dtype: torch.dtype) -> Operands:
        """The operands beside images of `dtype`."""
        exact = exact_dtype(dtype)
        last = torch.channels_last
        x, *skips = (t.to(dtype).clone(memory_format=last) for t in (self.x, *self.skips))
        weights = [w.to(exact).clone() for w in self.weights]
        gains = [g.to(exact).clone() for g in self.gains]
        skip, skip_2 = (*skips, None, None)[:2]
        conv_in, bias_in, conv_out, bias_out, *nin = weights
        nin_skip, bias_nin = nin or (None, None)
        gain_in, gain_out, gain_nin = (*gains, None, None, None)[:3]
        image_bias = None if self.image_bias is None else self.image_bias.to(exact)
        return Operands(
            *(x, skip, skip_2, conv_in, bias_in, conv_out, bias_out, nin_skip, bias_nin),
            *(gain_in, gain_out, gain_nin, image_bias, self.seed if self.dropout else None),
        )

    @property
    def settings(self) -> Settings:
        return Settings(self.shift, self.dropout, 3)


def leaves_of(given: Operands) -> list[Tensor]:
    """The operands that may have gradients."""
    return [t for t in given if t is not None and t.is_floating_point()]


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of weights beside images of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
    f, fan_in = filters, 2 * filters * kh * kw
    weights = [
        draw(f, 2 * f, kh, kw, fan_in=fan_in),
        draw(f),
        draw(2 * f, 2 * f, kh, kw, fan_in=fan_in),
        draw(2 * f),
    ]
    if skip_channels:
        s = 2 * sum(skip_channels)
        weights += [draw(f, s, 1, 1, fan_in=s), draw(f)]
    return Case(
        shift,
        draw(batch, f, height, width),
        [draw(batch, s, height, width) for s in skip_channels],
        weights,
        [draw(*bias.shape) for bias in weights[1::2]] if gains else [],
        draw(batch, f, height, width),
        dropout,
        torch.tensor(0x1234_5678_9ABC_DEF0),
        draw(batch, 2 * f) if image_bias else None,
    )


def assert_as_good(
    got: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor], eps: float
) -> None:
    """The error against float64 is at most twice that of eager, and a band of rounding errors of
    the largest value: sums of a few terms may be lucky in one order and not in another, and in
    float64 the judge itself is rounded."""
    band = (40 if eps == EPS[torch.float64] else 12) * eps
    for name, expected in exact.items():
        assert got[name].dtype == eager[name].dtype, name
        assert got[name].shape == expected.shape, name
        scale = expected.abs().max().item() if expected.numel() else 0.0
        error = (got[name].double() - expected).abs().max().item() if expected.numel() else 0.0
        eager_error = (
            (eager[name].double() - expected).abs().max().item() if expected.numel() else 0.0
        )
        assert error <= 2 * eager_error + band * max(scale, 0.05), (name, error, eager_error)
