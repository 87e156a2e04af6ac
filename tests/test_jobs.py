"""Laws of every command that works in parts: it writes the same files however it is run."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.command_runs import complains, run, save_run
from tests.helpers.data_makers import random_bytes, write_images
from tests.helpers.kills import Files, as_killed, contents, states_of_kills
from tests.helpers.rank_processes import start_ranks, wait_for_all

FOLDER = "--data folder --data-dir images"


@dataclass(frozen=True)
class Job:
    """A command that writes into the folder "out".

    part: a file that is made alone if it is missing; another seed is refused by such a folder.
    varying: files that state the machine, or the time.
    """

    command: str
    part: str | None = None
    varying: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        return [*shlex.split(self.command), "--device", "cpu"]

    def same(self, files: Files, others: Files, *unlike: str) -> bool:
        """Whether files are the same, but for locks and what a kill left half-written."""
        left_out = {*self.varying, *unlike}
        names = {k for k in {**files, **others} if Path(k).name[0] != "." and k not in left_out}
        return all(files.get(k) == others.get(k) for k in names)


JOBS = {
    "sample to a file": Job("sample noisy denoiser -n 5 --out out/x.npz out/x.png"),
    "sample to a folder": Job("sample noisy denoiser -n 5 --out out", "00000002.png"),
    "complete": Job("complete noisy denoiser x.npz -n 2 --draws 2 --out out/x.npz out/x.png"),
    "evaluate bpd": Job(
        "evaluate bpd noisy denoiser plain --batch-size 3 --n-noise 2 --limit 7 --out out/x.json"
    ),
    "evaluate fid": Job(f"evaluate fid x.npz {FOLDER} --out out/x.json"),
    "probe": Job("probe noisy denoiser plain --epochs 1 --out out", "probes.json"),
    "cluster": Job("cluster noisy --clusters 3 --out out"),
    "reproduce": Job(
        "reproduce --models noisy denoiser plain -n 4 --extractor mnist-classifier --out out",
        "frechet.json",
        varying=("results.json", "report.html"),
    ),
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, runs of small models of them, and a file of samples."""
    folder = tmp_path_factory.mktemp("jobs")
    pixels = random_bytes((72, 28, 28), seed=3)
    names = [f"{split}/{kind}" for split in ("train", "train", "test") for kind in ("a", "b")]
    named = {f"{names[i % 6]}/{i}.png": image for i, image in enumerate(pixels)}
    write_images(folder / "images", named)
    for role in ("noisy", "denoiser", "plain"):
        save_run(folder / role, role, size=28, data="folder", data_dir="images")
    np.savez(folder / "x.npz", x=pixels[:9])
    return folder


@pytest.fixture(params=JOBS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def found() -> dict[str, Files]:
    """The files of jobs that were asked for here: workers share the jobs out."""
    return {}


@pytest.fixture
def whole(name: str, ground: Path, found: dict[str, Files], tmp_path_factory) -> Files:
    """The files of the job, by one process and one thread."""
    if name not in found:
        folder = copied(ground, tmp_path_factory.mktemp("whole") / "place")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert run(*JOBS[name].words, "--threads", "1") == 0
        found[name] = contents(folder / "out")
    return found[name]


def copied(ground: Path, folder: Path) -> Path:
    return shutil.copytree(ground, folder, dirs_exist_ok=True)


@pytest.fixture
def here(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copied(ground, tmp_path))
    return tmp_path


pytestmark = pytest.mark.usefixtures("no_plots")


def test_the_same_files_with_any_number_of_threads(name, here, whole) -> None:
    assert run(*JOBS[name].words, "--threads", "3") == 0
    # Gradients are rounded otherwise, and distances of what they draw.
    gradients = *(f"samples/{kind}single-step.npz" for kind in ("", "held-out-")), "frechet.json"
    assert JOBS[name].same(contents(here / "out"), whole, *gradients)


@pytest.mark.long
def test_two_processes_write_the_files_of_one(name, here, whole) -> None:
    said = wait_for_all(start_ranks(2, JOBS[name].words, here))
    assert said[0] != ""
    assert said[1] == ""
    # Only here plots are a pixel.
    assert JOBS[name].same(contents(here / "out"), whole, "noisy.png", "denoiser.png")


@pytest.mark.long
def test_killed_anywhere_it_is_repeated_to_the_same_files(
    name, here, whole, monkeypatch, capsys
) -> None:
    job = JOBS[name]
    states = states_of_kills(lambda: run(*job.words, "--threads", "1"), here / "out")
    # Some of them, the first and the last among these.
    chosen = dict.fromkeys(np.linspace(0, len(states) - 1, 4).astype(int).tolist())
    for number in chosen:
        shutil.rmtree(here / "out", ignore_errors=True)
        as_killed(here / "out", states[number])
        assert run(*job.words, "--threads", "1") == 0, capsys.readouterr().err
        assert job.same(contents(here / "out"), whole)


@pytest.mark.parametrize("name", [name for name, job in JOBS.items() if job.part], indirect=True)
def test_what_is_there_stays_and_another_request_is_refused(name, here, whole, capsys) -> None:
    """Only what was deleted is made again."""
    job, out = JOBS[name], as_killed(here / "out", whole)
    there = {name: (out / name).stat().st_mtime_ns for name in whole}
    (out / job.part).unlink()
    assert run(*job.words, "--threads", "1") == 0
    written = {name for name, time in there.items() if (out / name).stat().st_mtime_ns != time}
    assert {job.part} <= written <= {job.part, *job.varying, "noisy.png", "denoiser.png"}
    complains(capsys, "seed is 0, not 1", *job.words, "--seed", "1")
    assert job.same(contents(out), whole)
