"""Several processes draw what one draws."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import dsmooth
from dsmooth.config import TrainConfig
from dsmooth.machine import choose_device
from dsmooth.training import beginning
from tests.helpers.command_runs import run
from tests.helpers.data_makers import refuses
from tests.helpers.networks import BYTES, network
from tests.helpers.rank_processes import COMMAND, ForkedPython, free_port, start_ranks, wait_for_all


def test_a_process_that_is_alone_does_not_wait_for_ever(tmp_path: Path) -> None:
    """As where rank 0 failed before it met the others."""
    impatient = "import datetime; from dsmooth import distributed\n"
    impatient += "distributed.START = datetime.timedelta(seconds=0.5)\n"
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    variables["MASTER_PORT"] = str(free_port())
    arguments = ["sample", "pair", "--device", "cpu"]
    second = ForkedPython(impatient + COMMAND, arguments, tmp_path, variables)
    _, errors = second.communicate(timeout=240)
    assert second.returncode == 1
    assert re.fullmatch(r"dsmooth: error: rank 1: the 2 processes did not all start .*\n", errors)


def test_two_processes_write_the_images_of_one(tmp_path, monkeypatch) -> None:
    """An array, and a folder: each process writes its files, from where it was stopped, too."""
    monkeypatch.chdir(tmp_path)
    networks, smoothing = (network(), network("stack", **BYTES)), dsmooth.GaussianSmoothing(0.5)
    dsmooth.SmoothedPair(*networks, smoothing, (8, 8)).save_pretrained("pair")
    common = ["sample", "pair", "-n", "7", "--seed", "3", "--first-index", "5", "--device", "cpu"]
    assert run(*common, "--out", "one.npz") == 0
    spoken = wait_for_all(start_ranks(2, [*common, "--out", "two.npz"], tmp_path))
    one, two = (np.load(tmp_path / name)["x"] for name in ("one.npz", "two.npz"))
    assert one.shape == (7, 1, 8, 8)
    np.testing.assert_array_equal(two, one)
    assert "7 images" in spoken[0]
    assert spoken[1] == ""  # the progress is rank 0's

    def files(folder: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    common = ["sample", "pair", "-n", "600", "--device", "cpu"]
    assert run(*common, "--out", "one") == 0
    wait_for_all(start_ranks(2, [*common, "--out", "two"], tmp_path))
    assert len(files("one")) == 7  # five shards, the manifest and the lock
    assert files("two") == files("one")
    manifest = Path("two", "shards.json")
    found = json.loads(manifest.read_text())
    first = found["sha256"][0]
    manifest.write_text(json.dumps({**found, "sha256": [first, None, None, None, None]}))
    Path("two", "shard_00003.npy").unlink()
    said, _ = wait_for_all(start_ranks(2, [*common, "--out", "two"], tmp_path))
    assert "472 images" in said
    assert "beside 128 that were there" in said
    assert files("two") == files("one")


@pytest.mark.quick
@pytest.mark.parametrize(("rank", "local", "turn"), [(0, 0, 0), (2, 0, 1), (1, 1, 2), (3, 1, 2)])
def test_one_process_at_a_time_downloads_into_a_folder(monkeypatch, rank, local, turn) -> None:
    """Two machines of two processes: rank 0, the first of the other machine, then those beside."""
    done: list[str] = []
    for name, value in (("RANK", rank), ("WORLD_SIZE", 4), ("LOCAL_RANK", local)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(beginning, "barrier", lambda: done.append("barrier"))
    monkeypatch.setattr(
        beginning, "load_splits", lambda _, splits, *__, **___: done.extend(splits) or splits
    )
    beginning.load_data(TrainConfig(download=True))
    assert done == ["barrier"] * turn + ["train", "test"] + ["barrier"] * (3 - turn)
    done.clear()
    beginning.load_data(TrainConfig())
    assert done == ["train", "test"]


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto") == torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")
    refuses("`device` cannot be cuda: PyTorch finds 0 CUDA", choose_device, "cuda")
    refuses('auto, cpu, cuda or cuda:N, got "gpu"', choose_device, "gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    refuses("finds 2 CUDA devices", choose_device, "cuda:2")
