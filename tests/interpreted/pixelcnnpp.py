"""The network on Triton kernels, under Triton's interpreter (see test_interpreter.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth.functional import logistic_mixture_log_prob, use_impl
from dsmooth.kernels import expand
from tests.helpers import interpreter_speed  # noqa: F401 - for its effect


@pytest.fixture(autouse=True)
def one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all rows of these small images, in half the time."""
    monkeypatch.setattr(expand, "BLOCK_P", 256)


def make_model() -> dsmooth.PixelCNNpp:
    torch.manual_seed(0)
    config = dsmooth.ModelConfig(n_filters=2, n_resnet=1, n_mix=1, dropout=0.5)
    return dsmooth.PixelCNNpp(config).double()


def draw() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 1, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1


def loss_of(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return -logistic_mixture_log_prob(x, model(x), impl="reference").mean()


def train(impl: Any, steps: int, compute: Callable[..., Tensor]) -> list[Tensor]:
    """The losses, and the parameters after the last step."""
    model = make_model().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        with use_impl(impl):
            loss = compute(model, draw())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(p.detach() for p in model.parameters())]


@pytest.mark.full
@pytest.mark.parametrize(("steps", "compiled"), [(3, False), (1, True)])
def test_training_steps_are_those_of_the_reference(steps: int, compiled: bool) -> None:
    """The whole network, with dropout, as one graph if it is compiled; a step takes 4 s here."""
    function = torch.compile(loss_of, fullgraph=True, backend="aot_eager") if compiled else loss_of
    reference, triton = train("reference", steps, loss_of), train("triton", steps, function)
    for got, expected in zip(triton, reference, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
