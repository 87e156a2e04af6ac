"""Pairs, networks and runs in folders: the same again, whole whenever a save ends, or refused."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import dsmooth
from dsmooth.files import lock_folder, read_tensors, write_tensors
from dsmooth.nn.weights import weights_digest
from dsmooth.pretrained import runs_in
from dsmooth.pretrained.log import End, Start, entry_line
from dsmooth.pretrained.runs import RunFolder, TrainingRecord, WeightsSettings
from tests.helpers.command_runs import save_run
from tests.helpers.data_makers import refuses
from tests.helpers.kills import as_killed, contents, states_of_kills
from tests.helpers.networks import network, tiny_pair

read_pair, read_network = dsmooth.SmoothedPair.from_pretrained, dsmooth.PixelCNNpp.from_pretrained


@pytest.mark.quick
@pytest.mark.parametrize("conditioning", ["stack", "concat"])
def test_saved_pair_is_the_same_pair(tmp_path: Path, conditioning: str) -> None:
    """In a folder whose name is not UTF-8 too."""
    pair = tiny_pair("continuous", conditioning)
    pair.smoothing = dsmooth.LaplaceSmoothing(0.25)
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/p\xff")
    pair.save_pretrained(folder)
    again = read_pair(folder)
    assert again.smoothing == pair.smoothing
    assert again.image_size == (8, 8)
    assert again.denoiser.config == pair.denoiser.config
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pair.state_dict().items())
    assert torch.equal(again.sample(2), pair.sample(2))


def test_a_saved_network_is_the_same_network(tmp_path: Path) -> None:
    """A network of a run, of a folder, of a subclass; with its image size, if it is known."""

    class Mine(dsmooth.PixelCNNpp):
        pass

    run = RunFolder(save_run(tmp_path / "run", "noisy"))
    model = read_network(run.path)
    model.save_pretrained(tmp_path / "one")
    again = Mine.from_pretrained(tmp_path / "one")
    assert (type(again), again.training, again.image_size) == (Mine, False, (8, 8))
    assert again.record == model.record
    assert again.record.weights_sha256 == weights_digest(again)
    network("stack").save_pretrained(tmp_path / "two")
    assert read_network(tmp_path / "two").config == network("stack").config
    words = r"one holds a PixelCNNpp, which dsmooth\.PixelCNNpp\.from_pretrained"
    refuses(words, read_pair, tmp_path / "one")
    tiny_pair().save_pretrained(tmp_path / "pair")
    refuses("pair holds a SmoothedPair, which", read_network, tmp_path / "pair")
    model.image_size = (9, 8)
    refuses("`image_size` must be a height", model.save_pretrained, tmp_path / "one")


def save(folder: Path, number: int) -> None:
    """Save a pair whose weights and settings both have the number."""
    pair = tiny_pair()
    pair.smoothing = dsmooth.GaussianSmoothing(0.5 + number)
    for model in (pair.noisy, pair.denoiser):
        torch.nn.init.constant_(model.head.bias, number)
    pair.save_pretrained(folder, name="a test")  # or the folder, in its card


def test_a_save_that_ends_anywhere_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """Killed at any change of a file; and the next save leaves nothing over."""
    saved = tmp_path / "saved"
    save(saved, 0)
    files = contents(saved)
    states = states_of_kills(lambda: save(saved, 1), saved)
    for number, state in enumerate(states):
        folder = as_killed(tmp_path / str(number), state)
        pair = read_pair(folder)
        biases = torch.cat([pair.noisy.head.bias, pair.denoiser.head.bias])
        numbers = {pair.smoothing.scale - 0.5, *biases.tolist()}
        assert numbers in [{0}, {1}]
        save(folder, 0)
        assert contents(folder) == files
    assert numbers == {1}
    assert len(states) > 3  # two of each file
    with lock_folder(folder, "someone"):
        refuses("another process that saves weights is at work", save, folder, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_pair_of_any_dtype_is_read_by_any_default(tmp_path: Path, dtype: torch.dtype) -> None:
    pair = tiny_pair().to(dtype)
    pair.save_pretrained(tmp_path)
    for default in (torch.float64, torch.float32):
        torch.set_default_dtype(default)
        again = read_pair(tmp_path)
        assert (again.dtype, weights_digest(again)) == (default, weights_digest(pair))


def restate(path: Path, name: str = "noisy.head.bias", **changes: Any) -> None:
    """Rename the bias of the noisy model's head, and change the settings in the metadata."""
    tensors, metadata = read_tensors(path)
    tensors[name] = tensors.pop("noisy.head.bias")
    settings = json.loads(metadata["config"]) | changes
    write_tensors(path, tensors, {"config": json.dumps(settings)})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, "there is no network in .*give a saved pair"),
        (lambda path: os.truncate(path, 500), "is not a readable safetensors file"),
        (lambda path: write_tensors(path, {}, {"config": "{"}), "cannot be read as a JSON object"),
        (
            lambda path: write_tensors(path, {"x": torch.zeros(1)}, {}),
            "does not fit: .*missing required field",
        ),
        (partial(restate, name="other.b"), "another shape: 1 tensors differ"),
        (partial(restate, networks={}), "give a saved pair"),
        (partial(restate, smoothing=None), "do not fit together: they are for noise None"),
        (partial(restate, image_size=None), "do not fit together: .* images of None"),
        (partial(restate, extra=1), "extra"),
        (partial(restate, networks={"noisy": {"n_mix": 0.5}}), "n_mix"),
    ],
)
def test_a_damaged_pair_is_refused(tmp_path: Path, damage: Any, words: str) -> None:
    tiny_pair().save_pretrained(tmp_path)
    damage(tmp_path / "model.safetensors")
    refuses(words, read_pair, tmp_path, error=(OSError, ValueError))


