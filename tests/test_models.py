"""Run folders and models from them: what each combination of folders gives, or why not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from dsmooth.models import load_models
from dsmooth.nn.weights import weights_digest
from dsmooth.pretrained import is_model
from dsmooth.runs import RunFolder
from tests.helpers.command_runs import save_run

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("runs")
    folders = {
        role: save_run(base / role, role, clean_noise=0.25 if role == "denoiser" else 0.0)
        for role in ("noisy", "denoiser", "plain")
    }
    folders["large"] = save_run(base / "large", "plain", size=12)
    folders["pair"] = base / "pair"
    load_models([folders["noisy"], folders["denoiser"]]).pair.save_pretrained(folders["pair"])
    return folders


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (["noisy", "denoiser"], ["noisy", "denoiser"]),
        (["plain", "denoiser", "noisy"], ["noisy", "denoiser", "plain"]),
        (["pair"], ["noisy", "denoiser"]),
        (["plain", "pair"], ["noisy", "denoiser", "plain"]),
        (["noisy"], ["noisy"]),
        (["plain"], ["plain"]),
    ],
)
def test_networks_come_in_the_order_of_the_roles(folders, names, roles) -> None:
    models = load_models([folders[name] for name in names])
    assert list(models.networks) == roles
    assert models.image_shape == (1, 8, 8)
    assert not any(network.training for network in models.networks.values())
    assert set(models.runs) == {name for name in names if name != "pair"}
    assert models.clean_noise == (0.25 if "denoiser" in names else 0.0)
    if len(roles) == 1:
        with pytest.raises(ValueError, match="is a single model: name a saved pair"):
            _ = models.pair
    else:
        assert models.pair.noisy is models.networks["noisy"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "name a saved pair, .*; got nothing"),
        (["denoiser"], "is a denoiser: name the run of its noisy model too"),
        (["denoiser", "plain"], "name a saved pair"),
        (["noisy", "noisy"], "both hold a noisy model; name a saved pair"),
        (["pair", "noisy"], "name a saved pair"),
        (["pair", "large"], r"images of \(12, 12\), the pair for \(8, 8\)"),
    ],
)
def test_other_combinations_are_refused(folders, names, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_models([folders[name] for name in names])


def test_a_saved_pair_has_the_weights_of_its_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    """The first named run tells the data."""
    one = load_models([folders["denoiser"], folders["noisy"]])
    two = load_models([folders["pair"]])
    assert one.digests() == two.digests()
    assert len(set(one.digests().values())) == 2
    assert (list(one.runs), two.runs) == (["denoiser", "noisy"], {})
    with torch.no_grad():
        two.pair.noisy.head.bias[0] += 1
    assert weights_digest(two.pair.noisy) != one.digests()["noisy"]
    assert [is_model(path) for path in (folders["noisy"], folders["pair"], tmp_path)] == [1, 1, 0]


def test_a_run_is_finished_when_its_log_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    run = RunFolder(save_run(tmp_path / "run", "plain"))
    assert {run: 1} == {RunFolder(str(run.path)): 1}
    assert not run.is_finished()
    os.mkfifo(run.log)  # a stranger's, which nobody waits for
    assert not run.is_finished()
    origin = run.origin()
    assert (origin.seconds, origin.loss, origin.bits_per_dim) == (None, None, None)
    run.log.unlink()
    entry = {"event": "start", "images": 0, "seconds": 0.0, "total": 1, "loss": "nats"}
    run.log.write_text(json.dumps(entry) + "\n")
    assert run.read_log() == [entry]
    assert not run.is_finished()
    with open(run.log, "a") as file:
        file.write(json.dumps({"event": "end", "images": 1, "seconds": 1.0}) + "\n")
    assert run.is_finished()
    run.weights.unlink()
    assert not run.is_finished()
