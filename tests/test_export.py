"""The model as one graph: torch.export, and torch.compile of a whole training step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.functional import use_impl
from tests.helpers.gated_cases import NATIVE
from tests.helpers.networks import CLASSES, inputs, network

full = partial(pytest.param, marks=pytest.mark.full)
each_impl = pytest.mark.parametrize("impl", [full("reference"), NATIVE])


@each_impl
@pytest.mark.parametrize("conditioning", [full("none"), full("stack"), "concat"])
def test_exports_for_any_batch(conditioning: str, impl: Any) -> None:
    model = network(conditioning, dropout=0.5)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    count = 1 if conditioning == "none" else 2
    arguments, other = (inputs(conditioning, batch=n)[:count] for n in (3, 5))
    dynamic = dict.fromkeys(("x", "context")[:count], batch)
    with use_impl(impl):
        program = torch.export.export(model, arguments, dynamic_shapes=dynamic)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(*other), model(*other))


@each_impl
def test_a_training_step_compiles_as_one_graph(impl: Any) -> None:
    """Loss and every gradient, with a context, classes and dropout."""
    model = network("concat", n_classes=CLASSES, dropout=0.5).train()
    arguments = inputs("concat")

    def loss(x: Tensor, context: Tensor, label: Tensor) -> Tensor:
        return -model.log_prob(x, context, label).mean()

    def gradients(function: Any) -> list[Tensor]:
        torch.manual_seed(2)
        value = function(*arguments)
        return [value.detach(), *torch.autograd.grad(value, list(model.parameters()))]

    with use_impl(impl):
        want = gradients(loss)
        got = gradients(torch.compile(loss, fullgraph=True, backend="aot_eager"))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)
