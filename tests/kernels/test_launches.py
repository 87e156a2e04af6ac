"""Triton kernels that a training step launches, counted on CPU tensors: none is in vain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: its launchers cannot be imported")

from dsmooth.functional import use_impl
from dsmooth.kernels import expand, gated_resnet, logistic_mixture, weights
from dsmooth.nn.gradients import input_gradient
from tests.helpers.networks import network
from tests.helpers.triton_tools import let_triton_run

MODULES = (expand, gated_resnet, logistic_mixture, weights)
UNPACKS = ", with gradients of parameters"
WEIGHT_GRADIENTS = {"parameter_gradient_kernel", "last_gradients_kernel" + UNPACKS}


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Inside the block Triton computes on the CPU, by impl="triton", and launches are counted."""
    counts: Counter[str] = Counter()

    def launch(kernel: Any, grid: tuple[int, ...], device: Any, **arguments: Any) -> None:
        counts[kernel.__name__ + UNPACKS * bool(arguments.get("unpacked"))] += 0 not in grid

    with patch.context() as inside, use_impl("triton"):
        for module in MODULES:
            inside.setattr(module, "launch", launch)
        let_triton_run(inside)
        yield counts


@pytest.mark.quick
def test_nothing_is_launched_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), torch.rand(3, 1, 8, 4)
    with counted(monkeypatch) as counts:
        loss = model.log_prob(x).sum()
        forward = Counter(counts)
        loss.backward()
        whole = Counter(counts)
        counts.clear()
        with torch.no_grad():
            model.log_prob(x)
        assert counts == forward
        counts.clear()
        input_gradient(model, x)
        scored = Counter(counts)
        counts.clear()
        model.requires_grad_(False)
        model.log_prob(x.requires_grad_()).sum().backward()
        frozen = Counter(counts)
    assert set(whole) >= WEIGHT_GRADIENTS
    assert not set(scored) & WEIGHT_GRADIENTS
    assert frozen == scored
    assert scored.total() < whole.total()
