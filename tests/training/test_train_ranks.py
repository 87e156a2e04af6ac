"""Several processes train, draw, measure and probe as one does."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from dsmooth.config import TrainConfig
from dsmooth.distributed import Group
from dsmooth.machine import choose_device
from dsmooth.pretrained.log import Interrupted, Start
from dsmooth.pretrained.runs import RunFolder
from dsmooth.training import loop, plan, step, train
from dsmooth.training.checkpoint import read_checkpoint
from dsmooth.training.step import TrainState
from tests.helpers.data_makers import random_dataset, refuses
from tests.helpers.rank_processes import (
    COMMAND,
    ForkedPython,
    free_port,
    start_ranks,
    wait_for_all,
)
from tests.helpers.tiny_runs import ROLES, assert_same_end, tiny

TINY = (
    "--n-filters=4 --n-resnet=1 --set n_mix=2 --set dropout=0.3 --batch-size=8 --set evaluations=1"
    " --set evaluation_images=8 --set warmup_images=16 --precision=float32 --threads=1"
)


# By each rank: losses, gradients' norms and weights of two steps of training number i, in i.pt.
STEPS = """
import json, sys
import torch
from dsmooth.config import TrainConfig
from dsmooth.data import ImageDataset
from dsmooth.distributed import process_group
from dsmooth.files import structured
from dsmooth.training.step import TrainState
torch.set_num_threads(1)
images = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(4)).byte()
data = ImageDataset(images, torch.arange(40) % 3, "made", "train", "made for a test")
with process_group() as group:
    for number, text in enumerate(sys.argv[1:]):
        state = TrainState(structured(json.loads(text), TrainConfig, ""), data, torch.device("cpu"))
        for _ in range(2):
            state.step()
        losses, norms = ([reading[i] for reading in state.results()] for i in (1, 2))
        if group.writes:
            torch.save((losses, norms, state.tensors()), f"{number}.pt")
"""
CONFIGS = [
    tiny(role, batch_size=12, images=120, n_classes=classes, clip_norm=1.0, optimizer=optimizer)
    for role, classes in zip(ROLES, (3, 3, 0), strict=True)
    for optimizer in ("adam", "muon")
]


@pytest.mark.parametrize(
    "configs",
    [[CONFIGS[0], CONFIGS[3]], pytest.param(CONFIGS, marks=pytest.mark.full)],
    ids=["few", "all"],
)
def test_the_same_steps_for_any_number_of_ranks_and_parts(configs, tmp_path: Path) -> None:
    """The same images, labels, noise and dropout, which belong to the batch; other sums."""
    for size, parts in ((1, 1), (3, 2)):
        (tmp_path / str(size)).mkdir()
        settings = [json.dumps(asdict(replace(config, accumulate=parts))) for config in configs]
        wait_for_all(start_ranks(size, settings, tmp_path / str(size), STEPS))
    for number, config in enumerate(configs):
        one, three = (torch.load(tmp_path / size / f"{number}.pt") for size in ("1", "3"))
        # The polar factor brings the smallest parts of a gradient, and their rounding, to size 1.
        loose = 100 if config.optimizer == "muon" else 1
        assert three[0] == pytest.approx(one[0], rel=loose * 1e-6)
        assert three[1] == pytest.approx(one[1], rel=loose * 1e-5)
        for name, tensor in one[2].items():
            torch.testing.assert_close(three[2][name], tensor, rtol=0, atol=loose * 1e-5, msg=name)


@pytest.mark.quick
def test_a_batch_that_does_not_divide_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "group", lambda: Group(2, 3))
    monkeypatch.setattr(Group, "first", lambda _, compute: compute())
    state = TrainState(tiny(batch_size=12), random_dataset(12), torch.device("cpu"))
    assert (state.first_image, state.share) == (8, 4)
    for config, words in (
        (tiny(batch_size=8), "must be a multiple of 3, .* got 8"),
        (tiny(batch_size=4, accumulate=2), "must be a multiple of 6, .* got 4"),
    ):
        refuses(words, step.check_step, config, torch.device("cpu"))


# Before the command: rank 1 is killed in its fourth step.
DIES = """
import os, signal
from dsmooth.training import loop
from dsmooth.training.step import TrainState
loop.CHECKPOINT_SECONDS = 0
step = TrainState.step
def step_or_die(state):
    if state.images_seen == 24 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    step(state)
