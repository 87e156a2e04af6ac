"""Philox4x32-10 in Python and C++: known answers, and words as a function of their counter."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsmooth import _extension
from dsmooth.philox import Stream, image_words, philox4x32, to_uniform
from tests.helpers.data_makers import refuses
from tests.helpers.gated_cases import needs_extension

pytestmark = pytest.mark.quick

word = st.integers(0, 2**32 - 1)
KNOWN = json.loads((Path(__file__).parent / "golden" / "logistic_mixture.json").read_text())


@pytest.mark.parametrize("case", KNOWN["philox4x32_10"])
def test_known_answers(case: dict[str, list[str]]) -> None:
    counter = torch.tensor([int(word, 16) for word in case["counter"]])
    key = (int(case["key"][0], 16), int(case["key"][1], 16))
    assert philox4x32(counter, key).tolist() == [int(word, 16) for word in case["output"]]


def test_counter_is_position_index_stream_and_repeat() -> None:
    """Whatever the other images are."""
    seed, first = 0x0123456789ABCDEF, 0x1_0000_0000
    words = image_words(3, 8, seed=seed, first_index=first, stream=Stream.CLEAN_NOISE, repeat=9)
    for image, position in itertools.product(range(3), range(8)):
        counter = torch.tensor([position, image, 1, int(Stream.CLEAN_NOISE) | 9 << 8])
        expected = philox4x32(counter, (0x89ABCDEF, 0x01234567))
        assert torch.equal(words[image, position], expected)


def test_uniforms_are_inside_the_unit_interval_and_exact_in_float32() -> None:
    u = to_uniform(torch.tensor([0, 2**32 - 1, 2**31]))
    assert u.tolist() == [2.0**-24, 1 - 2.0**-24, 0.5 + 2.0**-24]
    assert torch.equal(u.float().double(), u)


def test_streams_have_numbers_of_their_own() -> None:
    assert len(Stream) == len(Stream.__members__)


def test_numbers_out_of_range() -> None:
    ends = {"seed": 2**64, "first_index": 2**63, "repeat": 2**24}
    mistakes = [(name, x, "must lie in 0") for name, end in ends.items() for x in (-1, end)]
    for name in ("seed", "first_index"):
        mistakes += [(name, x, f"must be a whole number, got {x}") for x in (1.5, None, True)]
    for name, wrong, words in mistakes:
        given = {"seed": 0, "stream": Stream.SAMPLE, name: wrong}
        refuses(f"`{name}` {words}", image_words, 1, 1, **given)


@needs_extension
@given(counter=st.lists(word, min_size=4, max_size=4), key=st.lists(word, min_size=2, max_size=2))
def test_same_words_as_python(counter: list[int], key: list[int]) -> None:
    words = philox4x32(torch.tensor(counter), (key[0], key[1])).tolist()
    assert _extension.extension().philox4x32_10(counter, key) == words
