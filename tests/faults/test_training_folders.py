"""Faults of a run's folder: damage, other runs' files, kills, a second writer."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch

import dsmooth
from dsmooth import files
from dsmooth.distributed import Group
from dsmooth.files import (
    check_writable,
    lock_folder,
    read_json,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
)
from dsmooth.pretrained.log import HeldOut, Start
from dsmooth.pretrained.runs import RunFolder
from dsmooth.training import NonFiniteLoss, loop, plan, train
from dsmooth.training.checkpoint import (
    digest,
    newest_checkpoint,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from dsmooth.training.step import TrainState
from dsmooth.work import own_folder
from tests.helpers.data_makers import refuses
from tests.helpers.kills import as_killed, contents, states_of_kills
from tests.helpers.tiny_runs import assert_same_end, tiny, use_small_runs

CONFIG = tiny(images=32, evaluations=2)

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A whole run; tests copy it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_small_runs(patch)
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        train(CONFIG, folder)
    return RunFolder(folder)


@pytest.fixture(autouse=True)
def save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """The whole run, its newest checkpoint at 32 images and the one before at 24."""
    return RunFolder(shutil.copytree(finished.path, tmp_path / "run"))


def change(path: Path) -> None:
    """Flip the lowest bit of one weight, and keep what the file says of itself."""
    tensors, metadata = read_tensors(path)
    tensors["model.head.bias"].view(torch.int32)[0] ^= 1
    write_tensors(path, tensors, metadata)


def recount(path: Path) -> None:
    """Say that the checkpoint is of another position."""
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, metadata | {"images_seen": "16", "steps": "2"})


@pytest.mark.parametrize(
    "damage", [change, recount, lambda path: os.truncate(path, 1000), Path.unlink]
)
def test_the_checkpoint_before_a_damaged_one_is_used(run, finished, damage, capsys) -> None:
    """If that is damaged too, nothing is trained."""
    damage(run.checkpoint)
    train(CONFIG, run.path, resume=True, progress=True)
    assert "continuing from the checkpoint before it, at 24 images" in capsys.readouterr().out
    assert_same_end(run.path, finished.path)
    assert read_checkpoint(run.earlier_checkpoint).images_seen == 24  # not the damaged one
    assert (run.path / "checkpoint-damaged-1.safetensors").exists() == (damage != Path.unlink)
    weights = run.weights.read_bytes()
    change(run.checkpoint)
    change(run.earlier_checkpoint)
    refuses(r"checkpoint-earlier\.safetensors is ", train, CONFIG, run.path, resume=True)
    assert run.weights.read_bytes() == weights


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_a_checkpoint_that_cannot_be_read_stays_and_nothing_else_is_taken(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The file is opened twice: here, and by safetensors."""
    before = contents(run.path)

    def fail(path: object, *args: object, **options: object) -> Any:
        if path == run.checkpoint:
            raise OSError(number, os.strerror(number), str(path))
        return open(path, *args, **options)

    def fail_inside(*_: object, **__: object) -> None:
        raise OSError(os.strerror(number))

    for name, failing in (("open", fail), ("safe_open", fail_inside)):
        with monkeypatch.context() as patch:
            patch.setattr(files, name, failing, raising=False)
            said, file = os.strerror(number), r"checkpoint\.safetensors"
            words = rf"{said}.*{file}|{file}.*{said}"
            refuses(words, train, CONFIG, run.path, resume=True, error=OSError)
        assert contents(run.path) == before


def test_a_run_is_not_resumed_with_other_images(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (40, 1, 8, 8)).byte()
    config = replace(CONFIG, images=8, evaluations=1, evaluation_images=2)
    train(config, tmp_path, dataset=images)
    train(config, tmp_path, dataset=images, resume=True)
    words = r"other images than the 36 of .* set `init="
    refuses(words, train, config, tmp_path, dataset=255 - images, resume=True)


EDITS = {"scale": 0.3, "seed": 1, "learning_rate": 0.1, "batch_size": 4, "flip": True, "ema": 0.5}
EDITS |= {"smoothing": "laplace", "model": {"dropout": 0.1}, "images": 64}


@pytest.mark.parametrize("name", EDITS)
def test_a_run_continues_with_the_settings_of_its_checkpoint(run: RunFolder, name: str) -> None:
    """Edited ones are refused, by the command's default too: those of the file."""
    stored, value = read_json(run.config), EDITS[name]
    edited = {**stored[name], **value} if isinstance(value, dict) else value
    write_json(run.config, {**stored, name: edited})
    before = contents(run.path)
    config, _ = run.read_config()
    refuses(rf"run holds another run: its {name}.* is ", train, config, run.path, resume=True)
    assert contents(run.path) == before
    train(CONFIG, run.path, resume=True)  # mended by what began it
    assert read_json(run.config) == stored


