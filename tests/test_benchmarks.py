"""Benchmarks: turns of contenders, the comparison of results, the documents that show them."""

from __future__ import annotations

import copy
import importlib
import itertools
from collections import Counter
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from benchmarks import records, write_docs
from benchmarks.measure import take_turns
from dsmooth.nn.gradients import input_gradient
from tests.helpers.networks import network

pytestmark = pytest.mark.quick


def test_the_documents_are_what_the_results_give() -> None:
    for path, text in write_docs.texts().items():
        assert path.read_text() == text, f"run `python benchmarks --write-docs` for {path.name}"


def test_a_case_differs_where_the_quartiles_do_not_overlap() -> None:
    (saved, *_) = write_docs.saved_results().values()
    assert records.merge(saved, saved[3:5]) == saved
    (total,) = records.compare(saved, saved)
    assert total.endswith("numbers compared, 0 differ beyond the spread.")
    for change, word in ((0.5, "better"), (2.0, "WORSE")):
        after = copy.deepcopy(saved)
        seconds = after[0]["seconds"]
        seconds[after[0]["ours"]] = [change * value for value in seconds[after[0]["ours"]]]
        change_text, total = records.compare(saved, after)
        assert change_text.startswith(f"{records.name_of(saved[0])}: seconds ")
        assert f"({word}, {change - 1:+.0%})" in change_text
        assert ", 1 differ beyond the spread." in total


def test_contenders_take_turns_and_only_timed_calls_count() -> None:
    seen: list[str] = []
    contenders = {name: lambda name=name: seen.append(name) for name in "ab"}
    ticks, count = itertools.count(), {"before": 1, "calls": {"b": 10}}
    turns = take_turns(contenders, 2, warmup=1, clock=lambda: next(ticks), **count)
    assert seen == ["a", "a", "b", "b"] * 3
    assert turns.seconds == {"a": [1, 1], "b": [10, 10]}
    assert turns.ratio("b", "a").median == 10


@pytest.fixture
def launches() -> ModuleType:
    pytest.importorskip("triton")
    return importlib.import_module("benchmarks.launches")


@pytest.mark.parametrize(("role", "most"), [("noisy", 1076), ("denoiser", 1350)])
def test_a_step_launches_no_more_than_it_did(launches: ModuleType, role: str, most: int) -> None:
    assert 0 < launches.launches_of_step("mnist", role) <= most


def test_no_kernel_is_launched_in_vain(launches: ModuleType) -> None:
    """In a forward without gradients, for gradients by images alone, in a frozen network."""
    model, x = network(), torch.rand(3, 1, 8, 4)
    of_weights = {
        "parameter_gradient_kernel",
        "last_gradients_kernel, with gradients of parameters",
    }
    with launches.counted() as found:

        def kernels_of(call: Callable[[], object]) -> Counter[str]:
            found.kernels.clear()
            call()
            return found.kernels.copy()

        forward = kernels_of(lambda: model.log_prob(x))
        assert kernels_of(torch.no_grad()(lambda: model.log_prob(x))) == forward
        whole = kernels_of(lambda: model.log_prob(x).sum().backward())
        scored = kernels_of(lambda: input_gradient(model, x))
        model.requires_grad_(False)
        frozen = kernels_of(lambda: model.log_prob(x.requires_grad_()).sum().backward())
    assert set(whole) >= of_weights
    assert not set(scored) & of_weights
    assert frozen == scored
    assert forward.total() < scored.total() < whole.total()
