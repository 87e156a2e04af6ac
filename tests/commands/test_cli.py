"""The command: help without torch, lines for mistakes; what it prints runs and harms nothing."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from unittest.mock import MagicMock, Mock, call

import pytest

import dsmooth
from dsmooth import cli
from dsmooth.cli import explain, parse
from dsmooth.commands.reproduce import runs_of
from dsmooth.data import load_dataset
from dsmooth.fields import SettingError
from dsmooth.machine import keep_freed_memory
from dsmooth.presets import PRESETS
from dsmooth.pretrained.runs import RunFolder
from dsmooth.progress import (
    LOG,
    advance_to,
    lines_shown,
    progress,
    progress_bar,
    shows_bars,
)
from dsmooth.text import Table, significant
from tests.helpers.command_runs import SMALLER, complains, run, save_run, settings_of
from tests.helpers.data_makers import random_bytes, write_images

TINY = ["--n-filters=4", "--n-resnet=1", "--set", "n_mix=2", "--images=16", "--batch-size=8"]


@pytest.mark.long
def test_the_command_imports_what_it_needs(tmp_path: Path) -> None:
    """torch._dynamo, Triton, torchvision and sympy take as long to import as torch itself."""
    plain = save_run(tmp_path / "plain", "plain")
    code = (
        "import sys; from dsmooth.cli import main\n"
        "for verb in (['train'], ['sample'], ['complete'], ['evaluate'], ['probe'],"
        " ['reproduce'], ['doctor'], []):\n"
        "    assert main([*verb, '--help']) == 0\n"
        "print({'torch'} & {*sys.modules})\n"
        "import dsmooth.data; dsmooth.data.load_dataset('mnist', 'test')\n"
        "print({'PIL', 'torchvision', 'dsmooth.nn'} & {*sys.modules})\n"
        "import torch; from dsmooth.evaluate.linear import train_linear\n"
        "rows = torch.ones(2, 2), torch.arange(2); train_linear(rows, rows, 2, epochs=1)\n"
        f"assert main(['sample', {str(plain)!r}, '-n', '1']) == 0\n"
        "print({'torch._dynamo', 'triton', 'torchvision', 'sympy'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines().count("set()") == 3
    assert done.stdout.count("usage: dsmooth") == 8
    assert all(name in done.stdout for name in PRESETS)


@pytest.mark.quick
def test_waiting_threads_sleep_soon_unless_the_user_says_how(monkeypatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert run("--version") == 0
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    run("--version")
    assert int(os.environ.pop("GOMP_SPINCOUNT")) < 300_000
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    run("--version")
    assert "GOMP_SPINCOUNT" not in os.environ


def test_freed_memory_is_kept_unless_the_user_says_how(monkeypatch) -> None:
    """By two calls of mallopt, with constants of malloc.h; older libraries reject the largest."""
    library = Mock()
    monkeypatch.setattr("dsmooth.machine.ctypes.CDLL", lambda name: library)
    monkeypatch.setattr("os.environ", {})
    for accepts in (1, 0):
        library.mallopt.side_effect = lambda option, size, accepts=accepts: accepts
        keep_freed_memory()
    largest, smaller = call(-3, 2**30), call(-3, 2**25)
    trim = call(-1, 2**31 - 1)
    assert library.mallopt.mock_calls == [trim, largest, trim, largest, smaller]
    monkeypatch.setattr("os.environ", {"MALLOC_ARENA_MAX": "1"})
    keep_freed_memory()
    assert library.mallopt.call_count == 5


VERBS = ("train", "sample", "complete", "cluster", "probe", "reproduce", "doctor", "evaluate", "")


@pytest.mark.parametrize("command", [*VERBS, "evaluate bpd", "evaluate fid"])
def test_help_is_for_people(capsys, monkeypatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(*command.split(), "--help") == 0
    text = capsys.readouterr().out
    assert f"usage: {' '.join(['dsmooth', *command.split()])} [" in text
    # The verbs in braces are one word.
    lines = [line for line in text.splitlines() if not line.startswith("usage: dsmooth [-h] {")]
    assert max(map(len, lines)) <= 80
    verb = cli.VERBS.get(command)
    about = verb.__doc__ if isinstance(verb, type) else ""
    assert " ".join(about.split()) in " ".join(text.split())
    assert "Raises" not in text
    assert "(default: )" not in text
    if command not in ("", "doctor", "evaluate"):
        assert all(f"--{name}" in text for name in ("device", "threads"))
    assert len(text.splitlines()) <= 80  # two screens


def test_paths_may_begin_at_home(monkeypatch, capsys) -> None:
    """Names that no user has stay."""
    monkeypatch.setenv("HOME", "/me")
    settings = settings_of(capsys, "noisy --data-dir=~/a --labels ~")
    assert (settings["data_dir"], settings["labels"]) == ("/me/a", "/me")
    found = parse(["sample", "~/b", "~no-one/c", "--out", "~/x.png", "--label", "~"])
    paths = (*found.models, *found.out, parse(["probe", "a", "--data-dir", "~"]).dataset.data_dir)
    assert [*map(str, paths)] == ["/me/b", "~no-one/c", "/me/x.png", "/me"]
    assert found.drawing.label == "~"


def test_the_traceback_of_an_error_is_shown_on_request(monkeypatch, capsys) -> None:
    monkeypatch.setenv("DSMOOTH_TRACEBACK", "1")
    assert run("sample", "-n", "0") == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback")
    assert last == "dsmooth: error: --count must be a whole number >= 1, got 0"


def test_settings_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line wins."""
    file = tmp_path / "settings.json"
    values = {**settings_of(capsys, "noisy"), "batch_size": 7}
    file.write_text(json.dumps(values))
    config = f"--config {file}"
    assert settings_of(capsys, f"noisy {config}") == values
    changed = settings_of(capsys, f"noisy {config} --batch-size 3")
    assert changed == {**values, "batch_size": 3}
    for name in ("colour", "model.n_filters"):
        file.write_text(json.dumps({**values, name: 1}))
        message = f"dsmooth: error: {file} does not fit: TrainConfig has no field {name}"
        complains(capsys, message, "train", "noisy", *config.split())


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("", {"images": 24_000, "budget": None}),
        ("--preset photos --data cifar10", {"image_size": None}),
        ("--preset photos --data folder", {"image_size": 32}),
        ("--data cifar10", {"image_size": None, "scale": 0.2}),
        ("--data celeba", {"image_size": 32, "scale": 0.2}),
        ("--preset mnist --budget 2", {"images": None, "budget": 2.0}),
        ("--preset mnist-paper --set flip=false --seed 3", {"optimizer": "adam", "seed": 3}),
    ],
)
def test_only_the_options_decide_the_settings(words, values, capsys) -> None:
    settings = settings_of(capsys, f"noisy {words}")
    assert {name: settings[name] for name in values} == values