TrainState.step = step_or_die
"""


def test_a_killed_rank_ends_the_other_and_a_restart_continues(tmp_path: Path) -> None:
    command = ["train", "noisy", *TINY.split(), "--images=48"]
    arguments = [*command, "--out=killed"]
    first, second = start_ranks(2, arguments, tmp_path, DIES + COMMAND)
    _, errors = first.communicate()
    assert re.fullmatch(r"dsmooth: error: rank 0: another process ended or did .*\n", errors)
    second.communicate()
    wait_for_all(start_ranks(2, [*arguments, "--resume"], tmp_path))
    log = RunFolder(tmp_path / "killed").read_log()
    starts = [entry.images for entry in log if isinstance(entry, Start)]
    assert len(starts) == 2
    assert starts[1] >= 16
    wait_for_all(start_ranks(2, [*command, "--out=whole"], tmp_path))
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


def test_control_c_saves_once_and_one_process_resumes(tmp_path, monkeypatch) -> None:
    """A terminal sends it to torchrun and to its processes, to which torchrun sends one more."""
    command = ["train", "noisy", *TINY.split(), "--images=100000", "--out=run"]
    ranks = start_ranks(2, command, tmp_path)
    run = RunFolder(tmp_path / "run")
    while not (run.log.exists() and len(run.read_log()) > 1):
        assert ranks[0].returncode is None, ranks[0].communicate()
        time.sleep(0.05)
    for number in (signal.SIGINT, signal.SIGTERM):
        for rank in ranks:
            rank.send_signal(number)
    written = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [128 + signal.SIGINT] * 2
    hint = "noisy: the same command with --resume continues"
    assert sum(output.count(hint) for output, _ in written) == 1, written
    *entries, last = run.read_log()
    assert isinstance(last, Interrupted)
    assert not any(isinstance(entry, Interrupted) for entry in entries)
    seen = read_checkpoint(run.checkpoint).images_seen
    assert seen == last.images > 0
    stop = contextlib.nullcontext(lambda: signal.SIGTERM)  # after a step
    monkeypatch.setattr(loop, "catch_signals", lambda: stop)
    result = train(run.read_config()[0], run.path, resume=True)
    assert (result.images_seen, result.interrupted) == (seen + 8, signal.SIGTERM)


def test_a_process_whose_peers_are_missing_does_not_wait_for_ever(tmp_path: Path) -> None:
    """As where rank 0 failed before it met the others."""
    impatient = "import datetime; from dsmooth import distributed\n"
    impatient += "distributed.EXCHANGE = datetime.timedelta(seconds=0.5)\n"
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    variables["MASTER_PORT"] = str(free_port())
    arguments = ["sample", "pair", "--device", "cpu"]
    second = ForkedPython(impatient + COMMAND, arguments, tmp_path, variables)
    _, errors = second.communicate(timeout=240)
    assert second.returncode == 1
    last = errors.splitlines()[-1]
    assert re.fullmatch(
        r"dsmooth: error: rank 1: another process ended or did not respond .*", last
    )


@pytest.mark.quick
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_downloads(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """All read afterwards."""
    done: list[tuple[object, ...]] = []
    monkeypatch.setattr("dsmooth.work.group", lambda: Group(rank, 2))
    monkeypatch.setattr(Group, "gather", lambda _, value: done.append(("all",)) or [value])
    monkeypatch.setattr(plan, "load_splits", lambda *place: done.append(place[2:]) or "ab")
    plan.load_data(TrainConfig(download=True))
    first = [(None, True, None)] if rank == 0 else []
    assert done == [*first, ("all",), (None, False, None)]


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto") == torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")
    refuses("`device` must be one of cpu, got 'cuda'", choose_device, "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    refuses("one of cpu, cuda:0, cuda:1, got 'cuda:2'", choose_device, "cuda:2")
