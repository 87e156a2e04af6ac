"""Pairs in files: the same pair again, whole whenever a save ends, or a clear refusal."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock

import pytest
import torch

import dsmooth
from dsmooth.files import lock_folder
from dsmooth.models import load_models
from dsmooth.nn.weights import weights_digest
from dsmooth.pretrained import resolve
from tests.helpers.data_makers import refuses
from tests.helpers.networks import tiny_pair


@pytest.mark.quick
@pytest.mark.parametrize("conditioning", ["stack", "concat"])
def test_saved_pair_is_the_same_pair(tmp_path: Path, conditioning: str) -> None:
    pair = tiny_pair("continuous", conditioning)
    pair.smoothing = dsmooth.LaplaceSmoothing(0.25)
    pair.save_pretrained(tmp_path / "pair")
    again = dsmooth.SmoothedPair.from_pretrained(tmp_path / "pair")
    assert again.smoothing == pair.smoothing
    assert again.image_size == (8, 8)
    assert again.denoiser.config == pair.denoiser.config
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pair.state_dict().items())
    assert torch.equal(again.sample(2), pair.sample(2))


def other_pair() -> dsmooth.SmoothedPair:
    """The tiny pair with other weights in both models."""
    pair = tiny_pair()
    with torch.no_grad():
        for model in (pair.noisy, pair.denoiser):
            model.head.bias[0] += 1
    return pair


def digests(pair: dsmooth.SmoothedPair) -> list[str]:
    return [weights_digest(model) for model in (pair.noisy, pair.denoiser)]


@pytest.mark.parametrize("change", ["fsync", "replace", "unlink"])
def test_a_save_that_ends_anywhere_leaves_a_pair(tmp_path, monkeypatch, change: str) -> None:
    """The old one or the new one, whole; a full disk leaves the old one with its card."""
    old, new = tiny_pair(), other_pair()
    old.save_pretrained(tmp_path, name="old")
    files, real = set(tmp_path.iterdir()), getattr(os, change)
    for done in itertools.count():
        full = itertools.repeat(OSError(28, "No space left on device"))
        end = Mock(wraps=real, side_effect=itertools.chain([DEFAULT] * done, full))
        with monkeypatch.context() as patch, suppress(OSError):
            patch.setattr(os, change, end)
            if change == "unlink":  # and a save that ended before left something
                (tmp_path / ".noisy-0.safetensors").touch()
            new.save_pretrained(tmp_path, name="new")
            break
        found = dsmooth.SmoothedPair.from_pretrained(tmp_path)
        assert digests(found) in (digests(old), digests(new))
        if change == "fsync":
            assert digests(found) == digests(old)
        if digests(found) == digests(old):
            assert 'from_pretrained("old")' in (tmp_path / "README.md").read_text()
        old.save_pretrained(tmp_path, name="old")
        assert digests(dsmooth.SmoothedPair.from_pretrained(tmp_path)) == digests(old)
        assert set(tmp_path.iterdir()) == files
    assert done == {"fsync": 4, "replace": 6, "unlink": 1}[change]


def test_a_pair_that_is_saved_meanwhile_is_read_whole(tmp_path, monkeypatch) -> None:
    saves: list[dsmooth.SmoothedPair] = []

    def resolved(*name: Any, **hub: Any) -> Any:
        found = resolve(*name, **hub)
        if saves:
            saves.pop().save_pretrained(tmp_path)
        return found

    for module in ("pretrained.pairs", "models"):
        monkeypatch.setattr(f"dsmooth.{module}.resolve", resolved)
    for read in (dsmooth.SmoothedPair.from_pretrained, lambda path: load_models([path]).pair):
        tiny_pair().save_pretrained(tmp_path)
        saves.append(other_pair())
        assert digests(read(tmp_path)) == digests(other_pair())
    with lock_folder(tmp_path, "someone"), pytest.raises(ValueError, match="saves a pair is at"):
        tiny_pair().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    refuses(r"config\.json is a file: name a folder", tiny_pair().save_pretrained, path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_pair_of_any_dtype_is_read_by_any_default(tmp_path: Path, dtype: torch.dtype) -> None:
    pair = tiny_pair().to(dtype)
    pair.save_pretrained(tmp_path)
    for default in (torch.float64, torch.float32):
        torch.set_default_dtype(default)
        found = dsmooth.SmoothedPair.from_pretrained(tmp_path)
        assert (found.dtype, digests(found)) == (default, digests(pair))


def test_weights_of_two_pairs_are_no_pair(tmp_path: Path) -> None:
    old, new = tiny_pair(), other_pair()
    old.save_pretrained(tmp_path / "old")
    words, twice = "got noisy .*, denoiser .*, noisy .*, denoiser ", [tmp_path / "old"] * 2
    refuses(words, dsmooth.SmoothedPair.from_runs, *twice)
    new.save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "noisy.safetensors").replace(tmp_path / "old" / "noisy.safetensors")
    with pytest.raises(ValueError, match=r"old/noisy\.safetensors does not hold the weights that"):
        dsmooth.SmoothedPair.from_pretrained(tmp_path / "old")


def test_folders_that_are_not_pairs_are_named(tmp_path: Path) -> None:
    read = partial(dsmooth.SmoothedPair.from_pretrained, tmp_path)
    refused = partial(refuses, call=read, error=(FileNotFoundError, ValueError))
    refused(r"there is no .*config\.json")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    refused(r"name folders in .*, which has mine")
    (tmp_path / "config.json").write_text("{}")
    refused("is not a pair's: Object missing required field `noisy`")
    refuses(r"config\.json is not of a saved pair", tiny_pair().save_pretrained, tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"
    (tmp_path / "config.json").unlink()
    tiny_pair().save_pretrained(tmp_path)
    other = tmp_path / "noisy.safetensors"
    other.write_bytes((tmp_path / "denoiser.safetensors").read_bytes())
    refused(r"noisy\.safetensors holds a model of another shape")
    other.write_bytes(other.read_bytes()[:500])
    refused("not a readable safetensors file")