@pytest.mark.usefixtures("place")
def test_folders_grow_and_rates_are_of_what_was_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    for count, words in (("2", "wrote x\n2 images in "), ("5", "wrote x\n3 images in ")):
        assert run("sample", "plain", "--out", "x", "-n", count) == 0
        assert words in (said := capsys.readouterr().out)
    assert said.endswith(" img/s) (2 already existed)\n")
    save_run(Path("larger"), "plain", size=12, data="folder", data_dir="images")
    complains(capsys, "its image_size is [8, 8], not [12, 12]", "sample", "larger", "--out", "x")


def test_a_pair_of_a_folder_by_one_command(tmp_path, monkeypatch, capsys) -> None:
    """Each network has its own settings. The runs say what they train on, and what is next."""
    monkeypatch.chdir(tmp_path)
    pixels = random_bytes((12, 8, 8, 3))
    write_images(tmp_path / "images", {f"{i}.png": picture for i, picture in enumerate(pixels)})
    options = [*TINY, "--set", "evaluations=1", "--precision", "float32"]
    assert run("train", "pair", "images", "--out", "mine", *options) == 0
    train = len(load_dataset("folder", "train", "images"))
    lines = capsys.readouterr().out.splitlines()[2:]  # after those of reading
    assert f"{train} images to train on and {12 - train} held out, RGB, 8 x 8" in lines[0]
    assert re.search(r"parameters; cpu .* float32$", lines[1])
    assert "wrote mine/denoiser/model.safetensors" in lines[-2]
    roles = ("noisy", "denoiser")
    spent = ", ".join(f"{r} {RunFolder(Path('mine') / r).seconds() / 60:.1f}" for r in roles)
    assert f"minutes of training: {spent}; next: `dsmooth sample mine`" in lines[-1]
    assert "next:" not in "".join(lines[:-1])
    for role, conditioning in (("noisy", "none"), ("denoiser", "concat")):
        config, size = RunFolder(Path("mine") / role).read_config()
        assert (config.model.conditioning, config.model.image_channels) == (conditioning, 3)
        assert (config.scale, config.image_size, size) == (0.2, None, (8, 8))
    words = ["train", "noisy", "images", "--out", "grey", "--images=8", "--init", "mnist"]
    complains(capsys, "--init mnist has image_channels 1, not 3", *words)


