"""Random words, elementary functions and lists of the extension, for wrong calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth import _extension
from tests.faults.harness import Arguments, Target, guarded, run
from tests.helpers.random_words import MASK, words_of

EXTENSION = _extension.extension()


def _tensor(words: Any) -> list[Tensor]:
    return [torch.tensor(words)]


def _uniform(word: int) -> float:
    assert isinstance(word, int)
    assert 0 <= word <= MASK
    return ((word >> 9) + 0.5) * 2.0**-23


def _elementary_arguments() -> Arguments:
    outputs = {name: guarded(torch.full((9,), torch.nan)) for name in ("exp", "expm1", "log")}
    values = guarded(torch.linspace(0.1, 3, 9))
    return {"input": values, **outputs, "instruction_set": "auto"}


def _elementary(given: Arguments) -> list[Tensor]:
    EXTENSION.elementary_functions(**given)
    return [given[name].detach() for name in ("exp", "expm1", "log")]


def _expected_elementary(given: Arguments) -> list[Tensor]:
    x = given["input"].detach()
    assert x.dtype in (torch.float32, torch.float64)
    assert x.ndim == 1
    for name in ("exp", "expm1", "log"):
        assert given[name].dtype == x.dtype
        assert given[name].shape == x.shape
    return [x.double().exp(), x.double().expm1(), x.double().log()]


WORDS = [-1, 0, MASK, 2**32, 2**70, 1.5, "x", float("nan")]
VALUES: dict[str, list[Any]] = {
    "counter": [[], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 2**32], [-1, 0, 0, 0], "abcd", 3],
    "key": [(), (1,), (1, 2, 3), (2**32, 0), (0, -1), (1.5, 0), "ab", 3],
    "word": WORDS,
    "instruction_set": ["generic", "sse9", "", 3],
}
COUNTER = [1, 2, 3, MASK]
ALSO = ("_C.streams", "_C.instruction_sets")
TARGETS = [
    Target(
        "_C.philox4x32_10",
        lambda: {"counter": COUNTER, "key": [5, MASK]},
        lambda given: _tensor(EXTENSION.philox4x32_10(**given)),
        lambda given: _tensor(words_of(given["counter"], given["key"])),
        VALUES,
    ),
    Target(
        "_C.philox_uniform",
        lambda: {"word": 77},
        lambda given: _tensor(EXTENSION.philox_uniform(**given)),
        lambda given: _tensor(_uniform(given["word"])),
        VALUES,
    ),
    Target(
        "_C.elementary_functions",
        *(_elementary_arguments, _elementary, _expected_elementary, VALUES, True),
    ),
]


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_wrong_call_raises_or_answers_rightly(target: Target) -> None:
    run(target, examples=150)


@pytest.mark.parametrize("name", ALSO)
def test_what_takes_no_arguments_refuses_any(name: str) -> None:
    function = getattr(EXTENSION, name.removeprefix("_C."))
    for argument in (None, 1, "x", torch.ones(1)):
        with pytest.raises(TypeError):
            function(argument)
    assert function() == function()
