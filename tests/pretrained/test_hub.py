"""Saved pairs with their card, and the Hugging Face Hub, played by a module of the test's own."""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import dsmooth
from dsmooth.nn.weights import weights_digest
from dsmooth.pretrained.runs import TrainingRecord
from dsmooth.pretrained.save import CARD_FILE
from dsmooth.results import BitsResult
from dsmooth.work import read_result
from tests.helpers.command_runs import run
from tests.helpers.data_makers import refuses
from tests.helpers.networks import network, tiny_pair


class FakeHub(ModuleType):
    """`huggingface_hub` with the folder `store` for the Hub; without one it cannot be reached."""

    def __init__(self, store: Path | None) -> None:
        super().__init__("huggingface_hub")
        self.store = store
        self.calls: list[tuple[Any, ...]] = []

    def reach(self) -> Path:
        if self.store is None:
            raise RuntimeError("no \x1b[2Jnetwork.\nA trace of many lines.")
        return self.store

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        self.calls.append((repo_id, options))
        assert not any(pattern in ("*", "*.py", "*.pt") for pattern in allow_patterns)
        return str(self.reach() / repo_id)

    def HfApi(self, token: str | None) -> Any:
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append((repo_id, private))
        (self.reach() / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(
        self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str
    ) -> Any:
        assert {Path(name).suffix for name in allow_patterns} >= {".json", ".safetensors", ".md"}
        shutil.copytree(folder_path, self.reach() / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


def same(a: dsmooth.SmoothedPair, b: dsmooth.SmoothedPair) -> bool:
    return torch.equal(a.sample(2), b.sample(2)) and a.noisy.record == b.noisy.record


def test_a_pair_goes_to_the_hub_and_comes_back(tmp_path, monkeypatch, caplog) -> None:
    hub = FakeHub(tmp_path / "store")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    pair = tiny_pair()
    address = pair.push_to_hub("someone/digits", private=True, token="secret")
    assert address == "https://hub/someone/digits/commit/1"
    assert hub.calls == [("token", "secret"), ("someone/digits", True)]
    card = (tmp_path / "store" / "someone" / "digits" / CARD_FILE).read_text()
    assert 'from_pretrained("someone/digits")' in card
    hub.calls.clear()
    options = {"revision": "v1", "cache_dir": "x", "token": "secret", "local_files_only": True}
    back = dsmooth.SmoothedPair.from_pretrained("someone/digits", **options)
    assert same(back, pair)
    assert hub.calls == [("someone/digits", options)]
    said = "no folder someone/digits here: reading someone/digits of the Hugging Face Hub"
    assert said in caplog.text
    # Commands take the name too, and `evaluate fid` draws from it.
    assert dsmooth.load("someone/digits").image_shape == (1, 8, 8)
    # So does a network.
    pair.noisy.image_size = (8, 8)
    pair.noisy.push_to_hub("someone/one")
    card = (tmp_path / "store" / "someone" / "one" / CARD_FILE).read_text()
    assert 'PixelCNNpp.from_pretrained("someone/one")' in card
    assert dsmooth.load("someone/one").image_shape == (1, 8, 8)
    network().save_pretrained("two")
    refuses(
        "the network does not say how large its images", lambda: dsmooth.load("two").image_shape
    )


def test_a_name_whose_owner_is_a_folder_is_a_path(tmp_path, monkeypatch) -> None:
    hub = FakeHub(None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    tiny_pair().save_pretrained("runs/pair")
    dsmooth.SmoothedPair.from_pretrained("runs/pair")
    for name in ("runs/typo", "typo", "a/b/c", "../typo"):
        with pytest.raises(FileNotFoundError, match=f"there is no {name}"):
            dsmooth.SmoothedPair.from_pretrained(name)
    assert hub.calls == []


def test_without_the_extra_or_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read, push = dsmooth.SmoothedPair.from_pretrained, tiny_pair().push_to_hub
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not installed
    lacking = {"error": ModuleNotFoundError}
    refuses(r"no folder a/b here.*pip install 'dsmooth\[hub", read, "a/b", **lacking)
    refuses(r"not write a/b .*pip install 'dsmooth\[hub\]'", push, "a/b", **lacking)
    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub(None))
    words = r"no folder a/b here.*no \\x1b\[2Jnetwork\. What was read once"
    refuses(words, read, "a/b", error=OSError)
    words = r"could not write a/b on the .*: no \\x1b\[2Jnetwork\. Writing needs a"
    refuses(words, push, "a/b", error=OSError)


def test_with_the_real_package_and_no_network(tmp_path, monkeypatch) -> None:
    """Its own error, and a model in its cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    words, read = "the Hugging Face Hub does not give it", dsmooth.SmoothedPair.from_pretrained
    refuses(f"{words}: .*cache of hugg", read, "someone/digits", error=OSError)
    commit, cached, pair = "a" * 40, tmp_path / "models--someone--digits", tiny_pair()
    pair.save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    assert same(read("someone/digits"), pair)


def test_the_card_is_filled_from_the_runs_and_the_scores(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = "--n-filters 4 --n-resnet 1 --set n_mix=2 --images 48 --batch-size 16 --seed 3"
    tiny += " --set evaluations=1 --set evaluation_images=4"
    for role in ("noisy", "denoiser"):
        assert run("train", role, *tiny.split(), "--out", f"runs/{role}") == 0
    pair = dsmooth.load("runs/noisy", "runs/denoiser").pair
    origin = pair.noisy.record
    pair.save_pretrained("pair")
    card = Path("pair", CARD_FILE).read_text()
    assert card.startswith("---\nlibrary_name: dsmooth\n")
    assert "- mnist\n---\n" in card
    row = f"| noisy model, p(x~) | mnist | 48 | {origin.seconds / 3600:.2f} | 3 |"
    assert f"{row} {origin.bits_per_dim:.4f} | bits/dim of x~ (gaussian) |" in card
    assert "runs/" not in card  # no path of this machine
    assert dsmooth.SmoothedPair.from_pretrained("pair").denoiser.record == pair.denoiser.record
    plain = dsmooth.PixelCNNpp.from_pretrained("mnist-plain")
    words = ["runs", "--plain", "mnist-plain", "--limit", "4", "--n-noise", "2"]
    assert run("evaluate", "bpd", *words) == 0
    stored = read_result(Path("bits_per_dim.json"), BitsResult)
    for model, key, drawn in ((pair, "pair", ", 2 draws of noise"), (plain, "plain", ":")):
        model.save_pretrained("scored", scores="bits_per_dim.json")
        card = Path("scored", CARD_FILE).read_text()
        assert f"4 images of mnist (test){drawn}" in card
        numbers = stored.models[key].numbers
        for found in (numbers.discrete, numbers.density, numbers.per_byte):
            assert f"| {found.value:.4f} |" in card
        assert ("| plain: " in card, "| pair: " in card) == (key == "plain", key == "pair")
    save = partial(pair.save_pretrained, "pair", scores="bits_per_dim.json")
    words = "does not hold the scores of these weights"
    refuses(words, tiny_pair().save_pretrained, "pair", scores="bits_per_dim.json")
    record = json.loads(Path("bits_per_dim.json").read_text())
    del record["result"]["models"]["pair"]["numbers"]
    Path("bits_per_dim.json").write_text(json.dumps(record))
    refuses(r"bits_per_dim\.json does not fit: .*`numbers`", save)


def test_words_of_a_stranger_mean_nothing_in_a_card(tmp_path: Path) -> None:
    pair = tiny_pair()
    evil = "\x1b[2J\ud800mnist\nlicense: evil\n```\n# Head\n<script>x</script> [a](http://b) | *c*"
    digest = weights_digest(pair.noisy)
    pair.noisy.record = TrainingRecord(evil, 0, 0.0, digest, evil, loss=evil)
    pair.save_pretrained(tmp_path, name=f'x")\n{evil}', license=f"mit\n{evil}")
    card = (tmp_path / CARD_FILE).read_text()
    body = card.split("---\n", 2)[2]
    assert "\x1b" not in card
    lines = body.splitlines()
    assert [line for line in lines if line.startswith("```")] == ["```python", "```"]
    assert "# Head" not in lines
    outside = "".join(re.split("^```.*$", body, flags=re.M)[::2])
    assert "<script>" not in outside
    assert "[a](" not in outside.replace("\\[a\\](", "")


def test_the_library_of_the_hub_reads_a_card(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    pair, names = tiny_pair(), ["mnist", "no", "1.5", 'a: b\n# "c"\n---', "é\u2028", "[x]", "'"]
    for name in names:
        pair.noisy.record = TrainingRecord(name, 0, 0.0, weights_digest(pair.noisy))
        pair.save_pretrained(tmp_path, license=name)
        data = hub.ModelCard.load(tmp_path / CARD_FILE).data
        assert (data.license, data.datasets, data.library_name) == (name, [name], "dsmooth")
        assert data.pipeline_tag == "unconditional-image-generation"
        assert "distribution-smoothing" in data.tags


def test_a_card_that_a_person_wrote_stays(tmp_path: Path) -> None:
    pair, card = tiny_pair(), tmp_path / "pair" / CARD_FILE
    pair.save_pretrained(card.parent)
    assert "Not recorded: the weights are not those of a training run" in card.read_text()
    assert "Not measured" in card.read_text()
    card.write_text(card.read_text() + "An older one.\n")
    pair.save_pretrained(card.parent)
    assert "An older one." not in card.read_text()
    card.write_text("My own words.\n")
    pair.save_pretrained(card.parent)
    assert card.read_text() == "My own words.\n"