def test_weights_say_what_they_are_whatever_the_settings_of_their_run(tmp_path: Path) -> None:
    one, two = (RunFolder(save_run(tmp_path / str(i), "noisy", seed=i)) for i in range(2))
    two.weights.write_bytes(one.weights.read_bytes())
    edited = json.loads(one.config.read_text()) | {"scale": 0.8, "role": "denoiser"}
    one.config.write_text(json.dumps(edited))
    for run in (one, two):
        loaded = dsmooth.load(run.path)
        assert (loaded.smoothing, loaded.model.record.seed) == (dsmooth.GaussianSmoothing(0.5), 0)
    one.config.unlink()
    assert dsmooth.load(one.path).runs == {}  # complete without its settings


@pytest.mark.parametrize("change", ["scale", "image_size", "data", "data_sha256", "unknown"])
def test_two_halves_of_different_training(tmp_path: Path, change: str, caplog: Any) -> None:
    """Other noise or image sizes are refused, and other images are said."""
    other = {"scale": 0.3, "image_size": [12, 8], "data": "folder", "data_sha256": "f"}.get(change)
    for role, model in (("noisy", tiny_pair().noisy), ("denoiser", tiny_pair().denoiser)):
        record = {"data": "mnist", "seed": 0, "clean_noise": 0.0, "data_sha256": "0"}
        settings = {"scale": 0.5, "image_size": [8, 8]}
        if change == "unknown" and role == "noisy":
            record["data_sha256"] = None
        for values in (record, settings):
            values |= {change: other} if change in values and role == "noisy" else {}
        training = {role: TrainingRecord(**record, weights_sha256="")}
        networks = {role: model.config}
        found = WeightsSettings("gaussian", networks=networks, training=training, **settings)
        RunFolder(tmp_path / role).write_weights({role: model}, found)
    folders = tmp_path / "noisy", tmp_path / "denoiser"
    if change.startswith("data") or change == "unknown":
        dsmooth.load(*folders)
        assert ("were trained on different images" in caplog.text) == (change != "unknown")
    else:
        refuses("do not fit together: .*Smoothing", dsmooth.load, *folders)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("runs")
    folders = {
        role: save_run(base / role, role, clean_noise=0.25 if role == "denoiser" else 0.0)
        for role in ("noisy", "denoiser", "plain")
    }
    folders["large"] = save_run(base / "inner" / "large", "plain", size=12)
    folders["inner"], folders["pair"] = base / "inner", base / "pair"
    dsmooth.load(folders["noisy"], folders["denoiser"]).pair.save_pretrained(folders["pair"])
    return folders


@pytest.mark.quick
@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (["noisy", "denoiser"], ["noisy", "denoiser"]),
        (["plain", "denoiser", "noisy"], ["noisy", "denoiser", "plain"]),
        (["pair"], ["noisy", "denoiser"]),
        (["plain", "pair"], ["noisy", "denoiser", "plain"]),
        (["plain"], ["plain"]),
    ],
)
def test_networks_come_in_the_order_of_the_roles(folders, names, roles) -> None:
    models = dsmooth.load(*(folders[name] for name in names))
    assert list(models.networks) == roles
    assert models.image_shape == (1, 8, 8)
    assert not any(network.training for network in models.networks.values())
    assert set(models.runs) == {name for name in names if name != "pair"}
    noise = {role: network.record.clean_noise for role, network in models.networks.items()}
    assert noise == {role: 0.25 if role == "denoiser" else 0.0 for role in roles}
    if len(roles) == 1:
        refuses("is a single plain model: give a saved pair", lambda: models.pair)
    else:
        assert models.pair.noisy is models.networks["noisy"]
    if len(roles) == 3:
        refuses("one model draws at a time, got noisy, denoiser, plain", lambda: models.model)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "give a saved pair, .*; got nothing"),
        (["denoiser", "plain"], "give a saved pair"),
        (["noisy", "noisy"], "holds a second noisy model; give a saved pair"),
        (["pair", "noisy"], "give a saved pair"),
        (["pair", "large"], r"images of .*\(12, 12\)"),
        (["inner"], "no network in .*, which has the runs large: give"),
    ],
)
def test_other_combinations_are_refused(folders, names, message) -> None:
    errors = (ValueError, FileNotFoundError)
    refuses(message, dsmooth.load, *(folders[name] for name in names), error=errors)
    refuses("noisy is the folder of a training run", tiny_pair().save_pretrained, folders["noisy"])


