"""Pairs, networks and runs in folders: the same again, whole whenever a save ends, or refused."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import dsmooth
from dsmooth.files import lock_folder, read_tensors, write_tensors
from dsmooth.nn.weights import weights_digest
from dsmooth.presets import preset
from dsmooth.pretrained import is_model, load_models
from dsmooth.runlog import End, Start, entry_line
from dsmooth.runs import RunFolder
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
    assert weights_digest(again) == weights_digest(run.load_model()[0])
    digest = weights_digest(model)
    assert again.record() == model.record() == replace(run.record(), weights_sha256=digest)
    network("stack").save_pretrained(tmp_path / "two")
    assert read_network(tmp_path / "two").config == network("stack").config
    refuses("is a single model: give a saved pair", read_pair, tmp_path / "one")
    tiny_pair().save_pretrained(tmp_path / "pair")
    refuses(r"holds a pair, which dsmooth\.SmoothedPair\.from", read_network, tmp_path / "pair")
    model.image_size = (9, 8)
    refuses("`image_size` must be a height", model.save_pretrained, tmp_path / "one")


def save(kind: str, folder: Path, number: int) -> None:
    """Save a pair whose weights and settings both have the number, or its noisy model as a run."""
    pair = tiny_pair()
    pair.smoothing = dsmooth.GaussianSmoothing(0.5 + number)
    for model in (pair.noisy, pair.denoiser):
        torch.nn.init.constant_(model.head.bias, number)
    if kind == "run":
        config = preset("mnist-quick", "noisy", scale=0.5 + number)
        config = replace(config, model=pair.noisy.config)
        RunFolder(folder).write_model(pair.noisy, config, (8, 8))
    else:
        pair.save_pretrained(folder, name="a test")  # or the folder, in its card


def read(kind: str, folder: Path) -> set[float]:
    """The numbers in a folder: one of a whole save, two of a mixture, none without settings."""
    if kind == "pair":
        pair = read_pair(folder)
        models, scale = [pair.noisy, pair.denoiser], pair.smoothing.scale
    else:
        try:
            model, config, _ = RunFolder(folder).load_model()
        except FileNotFoundError:
            return set()
        models, scale = [model], config.scale
    return {scale - 0.5, *(value for model in models for value in model.head.bias.tolist())}


@pytest.mark.parametrize("kind", ["pair", "run"])
def test_a_save_that_ends_anywhere_leaves_the_old_or_the_new(tmp_path, monkeypatch, kind) -> None:
    """Killed at any change of a file, or on a full disk; and the next save leaves nothing over."""
    saved = tmp_path / "saved"
    save(kind, saved, 0)
    files = contents(saved)
    states = states_of_kills(lambda: save(kind, saved, 1), saved)
    for number, state in enumerate(states):
        folder = as_killed(tmp_path / str(number), state)
        numbers = read(kind, folder)
        # The settings of a run are not in its weights: they leave before others come.
        assert numbers in [{0}, {1}] or (kind == "run" and not numbers)
        save(kind, folder, 0)
        assert contents(folder) == files
    assert numbers == {1}
    assert len(states) > 5  # two of each file
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(28, "No space left on device")))
    words = r"could not write .*model\.safetensors: No space"
    refuses(words, save, kind, folder, 1, error=OSError)
    assert contents(folder) == files


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_pair_that_is_saved_meanwhile_is_read_whole(tmp_path, monkeypatch, moment: int) -> None:
    """At whichever opening of a file."""
    openings, opened = itertools.count(1), open

    def open_late(*args: Any, **options: Any) -> Any:
        if next(openings) == moment:
            save("pair", tmp_path, 1)
        return opened(*args, **options)

    save("pair", tmp_path, 0)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", open_late)
        assert read("pair", tmp_path) == {float(moment < 3)}
    assert read("pair", tmp_path) == {1}
    with lock_folder(tmp_path, "someone"):
        refuses("another process that saves weights is at work", save, "pair", tmp_path, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_pair_of_any_dtype_is_read_by_any_default(tmp_path: Path, dtype: torch.dtype) -> None:
    pair = tiny_pair().to(dtype)
    pair.save_pretrained(tmp_path)
    for default in (torch.float64, torch.float32):
        torch.set_default_dtype(default)
        again = read_pair(tmp_path)
        assert (again.dtype, weights_digest(again)) == (default, weights_digest(pair))


CONFIG, WEIGHTS = "config.json", "model.safetensors"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(path: Path, name: str = "noisy.head.bias", **metadata: str) -> None:
    """Rename the bias of the noisy model's head, and change the metadata."""
    tensors, stated = read_tensors(path)
    tensors[name] = tensors.pop("noisy.head.bias")
    write_tensors(path, tensors, {**stated, **metadata})


@pytest.mark.parametrize(
    ("damage", "file", "words"),
    [
        (
            partial(edit, image_size=[8, 12]),
            CONFIG,
            r"to it: its image_size is \[8, 12\], not",
        ),
        (partial(edit, extra=1), CONFIG, "its extra is 1, not None"),
        (lambda path: path.write_text("{}"), CONFIG, "its dsmooth is None, not 0"),
        (Path.unlink, WEIGHTS, r"there is no .*model\.safetensors"),
        (lambda path: os.truncate(path, 500), WEIGHTS, "is not a readable safetensors file"),
        (partial(rewrite, name="other.b"), WEIGHTS, "another shape: 2 tensors differ"),
        (partial(rewrite, config="{"), WEIGHTS, "is not JSON"),
        (partial(rewrite, config="{}"), WEIGHTS, "its dsmooth is 0.*, not None"),
    ],
)
def test_a_damaged_or_edited_pair_is_refused(tmp_path, damage, file: str, words: str) -> None:
    tiny_pair().save_pretrained(tmp_path)
    damage(tmp_path / file)
    refuses(words, read_pair, tmp_path, error=(OSError, ValueError))


