"""Hostile and damaged settings, logs, pictures and arrays: an error that names the file."""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dsmooth
from dsmooth import ModelConfig, PixelCNNpp
from dsmooth.config import TrainConfig
from dsmooth.data import load_dataset
from dsmooth.data.folder import read_pictures
from dsmooth.data.sources import read_images
from dsmooth.files import read_npz, read_tensors, structured, write_tensors
from dsmooth.presets import preset
from dsmooth.pretrained.runs import RunFolder
from tests.helpers.command_runs import save_run
from tests.helpers.data_makers import random_bytes, refuses, write_images

# One of them has the right type for every field.
WRONG = (
    *(None, True, False, 0, -1, 3, 2**70, 0.5, 1e400, math.nan, "", "3", "é\n"),
    *([], [1], [1, 2], ["a", "b"], [[]], {}, {"a": 1}),
)


def mutants(values: Any) -> Iterator[tuple[str, Any]]:
    """Every document in which one value is another, is missing, or has a neighbour too many."""
    for key in list(values) if isinstance(values, dict) else range(len(values)):
        for wrong in WRONG:
            yield str(key), {**values, key: wrong} if isinstance(values, dict) else wrong
        if isinstance(values, dict):
            yield str(key), {k: v for k, v in values.items() if k != key}
            if isinstance(values[key], dict):
                for name, inner in mutants(values[key]):
                    yield name, {**values, key: inner}
    yield "extra", {**values, "extra": 1}


SMALL = ModelConfig(n_filters=2, n_resnet=1, n_mix=1, dropout=0.0)


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.full)])
def test_settings_of_the_wrong_type(tmp_path: Path, every: int) -> None:
    run, errors = RunFolder(tmp_path), list[tuple[str, str]]()
    run.write_config(preset("mnist-paper", "denoiser"), (28, 28))
    values = json.loads(run.config.read_text())
    for key, mutant in islice(mutants(values), None, None, every):
        run.config.write_text(json.dumps(mutant))
        try:
            config, size = run.read_config()
        except ValueError as error:
            errors.append((key, str(error)))
        else:
            assert key != "extra"
            settings = {k: v for k, v in mutant.items() if k not in ("dsmooth", "height_and_width")}
            assert structured(json.loads(json.dumps(settings)), TrainConfig, "") == config
            assert all(type(extent) is int for extent in size)
    assert len(errors) > 300 // every
    for key, error in errors:  # fields that contradict each other name the other one too
        names = "|".join([re.escape(key), "config.json of a run|role|atoms|batch_size"])
        assert re.fullmatch(rf"{re.escape(str(run.config))}.*({names}).*", error)


