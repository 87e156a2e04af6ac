"""Several processes draw what one draws."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dsmooth
from dsmooth.machine import choose_device
from dsmooth.sampling.ranks import draw_in_chunks, share_of
from dsmooth.sampling.request import Progress, Request
from tests.helpers.rank_processes import (
    COMMAND,
    ForkedPython,
    free_port,
    start_ranks,
    wait_for_all,
)
from tests.helpers.sampler_checks import network


@pytest.mark.quick
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 100])
def test_shares_make_the_whole(count: int, size: int) -> None:
    shares = [share_of(count, rank, size) for rank in range(size)]
    drawn = [i for offset, number in shares for i in range(offset, offset + number)]
    assert drawn == list(range(count))
    assert max(number for _, number in shares) == -(-count // size)


@pytest.mark.parametrize(("done", "within"), [(0, None), (0, 5), (4, None), (4, 5), (12, 5)])
def test_chunks_of_one_process(
    monkeypatch: pytest.MonkeyPatch, done: int, within: int | None
) -> None:
    """Every image behind `done` once, no chunk too long or across a border, and no group."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    seen: list[float] = []

    def draw_part(part: Request, progress: Progress) -> torch.Tensor:
        progress(0.5)
        progress(1.0)
        numbers = torch.arange(part.first_index, part.first_index + part.count).float()
        return numbers.view(-1, 1, 1, 1).expand(-1, 1, 4, 4)

    chunks = list(
        draw_in_chunks(
            draw_part,
            Request(12, first_index=7),
            image_shape=(1, 4, 4),
            chunk=3,
            within=within,
            done=done,
            progress=seen.append,
        )
    )
    numbers = [int(x[0, 0, 0]) for _, images in chunks for x in images]
    assert numbers == list(range(7 + done, 19))
    assert all(first == images[0, 0, 0, 0] and len(images) <= 3 for first, images in chunks)
    if within:
        assert all(
            (first - 7) // within == (first - 7 + len(images) - 1) // within
            for first, images in chunks
        )
    assert seen == sorted(seen)
    assert seen[-1:] == [12.0][: len(chunks)]
    assert not torch.distributed.is_initialized()


def saved_pair(folder: Path) -> Path:
    smoothing = dsmooth.GaussianSmoothing(0.5)
    pair = dsmooth.SmoothedPair(network(), network(conditioning="stack"), smoothing, (8, 8))
    pair.save_pretrained(folder)
    return folder


def test_a_killed_process_ends_the_other_with_one_line(tmp_path: Path) -> None:
    models = str(saved_pair(tmp_path / "pair"))
    arguments = ["sample", models, "-n", "1000000", "--device", "cpu", "--out", "x"]
    first, second = start_ranks(2, arguments, tmp_path)
    manifest = tmp_path / "x" / "shards.json"
    while not manifest.exists() or json.loads(manifest.read_text())["done"] == 0:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second.kill()
    _, errors = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 1
    assert re.fullmatch(r"dsmooth: error: rank 0: another process ended or did .*\n", errors)


def test_a_process_that_is_alone_does_not_wait_for_ever(tmp_path: Path) -> None:
    """As where rank 0 failed before it met the others."""
    impatient = "import datetime; from dsmooth import distributed\n"
    impatient += "distributed.START = datetime.timedelta(seconds=0.5)\n"
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    variables["MASTER_PORT"] = str(free_port())
    arguments = ["sample", "pair", "--device", "cpu"]
    second = ForkedPython(impatient + COMMAND, arguments, tmp_path, variables)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert re.fullmatch(r"dsmooth: error: rank 1: the 2 processes did not all start .*\n", errors)


def test_two_processes_write_the_images_of_one(tmp_path: Path) -> None:
    models = str(saved_pair(tmp_path / "pair"))
    common = ["sample", models, "-n", "7", "--seed", "3", "--first-index", "5", "--device", "cpu"]
    wait_for_all(start_ranks(1, [*common, "--out", "one.npz"], tmp_path))
    spoken = wait_for_all(start_ranks(2, [*common, "--out", "two.npz"], tmp_path))
    one, two = (np.load(tmp_path / name)["x"] for name in ("one.npz", "two.npz"))
    assert one.shape == (7, 1, 8, 8)
    np.testing.assert_array_equal(two, one)
    assert "7 images" in spoken[0]
    assert spoken[1] == ""  # the progress is rank 0's


def test_two_processes_go_on_where_rank_0_was(tmp_path: Path) -> None:
    models = str(saved_pair(tmp_path / "pair"))
    arguments = ["sample", models, "-n", "7", "--device", "cpu", "--out", "x"]
    wait_for_all(start_ranks(1, arguments, tmp_path))
    shard, manifest = tmp_path / "x" / "shard_00000.npy", tmp_path / "x" / "shards.json"
    whole = np.load(shard)
    stopped = np.load(shard, mmap_mode="r+")
    stopped[3:] = np.nan
    stopped[:3] = 7  # what is there is not drawn again
    stopped.flush()
    digest = hashlib.sha256(stopped[:3].tobytes()).hexdigest()
    found = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**found, "done": 3, "sha256": [digest]}))
    wait_for_all(start_ranks(2, arguments, tmp_path))
    resumed = np.load(shard)
    np.testing.assert_array_equal(resumed[3:], whole[3:])
    assert (resumed[:3] == 7).all()


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto") == torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="--device cuda: PyTorch finds no CUDA device"):
        choose_device("cuda")
    with pytest.raises(ValueError, match='auto, cpu, cuda or cuda:N, got "gpu"'):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="there are 2 CUDA devices"):
        choose_device("cuda:2")


def test_a_device_that_is_not_there_ends_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsmooth.cli import main

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    out = tmp_path / "x.npz"
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(saved_pair(tmp_path)), "--out", str(out), "--device", "cuda"])
    assert stop.value.code == 1
    assert "dsmooth: error: --device cuda: PyTorch finds no CUDA device" in capsys.readouterr().err
    assert not out.exists()