def test_folders_that_are_not_pairs_are_named(tmp_path: Path) -> None:
    save, mine = tiny_pair().save_pretrained, tmp_path / "mine"
    refuses(r"there is no .*config\.json", read_pair, tmp_path, error=FileNotFoundError)
    save_run(mine, "noisy")
    refuses(r"give folders in .*, which has mine", read_pair, tmp_path, error=FileNotFoundError)
    refuses(r"config\.json is a file: give a folder", save, mine / CONFIG)
    refuses(r"config\.json is not of a saved pair or network", save, mine)
    refuses("both hold a noisy model", dsmooth.SmoothedPair.from_runs, mine, mine)


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
    models = load_models([folders[name] for name in names])
    assert list(models.networks) == roles
    assert models.image_shape == (1, 8, 8)
    assert not any(network.training for network in models.networks.values())
    assert set(models.runs) == {name for name in names if name != "pair"}
    assert models.clean_noise == (0.25 if "denoiser" in names else 0.0)
    if len(roles) == 1:
        refuses("is a single model: give a saved pair", lambda: models.pair)
    else:
        assert models.pair.noisy is models.networks["noisy"]
    if len(roles) == 3:
        refuses("one model draws at a time, got noisy, denoiser, plain", lambda: models.model)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "give a saved pair, .*; got nothing"),
        (["denoiser"], "is a denoiser: give the run of its noisy model too"),
        (["denoiser", "plain"], "give a saved pair"),
        (["noisy", "noisy"], "both hold a noisy model; give a saved pair"),
        (["pair", "noisy"], "give a saved pair"),
        (["pair", "large"], r"images of \(12, 12\), the pair for \(8, 8\)"),
    ],
)
def test_other_combinations_are_refused(folders, names, message) -> None:
    refuses(message, load_models, [folders[name] for name in names])


@pytest.mark.quick
def test_a_saved_pair_has_the_weights_of_its_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    """The first named run tells the data."""
    runs = load_models([folders["denoiser"], folders["noisy"]])
    saved = load_models([folders["pair"]])
    assert runs.digests() == saved.digests()
    assert len(set(runs.digests().values())) == 2
    assert (list(runs.runs), saved.runs) == (["denoiser", "noisy"], {})
    with torch.no_grad():
        saved.pair.noisy.head.bias[0] += 1
    assert weights_digest(saved.pair.noisy) != runs.digests()["noisy"]
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "noisy").symlink_to(folders["noisy"])
    paths = folders["noisy"], folders["pair"], folders["pair"].parent, tmp_path / "half", tmp_path
    assert [is_model(path) for path in paths] == [1, 1, 1, 0, 0]


@pytest.mark.quick
def test_a_run_is_finished_when_its_log_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    run = RunFolder(save_run(tmp_path / "run", "plain"))
    assert {run: 1} == {RunFolder(str(run.path)): 1}
    assert not run.is_finished()
    os.mkfifo(run.log)  # a stranger's, which nobody waits for
    assert not run.is_finished()
    record = run.record()
    assert (record.seconds, record.loss, record.bits_per_dim) == (None, None, None)
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
        assert list(again.networks) == [again.first.role] == [model.role]
    refuses("is a single model", lambda: load_models([tmp_path / "run"]).pair)
    assert load_models([tmp_path / "run"]).plain is None
    saved = dsmooth.load(tmp_path / "pair")
    assert saved.noisy is saved.first
    refuses("has a noisy model, not a denoiser one", lambda: saved.denoiser)


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
    log = {"event": "evaluation", "images": 1, "seconds": 1.0, "bits_per_dim": 1.5}
    for role in ("noisy", "denoiser"):
        RunFolder(folders[role]).log.write_text(json.dumps(log) + "\n")
    pair = dsmooth.load(folders["noisy"], folders["denoiser"]).pair
    for name in ("same", "tuned", "copy"):
        if name == "tuned":
            with torch.no_grad():
                pair.noisy.head.bias.add_(0.1)
        dsmooth.save(pair, tmp_path / name, name="x")
        pair = read_pair(tmp_path / name)
    cards = [(tmp_path / name / "README.md").read_text() for name in ("same", "tuned", "copy")]
    assert [card.count("| 1.5000 |") for card in cards] == [2, 1, 1]
    assert cards[1] == cards[2]
    for role in ("noisy", "denoiser"):
        RunFolder(folders[role]).log.unlink()


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


def test_a_loaded_pair_is_of_the_folder_at_that_time(tmp_path: Path) -> None:
    """Its record is read when it is asked for; a folder that is gone has none."""
    run = save_run(tmp_path / "run", "plain")
    network = read_network(run)
    assert network.record().data == "mnist"
    RunFolder(run).config.unlink()
    dsmooth.save(network, tmp_path / "saved")
    assert "Not recorded" in (tmp_path / "saved" / "README.md").read_text()