def test_a_folder_means_two_options_wherever_it_is_given(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "damaged.png").write_bytes(b"no image")  # read by none of these
    save_run(tmp_path / "run", "noisy")
    for options, folder in (
        *(("", spelt) for spelt in ("images", "images/", "./images")),
        *((f"{several} ", "images") for several in ("--budget 1", "--flip")),
        ("--config run/config.json ", "images"),
        ("--out run --resume ", "images"),
    ):
        named = settings_of(capsys, f"noisy {options} --data folder --data-dir images")
        assert settings_of(capsys, f"noisy {options}{folder}") == named
    assert run("train", "noisy", "images", "-h") == 0
    assert "default: -h" not in capsys.readouterr().out


def test_a_pair_divides_only_given_minutes_and_may_be_called_pair(tmp_path, monkeypatch, capsys):
    """A resumed run has its half in its settings."""
    monkeypatch.chdir(tmp_path)
    for role in ("noisy", "denoiser"):
        trained = RunFolder(save_run(Path("pair") / role, role))
        config, size = trained.read_config()
        trained.write_config(replace(config, budget=1.0), size)
    for words, minutes in (("", 1.0), ("--budget 8", 4.0)):
        plan = settings_of(capsys, f"--out pair pair --data-dir pair --resume {words}")
        for role in ("noisy", "denoiser"):
            settings = plan[role]
            assert settings["role"] == role
            assert (settings["budget"], settings["data_dir"]) == (minutes, "pair")
    os.renames("pair", "runs/pair")  # its folder by default
    assert settings_of(capsys, "pair --resume")["noisy"]["budget"] == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate bbd", "Available subcommands: bpd, fid"),
        ("evaluate fid x --extracter y", "has no option --extracter: did you mean --extractor?"),
        ("probe pair --epochs 0", "`epochs` must be a whole number >= 1, got 0"),
        ("sample -n \x1b[2J", r"invalid literal for int() with base 10: '\\x1b[2J'"),
        ("evaluate \x9b\u202e", r"Unrecognized options: \x9b\u202e"),
        ("doctor \x07", r"Unrecognized options: \x07"),
    ],
)
def test_unknown_words_are_refused(words: str, message: str, capsys) -> None:
    """And what would act on a terminal is shown."""
    assert run(*words.split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert not {*"\x1b\x9b\u202e\x07"} & {*said}


SMALLEST = f"--data folder --data-dir images {SMALLER['train']}"
# Folders that a reader is to name.
PLACES = {"NOISY": "runs/noisy", "DENOISER": "runs/denoiser", "FOLDER": "images"}


def commands_in(text: str) -> set[str]:
    """The commands between backquotes, in elements <code>, and in fenced blocks."""
    found = re.findall(r"`((?:dsmooth|torchrun) [^`]+)`", text)
    found += map(unescape, re.findall(r"<code>(dsmooth [^<]+)</code>", text))
    for block in text.split("```")[1::2]:
        if block.startswith("\n"):  # of no language
            found += block.splitlines()[1:]
    return set(found)


def follow(command: str) -> None:
    """Run a command as a reader would; what takes long at its smallest, or up to its first step."""
    words = [PLACES.get(word, word) for word in shlex.split(command, comments=True)]
    arguments = words[words.index("dsmooth") + 1 :]
    if arguments[0] == "reproduce":
        assert runs_of(parse(arguments))
        return
    if arguments[0] == "train" and not {"--resume", "--print-config"} & {*arguments}:
        arguments.append("--print-config")
    arguments += {"sample": ["-n", "4"], "evaluate": ["--limit", "2"]}.get(arguments[0], [])
    assert run(*arguments) == 0, command


@pytest.mark.long
@pytest.mark.usefixtures("few_digits", "small_models")
def test_every_printed_command_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = random_bytes((30, 8, 8, 3))
    write_images(tmp_path / "images", {f"{i}.png": picture for i, picture in enumerate(pixels)})
    for role, out in (("noisy", "noisy"), ("denoiser", "denoiser"), ("plain", "my plain")):
        assert run("train", role, "--out", f"runs/{out}", *SMALLEST.split()) == 0
    texts = [capsys.readouterr().out]
    for models in ("runs/noisy DENOISER", "NOISY runs/denoiser", "'runs/my plain'"):
        assert f"`dsmooth sample {models}`" in texts[0]
    for name in ("runs", "mnist"):
        dsmooth.SmoothedPair.from_pretrained(name).save_pretrained("pair")
        texts.append(Path("pair/README.md").read_text())
    commands = set().union(*map(commands_in, texts))
    assert len(commands) >= 4
    for command in sorted(commands):
        follow(command)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SettingError("data_dir", "must be /a/data_dir/b"), "--data-dir must be /a/data_dir/b"),
        (SettingError(("data_dir", "layer"), "x"), "--data-dir and `layer` x"),
        (SettingError((), "begin by", init="my run"), "begin by --init 'my run'"),
        (SettingError("pooling", "x", resume=True, seed=3), "--pooling x --resume or `seed=3`"),
        (ValueError("`data_dir` in `pip install .`"), "`data_dir` in `pip install .`"),
        (RuntimeError("a bug"), None),
        (MemoryError(), "not enough memory"),
        (RuntimeError("can't start new thread"), "not enough memory: can't start new thread"),
    ],
)
def test_what_the_command_says_of_an_error(error: Exception, line: str | None) -> None:
    """Its options by the arguments that the error carries."""
    assert explain(error, {"data_dir", "resume", "pooling", "init"}) == line
    assert explain(ArithmeticError("it diverged")) == "it diverged"


