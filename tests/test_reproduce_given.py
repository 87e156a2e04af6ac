"""`dsmooth reproduce` of models that were given, and what it says of mistakes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from dsmooth.commands.options import Reproduce
from dsmooth.commands.reproduce import carry_out
from dsmooth.config import ProbeSettings, ReproductionStage
from dsmooth.data import to_float
from dsmooth.data.order import choose_images
from dsmooth.data.published import load_embedded_mnist
from dsmooth.evaluate.likelihood import bits_per_dim, score_pair
from dsmooth.machine import has_fast_bfloat16
from dsmooth.models import load_models
from dsmooth.pretrained import TITLE
from dsmooth.reproduce import PROBED, Stages, black_share, describe_model
from dsmooth.runs import RunFolder
from dsmooth.sampling.request import Request
from tests.helpers.command_runs import save_run
from tests.helpers.report_checks import check_self_contained, without_plots

SMALL = {
    "count": 9,
    "scored_images": 12,
    "probes": ProbeSettings(train_images=12, test_images=6, epochs=1),
}


def reproduce(out: Path, models: tuple[Path, ...], **options: Any) -> int:
    sizes = {"count": 9, "scored_images": 12, "probe_train_images": 12, "probe_test_images": 6}
    return carry_out(Reproduce(out=out, models=models, **{**sizes, **options}), ())


RESULTS = {
    "samples": "samples/two-step.npz",
    "bits-per-dim": "bits_per_dim.json",
    "frechet": "frechet.json",
    "probes": "probes.json",
    "receptive-field": "receptive_field.json",
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Run folders of small untrained networks for MNIST."""
    folder = tmp_path_factory.mktemp("given")
    return tuple(save_run(folder / role, role, size=28) for role in ("denoiser", "plain", "noisy"))


@pytest.fixture(scope="module")
def reported(given: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    with without_plots():
        assert reproduce(out, given) == 0
    return out


@pytest.fixture
def again(reported: Path, tmp_path: Path, no_plots: None) -> Path:
    """A copy of `reported`."""
    return shutil.copytree(reported, tmp_path / "again")


def stamps(out: Path) -> dict[str, int]:
    there = {stage: out / name for stage, name in RESULTS.items() if (out / name).exists()}
    return {stage: path.stat().st_mtime_ns for stage, path in there.items()}


@pytest.mark.quick
def test_given_models_are_measured_and_reported(reported: Path) -> None:
    results = json.loads((reported / "results.json").read_text())
    assert set(RESULTS) == set(get_args(ReproductionStage))
    assert results["data"]["embedded_subset"]
    assert {"two-step", "single-step", "plain", "real"} == set(results["frechet"]["distances"])
    assert "mnist-classifier" in results["frechet"]["name"]
    assert list(results["probes"]["accuracy"]) == [*PROBED]
    fast = has_fast_bfloat16(torch.device("cpu"))
    assert results["probes"]["asked"]["precision"] == ("bfloat16" if fast else "auto")
    assert results["receptive_field"]["networks"]["two-streams"]["blind_spot"] == 0
    for key in ("bits_per_dim", "frechet", "probes", "receptive_field"):
        assert results[key]["unit"]
    page = (reported / "report.html").read_text(encoding="utf-8")
    check_self_contained(page)
    for title in ("Linear probes", "Receptive fields", "Beside the paper", "Fréchet distance"):
        assert f"<h2>{title}</h2>" in page
    assert "Training curves" not in page  # these runs have no log
    assert str(reported) not in (reported / "results.json").read_text()


@pytest.mark.quick
@pytest.mark.parametrize("stage", [None, "samples", "frechet", "probes"])
def test_no_finished_stage_is_repeated_but_the_one_that_is_asked_for(given, again, stage) -> None:
    """Samples are read whatever their number."""
    before, results = stamps(again), (again / "results.json").read_bytes()
    count = 9 if stage in (None, "samples") else 5
    assert reproduce(again, given, count=count, only=stage) == 0
    after = stamps(again)
    assert {name for name in after if after[name] != before[name]} == {stage} - {None}
    assert (again / "results.json").read_bytes() == results


def test_numbers_are_of_their_images_and_seed(given: tuple[Path, ...], tmp_path: Path) -> None:
    models, every = load_models(given), load_embedded_mnist("test")
    for seed, first in ((7, 0), (7, 4), (8, 4)):
        data = every.part(slice(first, first + 6))
        one = Stages(tmp_path, models, every, data, count=9, scored_images=4, seed=seed)
        pair = bits_per_dim(score_pair(models.pair, data, seed=seed, limit=4))
        assert one.bits_per_dim()["pair"]["value"] == pair.value
        x = to_float(choose_images(every.part(slice(6)), 3))
        replace(one, only="samples").images("plain", models.of("plain"), Request(3), x)
        distances = one.compare()["distances"]
        same = distances["plain"]["value"] == distances["real"]["value"]
        assert same == (first == 0)  # the floor is of such images
    assert one.results("frechet").keys() == {"frechet"}
    assert replace(one, test_set=every).results("frechet") == {}  # of other images


def test_results_of_other_weights_and_damaged_ones_are_not_reported(given, again) -> None:
    probes, bits = (
        json.loads((again / RESULTS[s]).read_text()) for s in ("probes", "bits-per-dim")
    )
    probes["asked"]["weights_sha256"]["noisy"] = "0" * 64
    (again / "probes.json").write_text(json.dumps(probes))
    assert reproduce(again, given, only="receptive-field") == 0
    assert "probes" not in json.loads((again / "results.json").read_text())
    models, digits = load_models(given), load_embedded_mnist("test")
    models.pair.noisy.head.bias.data += 0.1
    assert Stages(again, models, digits, digits, **SMALL).pictures() == {}
    (again / "bits_per_dim.json").write_text(json.dumps({**bits, "pair": None}))
    with pytest.raises(ValueError, match=r"holds a result that cannot be reported .*`only=STAGE`"):
        reproduce(again, given, only="receptive-field")


def test_models_with_classes(tmp_path: Path, no_plots: None) -> None:
    for role in ("noisy", "denoiser", "plain"):
        save_run(tmp_path / role, role, size=28, n_classes=10)
    for stage in ("samples", "probes"):
        models = tmp_path, tmp_path / "plain"
        assert reproduce(tmp_path / "out", models, only=stage) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"noisy", "denoiser"} <= results["probes"]["accuracy"].keys()  # by a label of zeros
    x = np.load(tmp_path / "out" / "samples" / "plain.npz")
    assert x["label"].tolist() == list(range(9))