@pytest.mark.quick
def test_a_saved_pair_has_the_weights_of_its_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    """The first named run tells the data."""
    runs = dsmooth.load(folders["denoiser"], folders["noisy"])
    saved = dsmooth.load(folders["pair"])
    assert runs.identity() == saved.identity()
    assert len(set(runs.identity()["weights_sha256"].values())) == 2
    assert (list(runs.runs), saved.runs) == (["denoiser", "noisy"], {})
    smoothing = saved.pair.smoothing
    for other in (dsmooth.LaplaceSmoothing(smoothing.scale), dsmooth.GaussianSmoothing(0.3)):
        saved.pair.smoothing = other
        assert saved.identity() != runs.identity()
    saved.pair.smoothing = smoothing
    assert saved.identity() == runs.identity()
    with torch.no_grad():
        saved.pair.noisy.head.bias[0] += 1
    assert saved.identity() != runs.identity()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "noisy").symlink_to(folders["noisy"])
    paths = folders["noisy"], folders["pair"], folders["pair"].parent, tmp_path / "half", tmp_path
    assert [bool(runs_in(path)) for path in paths] == [1, 1, 1, 0, 0]


@pytest.mark.quick
def test_a_run_is_finished_when_its_log_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    run = RunFolder(save_run(tmp_path / "run", "plain"))
    assert {run: 1} == {RunFolder(str(run.path)): 1}
    assert not run.is_finished()
    os.mkfifo(run.log)  # a stranger's, which nobody waits for
    assert not run.is_finished()
    assert run.seconds() is None
    run.log.unlink()
    entry = Start(0, 0.0, 1, "nats")
    run.log.write_text(entry_line(entry))
    assert run.read_log() == [entry]
    assert not run.is_finished()
    with open(run.log, "a") as file:
        file.write(entry_line(End(1, 1.0)))
    assert run.is_finished()
    run.weights.unlink()
    assert not run.is_finished()
    refuses(r"model\.safetensors", dsmooth.load, run.path, error=FileNotFoundError)


def test_a_network_keeps_its_role(folders: dict[str, Path], tmp_path: Path) -> None:
    """A noisy model that is saved by itself is not a plain one, measured on clean images."""
    pair = tiny_pair()
    networks = {
        "pair": pair.noisy,
        "run": read_network(folders["noisy"]),
        "denoiser": pair.denoiser,
    }
    for name, model in networks.items():
        model.image_size = (8, 8)
        dsmooth.save(model, tmp_path / name)
        again = dsmooth.load(tmp_path / name)
        assert list(again.networks) == [again.model.role] == [model.role]
    refuses("is a single noisy model", lambda: dsmooth.load(tmp_path / "run").pair)
    assert dsmooth.load(tmp_path / "run").plain is None


def test_weights_that_could_not_be_read_again_are_refused(tmp_path: Path) -> None:
    pair = tiny_pair()

    class Twice(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(pair.noisy.head, "weight_v", Twice())
    words = "the network holds weights that its settings do not describe .*remove_param.*2 tensors"
    refuses(words, dsmooth.save, pair, tmp_path / "pair")
    assert not (tmp_path / "pair").exists()
    torch.nn.utils.parametrize.remove_parametrizations(pair.noisy.head, "weight_v")
    dsmooth.save(pair, tmp_path / "pair")
    assert torch.equal(read_pair(tmp_path / "pair").sample(1), pair.sample(1))


def test_a_card_has_no_numbers_of_other_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    """The record is of other weights: it is not shown here or in copies."""
    for role in ("noisy", "denoiser"):
        run, model = RunFolder(tmp_path / role), dsmooth.load(folders[role]).model
        record = {"weights_sha256": weights_digest(model), "bits_per_dim": 1.5}
        settings = WeightsSettings.of_run(*RunFolder(folders[role]).read_config(), **record)
        run.write_weights({role: model}, settings)
    pair = dsmooth.load(tmp_path / "noisy", tmp_path / "denoiser").pair
    for name in ("same", "tuned", "copy"):
        if name == "tuned":
            with torch.no_grad():
                pair.noisy.head.bias.add_(0.1)
        dsmooth.save(pair, tmp_path / name, name="x")
        pair = read_pair(tmp_path / name)
    cards = [(tmp_path / name / "README.md").read_text() for name in ("same", "tuned", "copy")]
    assert [card.count("| 1.5000 |") for card in cards] == [2, 1, 1]
    assert cards[1] == cards[2]


@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_a_card_that_is_not_a_regular_file_stays(tmp_path: Path, kind: str) -> None:
    """A save does not wait for a writer, nor read without an end."""
    card = tmp_path / "README.md"
    if kind == "pipe":
        os.mkfifo(card)
    else:
        card.symlink_to("/dev/zero" if kind == "device" else tmp_path / "nothing")
    tiny_pair().save_pretrained(tmp_path)
    read_pair(tmp_path)
    assert card.is_symlink() or card.is_fifo()
    assert not (tmp_path / "nothing").exists()
