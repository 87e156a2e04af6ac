"""Triton kernels that a training step launches, counted on CPU tensors: none is in vain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: its launchers cannot be imported")


import dsmooth
from dsmooth.functional import use_impl
from dsmooth.kernels import expand, gated_resnet, logistic_mixture, weights
from dsmooth.kernels import launch as launching
from dsmooth.kernels.launch import Prepared
from dsmooth.nn.gradients import input_gradient
from tests.helpers.triton_tools import let_triton_run

MODULES = (expand, gated_resnet, logistic_mixture, weights)
UNPACKS = ", with gradients of parameters"
WEIGHT_GRADIENTS = {"parameter_gradient_kernel", "last_gradients_kernel" + UNPACKS}


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Inside the block Triton computes on the CPU, by impl="triton", and launches are counted."""
    counts: Counter[str] = Counter()

    def launch(kernel: Any, prepared: Prepared, device: torch.device, **tensors: Any) -> None:
        name = kernel.__name__ + UNPACKS * bool(prepared.arguments.get("UNPACK"))
        counts[name] += prepared.programs > 0

    with patch.context() as inside, use_impl("triton"):
        for module in MODULES:
            inside.setattr(module, "launch", launch)
        let_triton_run(inside)
        yield counts


class FakeKernel:
    """As Triton's: compiles when it is called, and returns what can be run again."""

    arg_names = ("x_ptr", "pair", "n")

    def __init__(self) -> None:
        self.compiled: list[dict[str, Any]] = []
        self.runs: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def compile(**named: Any) -> Any:
            self.compiled.append(named)
            return {grid: lambda *arguments: self.runs.append(arguments)}

        return compile


def test_a_kernel_is_compiled_once_for_each_kind_of_arguments(monkeypatch) -> None:
    """For dtypes, addresses that are multiples of 16, absent tensors and numbers."""
    monkeypatch.setattr(launching.triton, "JITFunction", FakeKernel)
    kernel = FakeKernel()
    x, other = torch.zeros(64), torch.zeros(64)
    assert x.data_ptr() % 16 == other.data_ptr() % 16 == 0

    def launch(x: Tensor, pair: Any, n: int = 3) -> int:
        prepared = launching.prepare((5, 2), n=n)
        launching.launch(kernel, prepared, torch.device("cpu"), pair=pair, x_ptr=x)
        return len(kernel.compiled)

    assert launch(x, (x, x)) == launch(other, (x, other)) == launch(x, (other, x)) == 1
    assert kernel.runs[0] == (other.data_ptr(), (x.data_ptr(), other.data_ptr()), 3)
    assert launch(x[2:], (x, x)) == 2
    assert launch(x, (x, x[1:])) == 3
    assert launch(x.half(), (x, x)) == 4
    assert launch(x, None) == 5
    assert launch(x, (x, x), n=4) == 6
    assert launch(x[2:], (other, x)) == 6
    kernel = FakeKernel()  # another one is compiled for itself
    assert launch(x, None) == launch(x, None) == 1


def make(conditioning: Any = "none") -> tuple[dsmooth.PixelCNNpp, Tensor]:
    torch.manual_seed(0)
    config = dsmooth.ModelConfig(n_filters=4, n_resnet=1, n_mix=1, conditioning=conditioning)
    model = dsmooth.PixelCNNpp(config).to(memory_format=torch.channels_last)
    return model, torch.rand(3, 1, 8, 4)


@pytest.mark.quick
def test_nothing_is_launched_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make()
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