@pytest.mark.parametrize("name", ["n_filters", "n_resnet", "context_layers"])
def test_settings_bring_no_memory(tmp_path: Path, name: str) -> None:
    """Beside small weights, settings of a network of terabytes had it built."""
    before = time.process_time()
    run, model = RunFolder(tmp_path), PixelCNNpp(SMALL)
    dsmooth.save(model, run.path)
    text, state = read_tensors(run.weights)[1]["config"], model.state_dict()
    for change in (torch.Tensor.int, torch.atleast_3d):
        tensors = {key: change(value) for key, value in state.items()}
        write_tensors(run.weights, tensors, {"config": text})
        refuses(r"another shape: \d+ tensors differ", dsmooth.load, run.path)
    values = json.loads(text)
    values["networks"]["plain"][name] = 4096
    write_tensors(run.weights, state, {"config": json.dumps(values)})
    words = f"model of another shape|{name}: Expected `int` <= 256"
    refuses(rf"model\.safetensors .*({words})", dsmooth.load, run.path)
    assert time.process_time() - before < 4


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "[]", r'{"role": "\ud800"}']
)
def test_json_that_python_refuses(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    words = r"config\.json (cannot be read as a JSON object|does not fit: 'utf-8')"
    refuses(words, RunFolder(tmp_path).read_config)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_opened(tmp_path: Path, name: str) -> None:
    path = save_run(tmp_path / "run", "noisy") / name
    path.unlink()
    os.mkfifo(path)
    run = RunFolder(path.parent)
    read = run.read_config if path == run.config else run.read_weights
    refuses(rf"{name} must be a regular file", read)


def test_lines_of_a_log(tmp_path: Path) -> None:
    """Lines that are not entries are left out; the others are kept."""
    run = RunFolder(tmp_path)
    entries = [
        {"event": "start", "images": 0, "seconds": 0.0, "total": 8, "loss": "bits/dim"},
        {"event": "step", "images": 8, "seconds": 1.0, "bits_per_dim": 2, "images_per_second": 8.0},
    ]
    whole = [json.dumps(entry).encode() for entry in entries]
    run.log.write_bytes(b"\n".join(whole))
    kept = run.read_log()
    assert len(kept) == 2
    for entry, line in zip(entries, whole, strict=True):
        mutated = [json.dumps(mutant).encode() for _, mutant in mutants(entry)]
        for damaged in (*mutated, line[:-3], b"\xff" + line, b"[1]", b"3", b"[" * 10**5):
            run.log.write_bytes(b"\n".join([*whole, damaged, *whole]) + b"\n")
            found = run.history()
            assert found[-2:] == kept
            assert all(type(entry.images) is int for entry in found)
            run.is_finished()


def png(width: int, height: int, depth: int = 1, colour: int = 0) -> bytes:
    """A black PNG, grey or RGB (colour 2); its rows compress 1,000 times."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    row = 1 + (width * depth * (colour + 1) + 7) // 8
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(row * height))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def pages(kind: str) -> bytes:
    """Two of them, in a form that holds several."""
    from PIL import Image

    first, second = (Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (3, 200))
    buffer = io.BytesIO()
    several = {"append_images": [second]} if kind in ("PNG", "TIFF", "MPO") else {}
    first.save(buffer, kind, save_all=bool(several), **several)
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"

# Suffix and content of a file, and a pattern of the error.
PICTURES: dict[str, tuple[str, bytes | Callable[[Path], object], str]] = {
    "EPS, which Ghostscript runs": ("png", EPS, "as an image .cannot identify"),
    "a named pipe": ("png", os.mkfifo, "must be a regular file"),
    "an endless device": ("png", lambda p: p.symlink_to("/dev/zero"), "must be a regular file"),
    "a link to nothing": ("png", lambda p: p.symlink_to("gone"), "No such file"),
    "a sparse file": (
        "png",
        lambda p: os.truncate(os.open(p, 65), 1 << 40),
        "as an image .cannot identify",
    ),
    "a PNG of too many pixels": ("png", png(14000, 14000), "exceeds limit"),
    "an animated PNG": ("png", pages("PNG"), "must hold one image"),
    "a TIFF": ("png", pages("TIFF"), "cannot identify"),
    "a cut PNG": ("png", png(8, 8)[:42], "cannot be read"),
    "a PNG with a changed bit": ("png", png(8, 8).replace(b"IDAT", b"IDAU"), "cannot be read"),
    "a cut JPEG": ("jpg", pages("JPEG")[:-200], "cannot be read"),
    "a cut BMP": ("bmp", pages("BMP")[:-9], "cannot be read"),
    "a cut WEBP": ("webp", pages("WEBP")[:-9], "cannot be read"),
    "a PNG of 16 bits": ("png", png(8, 8, 16, 2), "must have 8 bits"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_hostile_picture(tmp_path: Path, name: str) -> None:
    suffix, content, message = PICTURES[name]
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    errors = (ValueError, OSError)
    assert str(path) in refuses(message, read_pictures, [path], size=8, error=errors)


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}}}\n"
ARRAYS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "cannot be read"),
    "short": (npy_header(HEADER.format("|u1", "(9, 9)")), "cannot be read"),
    "a promise": (npy_header(HEADER.format("|u1", (1 << 60,))), "cannot be read"),
    "objects": (npy_header(HEADER.format("|O", (1,))) + b"N.", "pickle"),
    "a cut header": (npy_header("{'descr': '<f4', 'shape': (1,\n") + bytes(4), "cannot be read"),
    "brackets": (npy_header("(" * 9000), "cannot be read"),
    "an empty .npz": (b"PK\x05\x06" + bytes(18), "cannot be read"),
    "a changed magic word": (npy_header(HEADER.format("|u1", (2,)))[1:] + b"ab", "cannot be read"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_hostile_array(tmp_path: Path, name: str) -> None:
    """In a .npz, and as a .npy."""
    content, message = ARRAYS[name]
    npz, npy = tmp_path / "x.npz", tmp_path / "x.npy"
    with zipfile.ZipFile(npz, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    if content.startswith(b"\x93NUMPY"):  # numpy gives the bytes of other members
        assert str(npz) in refuses(message, read_npz, npz)
    npy.write_bytes(content)
    refuses(f"{npy} cannot be read as a .npy without pickled", read_images, npy)


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        write_images(folder, {f"{i}.png": random_bytes((8, 8), seed=i) for i in range(5)})
        for i in range(5):
            os.rename(folder / f"{i}.png", os.fsencode(folder) + b"/%d\xff.png" % i)
    except OSError:
        pytest.skip("this file system takes only names of UTF-8")
    whole = load_dataset("folder", "all", folder)
    assert len(whole) == 5
    whole.source.encode()
    assert r"caf\xe9" in whole.source
    Path(os.fsdecode(os.fsencode(folder) + b"/3\xff.png")).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"caf\\xe9/3\\xff.png cannot be read") as error:
        load_dataset("folder", "all", folder)
    str(error.value).encode()


def test_pages_of_another_picture_after_a_jpeg_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(pages("MPO"))
    images = read_pictures([path], size=8)
    assert images.shape == (1, 3, 8, 8)
    assert (images.int() - 3).abs().max() <= 2
