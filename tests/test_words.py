"""Nothing that the program does depends on sentences for people."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dsmooth.config import TrainConfig
from dsmooth.fields import SettingError

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("flip", 1, "True or False"),
        ("role", "x", "one of noisy, denoiser, plain"),
        ("data_dir", 3, "text or None"),
        ("kernel_rate", 1.0, "a number > 0 and < 1 or None"),
        ("betas", (0.9,), "a list of length 2, each item a number >= 0 and < 1"),
    ],
)
def test_a_field_is_described_by_its_type(name, value, allowed, monkeypatch) -> None:
    """Not by the error of the library that checks it."""
    convert = msgspec.convert

    def without_words(*arguments: Any, **options: Any) -> object:
        try:
            return convert(*arguments, **options)
        except msgspec.ValidationError:
            raise msgspec.ValidationError("x") from None

    monkeypatch.setattr(msgspec, "convert", without_words)
    with pytest.raises(SettingError, match=f"^`{name}` must be {allowed}, got "):
        TrainConfig(**{name: value})
