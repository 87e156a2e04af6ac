"""The model as one graph: torch.export, and torch.compile of a whole training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth import _extension
from dsmooth.functional import use_impl
from dsmooth.functional.dispatch import constant_when_compiled

IMPLS = [
    "reference",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(
            not _extension.is_available(), reason=str(_extension.unavailable_reason())
        ),
    ),
]


def tiny(conditioning: str, **settings: Any) -> dsmooth.PixelCNNpp:
    torch.manual_seed(0)
    return dsmooth.PixelCNNpp(
        dsmooth.ModelConfig(
            n_filters=4,
            n_resnet=1,
            n_mix=2,
            conditioning=conditioning,
            context_layers=1,
            **settings,
        )
    )


def images(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(batch, 1, 8, 12, generator=generator) * 2 - 1
    return x, x + 0.5 * torch.randn(x.shape, generator=generator)


@pytest.mark.grid
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("conditioning", ["none", "stack", "concat"])
def test_exports_for_any_batch(conditioning: str, impl: Any) -> None:
    model = tiny(conditioning, dropout=0.5).eval()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    arguments = images(3)[: 1 if conditioning == "none" else 2]
    dynamic = dict.fromkeys(("x", "context")[: len(arguments)], batch)
    with use_impl(impl):
        program = torch.export.export(model, arguments, dynamic_shapes=dynamic)
        other = images(5)[: len(arguments)]
        with torch.no_grad():
            torch.testing.assert_close(program.module()(*other), model(*other))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_training_step_compiles_as_one_graph(impl: Any) -> None:
    """Loss and every gradient, of a model with dropout off and of one with context."""
    model = tiny("stack", dropout=0.0).train()
    x, context = images(2)

    def loss(x: Tensor, context: Tensor) -> Tensor:
        return -model.log_prob(x, context).mean()

    def gradients(function: Any) -> list[Tensor]:
        value = function(x, context)
        return [value.detach(), *torch.autograd.grad(value, list(model.parameters()))]

    with use_impl(impl):
        want = gradients(loss)
        got = gradients(torch.compile(loss, fullgraph=True, backend="aot_eager"))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


def test_the_mark_of_constants_is_that_of_torch() -> None:
    """Set without the import of the compiler, which torch's own decorator does."""

    def mark(decorator: Any) -> dict[str, Any]:
        def function() -> None:
            """Does nothing."""

        return dict(vars(decorator(function)))

    assert mark(constant_when_compiled) == mark(torch.compiler.assume_constant_result)
