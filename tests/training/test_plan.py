"""The runs of `dsmooth train`, as data; and pairs by clusters, which are three runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dsmooth.cli import parse
from dsmooth.commands.train import cluster_data, next_step
from dsmooth.config import Role
from dsmooth.presets import FINE_TUNING, preset
from dsmooth.runs import RunFolder
from dsmooth.training import resolve
from dsmooth.training.plan import LABEL_DROPOUT, RunPlan, plan_runs
from dsmooth.training.step import scheduled
from tests.helpers.command_runs import complains, run, settings_of
from tests.helpers.data_makers import random_bytes, write_images
from tests.helpers.tiny_runs import ROLES, assert_same_end

TINY = [
    *("--n-filters=4", "--n-resnet=1", "--n-mix=2", "--context-layers=1", "--dropout=0"),
    *("--batch-size=8", "--evaluations=1", "--evaluation-images=2", "--images=32"),
]
PAIR = Path("p")
FIRST = RunPlan(PAIR / "noisy-unnamed", "noisy", 1 / 4, 1 / 2, clusters=3)
NOISY = RunPlan(
    PAIR / "noisy",
    "noisy",
    1 / 4,
    1 / 2,
    init=PAIR / "noisy-unnamed",
    labels=PAIR / "clusters" / "labels.npz",
    label_dropout=LABEL_DROPOUT,
)
HALF = {role: RunPlan(PAIR / role, role, 1 / 2) for role in ("noisy", "denoiser")}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "labelled", "runs"),
    [
        (("plain",), False, [RunPlan(Path("runs/plain"), "plain")]),
        (("noisy", Path("a")), False, [RunPlan(Path("a"), "noisy")]),
        (("pair", PAIR), False, [HALF["noisy"], HALF["denoiser"]]),
        (("pair", PAIR, 3), False, [FIRST, NOISY, HALF["denoiser"]]),
        (("pair", PAIR, 3), True, [NOISY, HALF["denoiser"]]),
    ],
)
def test_the_runs_of_a_command(arguments: tuple, labelled: bool, runs: list[RunPlan]) -> None:
    assert list(plan_runs(*arguments, labelled=labelled)) == runs
    assert labelled or sum(run.budget_fraction for run in runs) == 1


def test_the_plan_is_printed_without_images(capsys: pytest.CaptureFixture[str]) -> None:
    words = "pair nowhere --out p --clusters 3 --images 9"
    printed = settings_of(capsys, words)
    assert [*printed] == ["noisy-unnamed", "noisy", "denoiser"]
    images = {name: planned["settings"]["images"] for name, planned in printed.items()}
    assert images == {"noisy-unnamed": 5, "noisy": 5, "denoiser": 9}
    noisy = printed["noisy"]
    assert (noisy["labels"], noisy["init"]) == ("p/clusters/labels.npz", "p/noisy-unnamed")
    assert noisy["settings"]["label_dropout"] == LABEL_DROPOUT
    budgets = settings_of(capsys, "pair nowhere --out p --clusters 3 --budget 8")
    assert [planned["settings"]["budget"] for planned in budgets.values()] == [2.0, 2.0, 4.0]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "factors"),
    [
        ("pair nowhere", [1.0, 1.0]),
        ("pair nowhere --init mnist", [FINE_TUNING, FINE_TUNING]),
        ("pair nowhere --init mnist --learning-rate 0.032", [1.0, 1.0]),
        ("pair nowhere --clusters 3", [1.0, 1.0, 1.0]),  # the second begins with the first
    ],
)
def test_a_run_from_given_weights_has_smaller_rates(
    capsys: pytest.CaptureFixture[str], words: str, factors: list[float]
) -> None:
    """Unless it is given rates: in the command, and in Python."""
    printed = settings_of(capsys, f"{words} --images 9")
    assert [planned["settings"]["rate_factor"] for planned in printed.values()] == factors
    assert preset("mnist", "noisy", init="mnist").rate_factor == FINE_TUNING
    assert preset("mnist", "noisy", init="mnist", kernel_rate=0.02).rate_factor == 1
    config = preset("mnist", "noisy", images=9)
    slow = replace(config, rate_factor=FINE_TUNING)
    assert scheduled(2.0, slow, 4, 1) == pytest.approx(FINE_TUNING * scheduled(2.0, config, 4, 1))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("n_classes", [0, 2])
def test_the_next_command_draws_each_class_of_a_model(tmp_path, role: Role, n_classes: int) -> None:
    """Where a command draws."""
    model = replace(preset("mnist-quick", role).model, n_classes=n_classes)
    RunFolder(tmp_path).write_config(preset("mnist-quick", role, model=model), (8, 8))
    advice = next_step([RunPlan(tmp_path, role)])
    assert str(tmp_path) in advice
    assert ("--label each" in advice) == (n_classes > 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 images, and a pair with three clusters of them."""
    place = tmp_path_factory.mktemp("clusters")
    pixels = random_bytes((24, 8, 8, 3))
    write_images(place / "images", {f"{i}.png": picture for i, picture in enumerate(pixels)})
    assert run("train", *words(place, "3"), *TINY) == 0
    return place