def result(text: str) -> object:
    """The numbers in a record."""
    return json.loads(text)["result"]


@pytest.mark.usefixtures("small_models")
def test_silence_numbers_and_folders(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--limit", "2", "--n-noise", "1", "--device", "cpu"]
    assert run("evaluate", "bpd", "mnist", *options, "--out", "a/b/bits.json") == 0
    assert run("sample", "-n", "1", "--seed", "None", "--out", "c/x.png") == 0
    assert "drew seed " in capsys.readouterr().err
    assert Path("c/x.png").exists()
    numbers = {}
    for precision in ("float32", "bfloat16"):
        words = ["bpd", "mnist", *options, "--out", "-", "--precision", precision]
        assert run("evaluate", *words) == 0
        numbers[precision], errors = capsys.readouterr()
        assert errors == ""
    assert result(numbers["float32"]) == result(Path("a/b/bits.json").read_text())
    assert numbers["bfloat16"] != numbers["float32"]
    assert not Path("-").exists()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("WORLD_SIZE", "x", "RANK or WORLD_SIZE cannot be read as a whole number "),
        ("WORLD_SIZE", "0", "`WORLD_SIZE` must be at least 1, got 0"),
        ("RANK", "1", "`RANK` must lie in 0 .. 0, got 1"),
    ],
)
def test_variables_of_torchrun_that_do_not_fit(name, value, why, monkeypatch, capsys) -> None:
    monkeypatch.setenv(name, value)
    assert run("doctor") == 1
    assert capsys.readouterr().err.startswith(f"dsmooth: error: {why}")