def test_a_stopped_stage_leaves_the_finished_ones(
    given, reported, again, monkeypatch, capsys
) -> None:
    for name in ("bits_per_dim.json", "frechet.json", "results.json"):
        (again / name).unlink()
    before = stamps(again)

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stages, "compare", stop)
        assert reproduce(again, given) == -130
    assert "repeat the same command to go on" in capsys.readouterr().out
    before = stamps(again) | before
    assert before.keys() == RESULTS.keys() - {"frechet"}
    assert reproduce(again, given) == 0
    assert stamps(again).items() >= before.items()
    assert (again / "results.json").read_bytes() == (reported / "results.json").read_bytes()


def test_one_stage_alone_and_of_a_saved_pair(given, reported, tmp_path, no_plots) -> None:
    denoiser, plain, noisy = given
    load_models([noisy, denoiser]).pair.save_pretrained(tmp_path / "pair")
    out = tmp_path / "out"
    assert reproduce(out, (tmp_path / "pair", plain), only="bits-per-dim") == 0
    assert stamps(out).keys() == {"bits-per-dim"}
    one, two = ((path / "bits_per_dim.json").read_bytes() for path in (reported, out))
    assert one == two
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Bits per dimension" in page
    assert "Linear probes" not in page


def test_what_is_stopped_leaves_the_earlier_probes_and_no_picture_missing(
    given: tuple[Path, ...], again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, digits = load_models(given), load_embedded_mnist("test")
    alone = Stages(again, models, digits, digits, **SMALL, only="probes")
    before, calls = (again / "probes.json").read_bytes(), itertools.count()
    real = os.replace

    def stop(*files: Path) -> None:
        if next(calls):
            raise KeyboardInterrupt
        real(*files)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            alone.probe()
    assert (again / "probes.json").read_bytes() == before
    assert [path.name for path in again.glob("probes-*")] == ["probes-noisy.json"]
    results = alone.probe()
    assert (again / "probes.json").read_bytes() != before
    assert not [*again.glob("probes-*")]
    assert results["asked"]["data_sha256"] == {"train": digits.digest, "test": digits.digest}

    drawn = replace(alone, only=None)
    for first in (0, 1):  # of the three files of a kind of samples
        shutil.rmtree(again / "samples")
        calls = itertools.count(first)
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", stop)
            with pytest.raises(KeyboardInterrupt):
                drawn.draw()
        drawn.draw()
        names = {path.stem for path in (again / "samples").glob("*.npz")}
        assert {path.stem for path in (again / "samples").glob("*.png")} == names
    samples = again / "samples"
    (samples / "plain.npz").unlink()
    drawn.draw()
    assert (samples / "plain.npz").exists()


def test_packaged_models_are_meant_and_named_whatever_folder_is_here(
    given: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in given:
        shutil.copytree(folder, tmp_path / "mnist" / folder.name)
    for models, title in (((), TITLE), ((Path("mnist"),), "models that were given")):
        out = Path(f"out{len(models)}")
        assert reproduce(out, models, only="receptive-field") == 0
        results = json.loads((out / "results.json").read_text())
        assert (results["name"], "card" in results) == (title, not models)
        n_filters = results["runs"]["noisy"]["settings"]["model"]["n_filters"]
        assert (n_filters == 4) == bool(models)


def test_a_model_is_described_without_a_pair_or_an_evaluation(tmp_path: Path) -> None:
    plain = save_run(tmp_path / "plain", "plain", size=28)
    RunFolder(plain).log.write_text('{"event": "end", "images": 1, "seconds": 1.0}\n')
    described = describe_model("plain", load_models([plain]), load_embedded_mnist("test"))
    assert described["settings"]["role"] == "plain"
    assert described["held_out_bits_per_dim"] is None


def test_black_pixels_are_black_in_every_colour() -> None:
    red_and_black = torch.tensor([[255, 0], [0, 0], [0, 0]]).byte().view(1, 3, 1, 2)
    assert black_share(red_and_black) == 0.5
