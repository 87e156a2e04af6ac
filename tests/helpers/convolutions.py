"""Cases of the shifted convolutions that the tests of several implementations judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsmooth.functional import (
    Convolution,
    Shift,
    shifted_conv2d,
    shifted_conv_transpose2d,
    shifted_convolutions,
)


@dataclass(frozen=True)
class Conv:
    """A convolution from `channels` to `filters`; stride 0 stands for the transposed one."""

    shift: Shift
    kernel: tuple[int, int]
    stride: int
    size: tuple[int, int, int]
    channels: int
    filters: int

    def draw(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """x, weight and bias in float64, rounded to dtype."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return values.to(dtype).double()

        batch, rows, cols = self.size
        d, c = self.filters, self.channels
        weight = draw(*((c, d) if self.stride == 0 else (d, c)), *self.kernel)
        return draw(batch, c, rows, cols), weight / (c * weight[0, 0].numel()) ** 0.5, draw(d)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, impl: Any) -> Tensor:
        if self.stride == 0:
            return shifted_conv_transpose2d(x, weight, bias, shift=self.shift, impl=impl)
        return shifted_conv2d(x, weight, bias, shift=self.shift, stride=self.stride, impl=impl)

    def run(
        self,
        impl: str,
        dtype: torch.dtype,
        rounded: torch.dtype | None = None,
        prepare: Callable[[Tensor], Tensor] = lambda t: t,
    ) -> dict[str, Tensor]:
        """The output and all gradients, of inputs rounded to `rounded`."""
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        x, weight, bias = self.draw(rounded or dtype)
        x = prepare(x.to(dtype)).detach().requires_grad_()
        weight, bias = (t.to(exact).requires_grad_() for t in (weight, bias))
        half = dtype in (torch.bfloat16, torch.float16)
        with torch.autocast("cpu", dtype if half else None, enabled=half):
            y = self(x, weight, bias, impl)
        generator = torch.Generator().manual_seed(1)
        grad_y = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        grad_y = grad_y.to(rounded or dtype)
        y.backward(prepare(grad_y.to(y.dtype)))
        grads = {"x": x.grad, "weight": weight.grad, "bias": bias.grad}
        return {"y": y.detach()} | {k: g for k, g in grads.items() if g is not None}


def run_together(
    convs: list[Conv], impl: Any, dtype: torch.dtype, rounded: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The outputs and gradients of weight-normed ones, by `shifted_convolutions`."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    half = dtype in (torch.bfloat16, torch.float16)
    generator = torch.Generator().manual_seed(2)
    given = []
    for conv in convs:
        x, weight, bias = conv.draw(rounded or dtype)
        gain = torch.rand(conv.filters, generator=generator, dtype=torch.float64) + 0.5
        x, gain = x.to(dtype), gain.to(rounded or dtype)
        weight, gain, bias = (t.to(exact) for t in (weight, gain, bias))
        tensors = [t.requires_grad_() for t in (x, weight, bias, gain)]
        given.append(Convolution(*tensors[:3], conv.shift, tensors[3]))
    stride = convs[0].stride
    with torch.autocast("cpu", dtype if half else None, enabled=half):
        ys = shifted_convolutions(given, stride=stride or 2, transposed=stride == 0, impl=impl)
    generator.manual_seed(3)
    grads = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in ys]
    torch.autograd.backward(ys, [g.to(rounded or dtype).to(dtype) for g in grads])
    found: dict[str, Tensor] = {}
    for i, (y, conv) in enumerate(zip(ys, given, strict=True)):
        found[f"y{i}"] = y.detach()
        for name in ("x", "weight", "bias", "gain"):
            found[f"{name}{i}"] = getattr(conv, name).grad
    return found