def words(place: Path, clusters: str | None = None, out: str = "p", *more: str) -> list[str]:
    """Arguments of `dsmooth train` for the pair."""
    given = [] if clusters is None else ["--clusters", clusters]
    return ["pair", str(place / "images"), "--out", str(place / out), *given, *more]


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "place")


def steps(folder: Path) -> int:
    return RunFolder(folder).read_log()[-1].images


@pytest.mark.parametrize("begun", [True, False])
def test_a_pair_keeps_its_clusters(place: Path, begun: bool, capsys) -> None:
    """Whether its second noisy model is begun or not."""
    if not begun:
        shutil.rmtree(place / "p" / "noisy")
    message = "--clusters must be 3, as in "
    complains(capsys, message, "train", *words(place, "5"), *TINY, "--resume")


def test_a_pair_without_clusters_gets_none(place: Path, capsys) -> None:
    shutil.rmtree(place / "p" / "clusters")
    shutil.rmtree(place / "p" / "noisy-unnamed")
    message = "--clusters is for a new pair: "
    complains(capsys, message, "train", *words(place, "3"), *TINY, "--resume")


def test_the_number_of_clusters_is_required_where_no_file_has_it(place: Path, capsys) -> None:
    shutil.rmtree(place / "p" / "clusters")
    message = "--clusters must be given: "
    complains(capsys, message, "train", *words(place), *TINY, "--resume")


def test_clusters_of_a_model_that_is_gone_are_refused(place: Path, capsys) -> None:
    for name in ("noisy-unnamed", "noisy", "denoiser"):
        shutil.rmtree(place / "p" / name)
    labels = place / "p" / "clusters" / "labels.npz"
    message = f"{labels} has the clusters of a model that is not in {place / 'p'}/noisy-unnamed"
    complains(capsys, message, "train", *words(place, "3"), *TINY)
    labels.unlink()
    assert run("train", *words(place, "3"), *TINY) == 0


@pytest.mark.parametrize("clusters", [None, "3"])
def test_a_pair_with_clusters_is_resumed_and_extended(place: Path, clusters: str | None) -> None:
    """With or without --clusters, and --images; the first noisy model is not trained further."""
    weights = [(place / "p" / name / "model.safetensors") for name in ("noisy", "denoiser")]
    before = [path.read_bytes() for path in weights]
    for images in (TINY, []):
        assert run("train", *words(place, clusters), *images, "--resume") == 0
    assert [path.read_bytes() for path in weights] == before
    assert run("train", *words(place, clusters), "--images=64", "--resume") == 0
    seen = {name: steps(place / "p" / name) for name in ("noisy-unnamed", "noisy", "denoiser")}
    assert seen == {"noisy-unnamed": 16, "noisy": 32, "denoiser": 64}


def test_a_pair_with_clusters_can_be_moved(place: Path, monkeypatch) -> None:
    """Labels are compared by content: paths may be others, and relative to another folder."""
    (place / "p").rename(place / "q")
    (place / "sub").mkdir()
    monkeypatch.chdir(place / "sub")
    arguments = ["pair", "../images", "--clusters", "3", "--out", "../q", "--resume"]
    assert run("train", *arguments, "--images=64") == 0
    assert steps(place / "q" / "noisy") == 32
    monkeypatch.chdir(place / "q" / "clusters")
    labels = ["--labels", "./labels.npz", "--out", "../noisy", "--images=48", "--resume"]
    assert run("train", "noisy", "../../images", *labels) == 0
    assert steps(place / "q" / "noisy") == 48


def test_a_moved_pair_ends_like_one_that_stayed(place: Path) -> None:
    shutil.copytree(place / "p", place / "q")
    for out in ("p", "q"):
        assert run("train", *words(place, None, out), "--images=64", "--resume") == 0
    for role in ("noisy", "denoiser"):
        assert_same_end(place / "p" / role, place / "q" / role)


@pytest.mark.parametrize("exist", [True, False])
def test_clusters_that_exist_are_kept(place: Path, exist: bool) -> None:
    """A run that torchrun restarts has them already, and its noisy model may have begun."""
    labels = place / "p" / "clusters" / "labels.npz"
    before = labels.read_bytes()
    if exist:
        labels.write_bytes(b"")
    else:
        labels.unlink()
    options = parse(["train", *words(place, "3")])
    first, *_ = plan_runs("pair", place / "p", 3)
    cluster_data(options, first, 3)
    assert labels.read_bytes() == (b"" if exist else before)


def test_too_many_clusters_are_refused_before_any_training(place: Path, capsys) -> None:
    out = words(place, "1000", "new")
    complains(capsys, "--clusters must be at most the 2", "train", *out, *TINY)
    assert not (place / "new").exists()


def test_settings_are_completed_in_one_place() -> None:
    """No other module of training replaces a setting: they are what `resolve` returned, but for
    the end of a run with a budget."""
    package = Path(resolve.__file__).parent
    for path in package.glob("*.py"):
        if path.stem not in ("resolve", "budget"):
            assert "replace(" not in path.read_text().replace("os.replace(", "")
