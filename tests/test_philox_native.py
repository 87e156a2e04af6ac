"""Philox4x32-10 in C++: the words of Python, which test_philox.py compares with the paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsmooth import _extension
from dsmooth.philox import Stream, philox4x32, to_uniform

# Without a C++ compiler there is no extension; test_extension.py asserts it everywhere else.
pytestmark = [
    pytest.mark.quick,
    pytest.mark.skipif(not _extension.is_available(), reason=str(_extension.unavailable_reason())),
]
word = st.integers(0, 2**32 - 1)


@given(counter=st.lists(word, min_size=4, max_size=4), key=st.lists(word, min_size=2, max_size=2))
def test_same_words_as_python(counter: list[int], key: list[int]) -> None:
    words = philox4x32(torch.tensor(counter), (key[0], key[1])).tolist()
    assert _extension.extension().philox4x32_10(counter, key) == words


@given(word)
def test_same_uniform_as_python_and_exact_in_float32(value: int) -> None:
    uniform = _extension.extension().philox_uniform(value)
    assert uniform == to_uniform(torch.tensor(value)).item()
    assert uniform == torch.tensor(uniform, dtype=torch.float32).item()
    assert 0 < uniform < 1


def test_streams_have_the_names_and_numbers_of_python() -> None:
    numbers = {stream.name: int(stream) for stream in Stream}
    assert _extension.extension().streams().items() <= numbers.items()


@pytest.mark.parametrize(("counter", "key"), [([0] * 3, [0] * 2), ([0] * 4, [2**32, 0])])
def test_words_that_are_not_32_bits_or_not_four_are_refused(
    counter: list[int], key: list[int]
) -> None:
    with pytest.raises(TypeError):
        _extension.extension().philox4x32_10(counter, key)