def test_a_run_of_earlier_versions_continues(run: RunFolder, finished: RunFolder) -> None:
    """Their checkpoints do not have the settings: the file has them."""
    for path in (run.checkpoint, run.earlier_checkpoint):
        tensors, metadata = read_tensors(path)
        stated = {key: metadata[key] for key in ("images_seen", "steps", "data")}
        write_tensors(path, tensors, stated | {"sha256": digest(tensors, stated)})
    run.checkpoint.unlink()
    refuses("its seed is 0, not 1", train, replace(CONFIG, seed=1), run.path, resume=True)
    train(CONFIG, run.path, resume=True)
    assert_same_end(run.path, finished.path)


@pytest.mark.parametrize("name", [".lock", "log.jsonl"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_strangers_folder_opens_no_file_elsewhere(tmp_path: Path, name: str, kind: str) -> None:
    other, path = tmp_path / "other", tmp_path / "run" / name
    other.write_text("mine")
    path.parent.mkdir()
    make = {"link": lambda: path.symlink_to(other), "pipe": lambda: os.mkfifo(path)}
    make.get(kind, path.mkdir)()
    refuses(f"{name}'$", train, CONFIG, tmp_path / "run", error=OSError)
    assert other.read_text() == "mine"


def test_a_run_is_not_among_its_data(tmp_path: Path) -> None:
    config = replace(CONFIG, data="folder", data_dir=str(tmp_path))
    words = r"run lies in the data's folder .*; choose another folder"
    refuses(words, train, config, tmp_path / "sub" / ".." / "run")
    assert not list(tmp_path.iterdir())


def test_a_run_keeps_its_weights_and_its_folder(run: RunFolder, tmp_path: Path) -> None:
    """No model is written over the log or the checkpoint of another, into a run at work, or with
    the settings of another network."""
    model, (config, size) = dsmooth.load(run.path).model, run.read_config()
    for gone in (run.log, run.checkpoint, run.checkpoint):
        before = contents(run.path)
        words = "run already holds weights; choose another"
        refuses(words, run.write_model, model, replace(config, seed=7), size)
        assert before == contents(run.path)
        gone.unlink(missing_ok=True)
    new = RunFolder(tmp_path / "new")
    with lock_folder(new.path, "one"):
        refuses(r"a training run is at work in .*new", new.write_model, model, config, size)
    other = replace(config, model=replace(config.model, n_mix=3))
    words = r"config\.model must be the model's own ModelConfig"
    refuses(words, new.write_model, model, other, size)


FULL = "No space left on device"


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        ("fsync", KeyboardInterrupt(), "^$"),
        ("fsync", OSError(28, FULL), rf"^\[Errno 28\] {FULL}: '\S*/file'$"),
        ("replace", OSError(28, FULL, "a", None, "b"), rf"^\[Errno 28\] {FULL}: '\S*/file'$"),
    ],
)
def test_writes_that_end_early_leave_old_files(tmp_path, monkeypatch, step, error, message):
    """And a file is for whom the user's other files are."""
    path, other = tmp_path / "file", tmp_path / "other"
    write_atomically(path, b"old")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    monkeypatch.setattr(f"os.{step}", Mock(side_effect=error))
    refuses(message, write_atomically, path, b"new", error=type(error))
    assert contents(tmp_path) == {"file": b"old", "other": b""}


@pytest.mark.parametrize("locks", [True, False])
def test_half_written_files_are_removed_only_of_dead_writers(tmp_path, monkeypatch, locks) -> None:
    """By a lock of the folder above, and as a command checks its output before any work."""
    folder, found = tmp_path / "samples", []

    def look() -> None:
        found.append({file.name[:6] for file in folder.iterdir()})

    def look_and_rename(temporary: Path, path: Path) -> None:
        look()
        with own_folder(tmp_path, "x") if locks else nullcontext(check_writable(folder / "dead")):
            look()
        temporary.rename(path)

    child = os.fork()
    if not child:
        monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        write_atomically(folder / "dead", b"half")
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    monkeypatch.setattr(os, "replace", look_and_rename)
    write_atomically(folder / "alive", b"whole")  # by a writer that holds no lock of a folder
    assert found == [{".dead.", ".alive"}, {".alive"}]
    assert (folder / "alive").read_bytes() == b"whole"


def test_what_cannot_be_written_is_known_before(tmp_path, monkeypatch) -> None:
    """Names of 255 bytes are files, and a folder asks for no rights in the one above."""
    for name in ("é" * 127 + "x", "x" * 255):
        check_writable(tmp_path / name)
        write_atomically(tmp_path / name, b"")
    refuses("x cannot be written: .*: File name too long", check_writable, tmp_path / ("x" * 256))
    (tmp_path / "mine").mkdir()
    places = Mock()
    monkeypatch.setattr("tempfile.TemporaryFile", places)
    for name in ("mine", "mine/new", "other"):
        check_writable(tmp_path / name)
    mine, above = call(dir=tmp_path / "mine"), call(dir=tmp_path)
    assert places.call_args_list == [mine, mine, above]


