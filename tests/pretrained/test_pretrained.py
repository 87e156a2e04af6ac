"""Packaged models: found by name, small, and with a card whose numbers are those of the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import dsmooth
from dsmooth.config import ProbeSettings
from dsmooth.data import load_dataset
from dsmooth.evaluate.likelihood import bits_per_dim, score_pair
from dsmooth.files import structured
from dsmooth.nn import PixelCNNpp
from dsmooth.nn.weights import weights_digest
from dsmooth.pair import SmoothedPair
from dsmooth.pretrained import DEFAULT, find, load, packaged
from dsmooth.pretrained.runs import RunFolder
from dsmooth.work import read_record
from tests.helpers.command_runs import run, save_run

PAIRS = [name for name in packaged() if not name.endswith("-plain")]
README = Path(__file__).parents[2] / "README.md"
TOOL = Path(__file__).parents[2] / "tools" / "card.py"
with_tool = pytest.mark.skipif(not TOOL.exists(), reason="there are no tools next to the tests")
LARGEST = 15e6  # bytes of all packaged models


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """tools/card.py; its probes are trained for one epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.card.ProbeSettings", partial(ProbeSettings, epochs=1))
        yield import_module("tools.card")


def test_a_pair_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name means both runs, and is the default of the command; networks go before it."""
    folder = find(DEFAULT)
    x = SmoothedPair.from_pretrained(DEFAULT).sample(2, seed=0)
    assert x.shape == (2, 1, 28, 28)
    assert torch.equal(SmoothedPair.from_pretrained(folder).sample(2, seed=0), x)
    out = [str(tmp_path / name) for name in ("x.npz", "x.png")]
    assert run("sample", "-n", "1", "--first-index", "1", "--device", "cpu", "--out", *out) == 0
    assert np.array_equal(np.load(out[0])["x"], x[1:].numpy())
    assert Path(out[1]).read_bytes().startswith(b"\x89PNG")
    folders = {role: run.path for role, run in load(DEFAULT).runs.items()}
    assert folders == {"noisy": folder / "noisy", "denoiser": folder / "denoiser"}
    plain = PixelCNNpp.from_pretrained("mnist-plain")
    with_plain = dsmooth.load(Path(DEFAULT), Path("mnist-plain"))
    assert weights_digest(with_plain.networks["plain"]) == weights_digest(plain)
    with pytest.raises(FileNotFoundError, match=rf"no no-such-models.*it has .*{DEFAULT}"):
        SmoothedPair.from_pretrained("no-such-models")
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT).mkdir()  # as data may lie there
    assert find(DEFAULT) == folder
    (tmp_path / DEFAULT).rmdir()
    save_run(tmp_path / DEFAULT, "plain")
    assert find(DEFAULT) == Path(DEFAULT)


def test_packaged_models_are_small_and_know_no_path() -> None:
    files = [path for name in PAIRS for path in find(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    for path in files:
        if path.suffix == ".json":
            assert "data_dir" not in path.read_text().replace('"data_dir": null', "")
            assert '"init": "/' not in path.read_text()


def test_the_packaged_photographs_have_the_settings_of_their_preset() -> None:
    """But for the run's length and seed, and for the weights, and rates, that it began with."""
    own = {"images", "evaluations", "seed", "precision", "init", "rate_factor", "kernel_rate"}
    for role, folder in load("photos").runs.items():
        trained, named = asdict(folder.read_config()[0]), asdict(dsmooth.preset("photos", role))
        assert {name for name in named if trained[name] != named[name]} <= own


@pytest.mark.parametrize("name", PAIRS)
def test_the_card_is_of_these_weights(name: str) -> None:
    """Some images have its bits/dim, within four standard errors of their mean."""
    folder = find(name)
    card = read_record(folder / "card.json")["result"]
    models = dsmooth.load(folder, *filter(Path.exists, [folder / "plain"]))
    assert models.identity()["weights_sha256"] == card["weights_sha256"]
    if name == "photos":  # whose images are not in the package
        return
    bits = bits_per_dim(score_pair(models.pair, load_dataset("mnist", "test").part(slice(100))))
    assert bits.value == pytest.approx(
        card["bits"]["models"]["pair"]["numbers"]["discrete"]["value"], abs=4 * (bits.error or 0)
    )


@with_tool
@pytest.mark.parametrize("name", PAIRS)
def test_a_card_has_the_words_of_its_template(tool: ModuleType, name: str) -> None:
    template = "photos.md" if name == "photos" else "card.md"
    assert (find(name) / "README.md").read_text() == tool.text(
        template, card=tool.packaged_card(name)
    )


@with_tool
@pytest.mark.skipif(not README.exists(), reason="the README is not here: tests of an installation")
def test_readme_has_the_numbers_of_the_cards(tool: ModuleType) -> None:
    """The bound of the pair conditioned on the digit includes the bits of the digit."""
    card, told = map(tool.packaged_card, (DEFAULT, "mnist-classes"))
    summary = tool.text("summary.md", card=card, told=told).strip()
    assert summary in README.read_text()
    assert f"≤ {told.bits.pair.numbers.discrete.value + math.log2(10) / 784:.3f} ±" in summary


@with_tool
@pytest.mark.long
@pytest.mark.usefixtures("no_fidelity")
def test_a_card_is_of_what_was_measured(tool: ModuleType, tmp_path: Path) -> None:
    folder, work = tmp_path / "models", tmp_path / "work"
    entries = (
        {"event": "start", "images": 0, "seconds": 0.0, "total": 1, "loss": "bits/dim"},
        {"event": "evaluation", "images": 1, "seconds": 1.0, "bits_per_dim": 8.0},
        {"event": "end", "images": 1, "seconds": 1.0},
    )
    for role in ("noisy", "denoiser", "plain"):
        log = RunFolder(save_run(folder / role, role, size=28)).log
        log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    sets = [load_dataset("mnist", split).part(slice(60)) for split in ("train", "test")]
    card = tool.write_card(folder, work, *sets, count=20)
    path = folder / "card.json"
    assert card == structured(read_record(path)["result"], tool.ModelCard, path)
    text = (folder / "README.md").read_text()
    assert f"| pair: discrete bound * | {card.bits.pair.headline.value:.4f} |" in text
    assert f"{card.samples['plain'].distance['20']:.3f}" in text
    assert (folder / "samples.png").is_file()
    assert tool.write_card(folder, work, *sets, count=20) == card  # which it finds
