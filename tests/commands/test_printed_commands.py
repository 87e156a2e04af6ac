"""Sentences for users: every command that is printed runs, and errors name arguments as given."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from html import unescape
from pathlib import Path
from unittest.mock import MagicMock

import pytest

import dsmooth
from dsmooth.cli import explain, parse
from dsmooth.commands.reproduce import runs_of
from dsmooth.fields import SettingError
from dsmooth.progress import (
    LOG,
    advance_to,
    lines_shown,
    progress,
    progress_bar,
    shows_bars,
    significant,
)
from dsmooth.text import Table
from tests.helpers.command_runs import SMALLER, run
from tests.helpers.data_makers import random_bytes, write_images

TINY = f"--data folder --data-dir images {SMALLER['train']}"
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
        assert run("train", role, "--out", f"runs/{out}", *TINY.split()) == 0
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
    narrow = io.TextIOWrapper(io.BytesIO(), "ascii")
    for stream in (narrow, None):
        monkeypatch.setattr("sys.stdout", stream)
        assert run("evaluate", "bpd", "mnist", "--limit", "1", "--out", "-") == 0
    sys.stdout.close()  # the replacement of the closed one
    narrow.flush()
    assert b"discrete bound" in narrow.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_full_standard_output(option: str) -> None:
    command = [sys.executable, "-c", "from dsmooth.cli import main; main()", option]
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