def test_a_full_disk_is_of_the_log(tmp_path, monkeypatch) -> None:
    full = partial(open, "/dev/full", "a", buffering=1)
    monkeypatch.setattr("dsmooth.training.log.open_to_append", lambda _: full())
    refuses(rf"{FULL}: '\S*/log\.jsonl'$", train, CONFIG, tmp_path / "run", error=OSError)


def test_a_lock_leaves_no_empty_folder(tmp_path: Path) -> None:
    for name, left in (("a/b", []), ("c/d", ["c", "c/d", "c/d/file"])):
        with suppress(ValueError), lock_folder(tmp_path / name, "x"):
            [(tmp_path / file).touch() for file in left[2:]]
            raise ValueError
        assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == left


def test_weights_that_are_not_finite_replace_nothing(run: RunFolder) -> None:
    with plan.resolve(CONFIG, run.path, None, None, True, "cpu") as resumed:
        state = loop.begin(resumed)
    before = contents(run.path)
    state.averaged.head.bias.data[0] = torch.nan
    words = r"ema\.head\.bias is not finite after step 4 .* seed 0"
    refuses(words, save_checkpoint, run, state, error=NonFiniteLoss)
    refuses(words, loop._evaluate, state, resumed, None, error=NonFiniteLoss)
    assert before == contents(run.path)


def test_a_checkpoint_that_cannot_be_written_replaces_nothing(run, monkeypatch) -> None:
    """The newest whole one keeps its name, and hands it on when another is whole."""
    state = TrainState(CONFIG, plan.load_data(CONFIG)[0], torch.device("cpu"))
    restore(run, state, newest_checkpoint(run))
    before = contents(run.path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", Mock(side_effect=OSError(28, "No space left on device")))
        refuses("No space left on device", save_checkpoint, run, state, error=OSError)
    assert before == contents(run.path)
    for link in (os.link, Mock(side_effect=PermissionError)):  # some file systems have no links
        monkeypatch.setattr("os.link", link)
        newest = run.checkpoint.read_bytes()
        state.steps += 1
        save_checkpoint(run, state)
        assert run.earlier_checkpoint.read_bytes() == newest != run.checkpoint.read_bytes()


def test_weights_that_are_not_of_the_checkpoint_are_replaced(run, finished) -> None:
    """A kill between the last checkpoint and its weights leaves none, or earlier ones."""
    run.weights.unlink()
    train(CONFIG, run.path, resume=True)
    assert_same_end(run.path, finished.path)
    run.weights.write_bytes(b"")
    lines = run.log.read_text().splitlines(keepends=True)
    run.log.write_text("".join(line for line in lines if '"images": 32' not in line))
    train(CONFIG, run.path, resume=True)
    assert_same_end(run.path, finished.path)


def test_the_digest_of_a_checkpoint_is_of_types_and_shapes_too() -> None:
    x = torch.ones(2, 3)
    assert len({digest({"x": y}, {}) for y in (x, x.view(3, 2), x.view(torch.int32))}) == 3


def test_a_cut_line_of_the_log_does_not_swallow_the_next(run: RunFolder) -> None:
    entries = run.read_log()
    with open(run.log, "a") as file:
        file.write('{"event": "st')
    train(CONFIG, run.path, resume=True)
    again = run.read_log()
    assert again[: len(entries)] == entries
    assert isinstance(again[len(entries)], Start)
    assert run.is_finished()


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "run", "someone"):
        for _ in range(2):
            refuses(r"another training run is at work in .*run", train, CONFIG, tmp_path / "run")
            (tmp_path / "run" / ".lock").unlink()
    assert not RunFolder(tmp_path / "run").config.exists()


@pytest.mark.parametrize("other", range(3))
def test_processes_that_do_not_read_the_same_end(run, monkeypatch, other: int) -> None:
    """The same checkpoint, training images and held-out images."""

    def gather(_: Group, value: Any) -> list[Any]:
        return [value, (*value[:other], "other", *value[other + 1 :])]

    monkeypatch.setattr(Group, "gather", gather)
    words = "here 5,000 and 1,000 of embedded.*, or different checkpoints, here .* at 32 images: "
    refuses(words, train, CONFIG, run.path, resume=True)


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.full)])
def test_a_run_survives_being_killed_anywhere(finished, tmp_path, every: int) -> None:
    """At every change of a file, or at a few."""
    run = tmp_path / "killed"
    states = states_of_kills(lambda: train(CONFIG, run), run)
    assert len(states) > 20
    for number, state in enumerate(states[::every]):
        run = RunFolder(as_killed(tmp_path / str(number), state))
        train(CONFIG, run.path, resume=True)
        assert_same_end(run.path, finished.path)
        assert run.is_finished()
        seen = [entry.images for entry in run.history() if isinstance(entry, HeldOut)]
        assert seen == [16, 32]
        left, whole = ({file.name for file in r.path.iterdir()} for r in (run, finished))
        assert left <= whole
        assert whole - left <= {run.earlier_checkpoint.name}  # all pictures are there