def test_words_of_a_strangers_file_do_nothing_to_a_terminal(tmp_path, capsys) -> None:
    evil = "\x1b[2J\x9b\u202e\ud800"
    path = tmp_path / f"{evil[:-1]}.json"
    for values in ({evil: 1}, {"role": evil}, {"noisy": 1, evil: 2}):
        path.write_text(json.dumps({"height_and_width": [8, 8], "model": {}, **values}))
        for words in (["--config", str(path)], ["--out", str(path)]):
            assert run("train", "noisy", *words, "--resume") == 1
    with lines_shown():  # pytest keeps what is logged, and sends no half of a letter on
        LOG.info("a note: %s", evil[:-1])
        LOG.warning(evil[:-1])
    Table([""], [[evil]], evil).show()
    printed = "".join(capsys.readouterr())
    assert not set(evil) & set(printed) - set("[2J")
    assert printed.count(r"\x1b[2J") > 6


@pytest.mark.usefixtures("small_models")
def test_a_closed_or_narrow_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    narrow = io.TextIOWrapper(written, "ascii")
    for stream in (narrow, None):
        monkeypatch.setattr("sys.stdout", stream)
        assert run("evaluate", "bpd", "mnist", "--limit", "1", "--out", "-") == 0
    sys.stdout.close()  # the replacement of the closed one
    narrow.flush()
    assert b'"discrete"' in written.getvalue()


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_full_standard_output(option: str) -> None:
    command = [sys.executable, "-m", "dsmooth", option]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "dsmooth: error: [Errno 28] No space left on device\n"


def test_significant_digits() -> None:
    cases = {(12_812.0, 3): "12,800", (999.6, 3): "1,000", (0.046812, 3): "0.0468", (0.0, 3): "0"}
    assert {case: significant(*case) for case in cases} == cases


def test_the_unit_is_named(monkeypatch, capsys) -> None:
    seconds = iter([0.0, 30.0, 30.0, 30.0, 180.0])
    monkeypatch.setattr("dsmooth.progress.time.monotonic", lambda: next(seconds))
    with progress("training", 20, "epochs"):
        advance_to(4.5 / 20)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["training: 20 epochs", "training: 4/20 (22 %), 0:01:43 left"]
    assert lines[2] == "training: done in 180.0 s"


@pytest.mark.parametrize(
    ("module", "terminal", "widgets", "shows"),
    [
        *(("io", True, False, True), ("io", False, True, False)),
        *(("ipykernel.iostream", False, True, True), ("ipykernel.iostream", True, False, False)),
    ],
)
def test_bars_are_for_terminals_and_notebooks(monkeypatch, module, terminal, widgets, shows):
    stream = type("Stream", (), {"__module__": module, "isatty": lambda self: terminal})()
    monkeypatch.setattr("dsmooth.progress.find_spec", lambda name: widgets or None)
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("rich.progress.Progress", MagicMock())
    assert shows_bars() == shows
    with progress_bar("training", 10) as bar:
        assert (bar is not None) == shows
