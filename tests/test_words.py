"""Nothing that the program does depends on sentences for people: each of them becomes "x" here."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dsmooth.config import TrainConfig
from dsmooth.fields import SettingError
from tests.helpers.command_runs import run

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("sample mnist --label cat", "--label x"),
        ("train noisy --images 3 --budget 2", "--images and --budget x"),
        ("train noisy --images 8 --data folder --image-size 6", "--image-size x"),
        ("train noisy --images 8 --label-dropout 0.5", "--label-dropout x --classes"),
        ("train noisy --images 8 --data folder", "x --data-dir"),
        ("train noisy --images 8 --device gpu", "--device x"),
    ],
)
def test_an_error_names_its_options(command, line, tmp_path, monkeypatch, capsys) -> None:
    init = SettingError.__init__

    def without_words(self: SettingError, arguments, message: str, **remedy: object) -> None:
        init(self, arguments, "x", **remedy)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SettingError, "__init__", without_words)
    assert run(*command.split()) == 1
    assert capsys.readouterr().err == f"dsmooth: error: {line}\n"


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
