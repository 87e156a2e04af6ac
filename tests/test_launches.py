"""How many Triton kernels a training step launches, and that no step launches one in vain.

Nothing runs: launchers are called on CPU tensors and only counted.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: its launchers cannot be imported")

import dsmooth
from dsmooth.functional import use_impl
from dsmooth.kernels import (
    expand,
    gated_resnet,
    logistic_mixture,
    matmul,
    patches,
    shifted_conv,
    weight_gradients,
    weights,
)
from dsmooth.nn.score import score_of

MODULES = (
    *(expand, gated_resnet, logistic_mixture, matmul, patches, shifted_conv),
    *(weight_gradients, weights),
)
OPS = ("gated_resnet", "shifted_conv", "logistic_mixture")
WEIGHT_GRADIENTS = {
    "weight_gradient_kernel",
    "parameter_gradient_kernel",
    "unpack_kernel",
    "unpack_one_kernel",
}
# Of 40 filters and 5 resnets a block: 64 gated resnets, 12 other convolutions and the loss.
MOST_LAUNCHES = 950


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Inside the block Triton computes on the CPU, by impl="triton", and launches are counted."""
    counts: Counter[str] = Counter()

    def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, **named: Any) -> None:
        counts[kernel.__name__] += min(grid) > 0

    with patch.context() as inside, use_impl("triton"):
        for module in MODULES:
            inside.setattr(module, "launch", launch)
        for op in OPS:
            module = importlib.import_module(f"dsmooth.functional.{op}")
            assert isinstance(module, ModuleType)
            inside.setattr(module, "triton_obstacle", lambda *args, **named: None)
        yield counts


def make(**settings: Any) -> tuple[dsmooth.PixelCNNpp, Tensor]:
    torch.manual_seed(0)
    model = dsmooth.PixelCNNpp(dsmooth.ModelConfig(**settings))
    return model.to(memory_format=torch.channels_last), torch.rand(1, 1, 4, 4)


def test_launches_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make(n_filters=40, n_resnet=5, n_mix=10, dropout=0.5)
    with counted(monkeypatch) as counts:
        loss = -model.train().log_prob(x).sum()
        loss.backward()
    assert counts.total() <= MOST_LAUNCHES
    # Once forward and not again: the backward takes the packed weights of the forward.
    assert counts["pack_kernel"] == counts["unpack_kernel"] == 64


@pytest.mark.quick
def test_frozen_weights_have_no_gradient_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make(n_filters=4, n_resnet=1, n_mix=1)
    with counted(monkeypatch) as counts:
        model.log_prob(x).sum().backward()
        whole = Counter(counts)
        counts.clear()
        score_of(model, x)
        scored = Counter(counts)
        counts.clear()
        model.requires_grad_(False)
        model.log_prob(x.requires_grad_()).sum().backward()
        frozen = Counter(counts)
    assert set(whole) >= WEIGHT_GRADIENTS
    assert not set(scored) & WEIGHT_GRADIENTS
    assert frozen == scored
    assert scored.total() < whole.total()


@pytest.mark.quick
def test_without_a_backward_there_are_no_more_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make(n_filters=4, n_resnet=1, n_mix=1)
    with counted(monkeypatch) as counts:
        model.log_prob(x)
        forward = Counter(counts)
        counts.clear()
        with torch.no_grad():
            model.log_prob(x)
    assert counts == forward
