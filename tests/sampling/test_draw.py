"""A draw: its parts are its images, folders continue; known pixels stay and decide the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dsmooth
from dsmooth import cuda
from dsmooth import progress as progress_module
from dsmooth._extension import warn_once
from dsmooth.commands.sample import check_outputs
from dsmooth.commands.train import next_step
from dsmooth.data import to_bytes
from dsmooth.data.pictures import grid_png
from dsmooth.data.sources import read_images
from dsmooth.files import check_writable, lock_folder
from dsmooth.pretrained.runs import RunFolder
from dsmooth.sampling import (
    CachedSampler,
    keep_top,
    output,
    sample_images,
    sequential_sample,
    two_step,
)
from dsmooth.sampling import resolve as resolution
from dsmooth.sampling.cached import PackedNetwork
from dsmooth.sampling.draw import Draw
from dsmooth.sampling.resolve import resolve
from dsmooth.sampling.two_step import draw
from dsmooth.work import batches
from tests.helpers.command_runs import complains, run
from tests.helpers.data_makers import refuses
from tests.helpers.networks import BYTES, CLASSES, images, network, numbered, tiny_pair
from tests.helpers.sampler_checks import (
    FIRST,
    SEED,
    context_for,
    make_sampler,
    teacher_forced,
)

pytestmark = pytest.mark.quick

X, MASK = torch.zeros(2, 1, 8, 8), torch.ones(2, 8, 8, dtype=torch.bool)
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"seed": -1}, "`seed` must lie in"),
    ({"first_index": 2**63 - 1}, "`first_index` must lie in"),
    ({"temperature": 0.0}, "`temperature` must be positive"),
    ({"temperature": 1e39}, "`temperature` must be positive and a normal float32, got 1e\\+39"),
    ({"guidance": -0.5}, "`guidance` must be 0, or positive and a normal float32, got -0.5"),
    ({"guidance": 1e-46}, "`guidance` must be 0, or .* got 1e-46"),
    ({"threads": 0}, "`threads` must be at least 1"),
    ({"method": "three-step"}, "`method` must be one of"),
    ({"max_slice": 0}, "`max_slice` must be at least 1"),
    ({"n": 0}, "`count` must be at least 1, got 0"),
    ({"n": 2.5}, r"`count` must be a whole number, got 2\.5"),
    ({"n": 10**12}, "images take 256,000,000,000,000 bytes"),
    ({"height": 6}, "`height` and `width` must be .* multiples of 4, got .6, 8"),
    ({"width": 0}, "`height` and `width` must be .* multiples of 4, got .8, 0"),
    ({"context": X}, "context was given, but"),
    ({"known": X}, "known and mask go together"),
    ({"mask": MASK}, "known and mask go together"),
    ({"known": X, "mask": MASK.float()}, "mask must be bool, got float32"),
    (
        {"known": X.byte(), "mask": MASK},
        "known must be a floating-point tensor in .*, got torch",
    ),
    ({"known": X[0], "mask": MASK}, r"known must have shape \(1, 1, 8, 8\), got \(1, 8, 8\)"),
    ({"known": X.expand(2, 3, 8, 8), "mask": MASK}, r"known must have shape \(2, 1, 8, 8\), got"),
    ({"known": X, "mask": MASK[:, :4]}, r"mask must have .*\(2, 8, 8\), got \(2, 4, 8\)"),
    ({"known": X.double(), "mask": MASK}, "known must be float32, got float64"),
    ({"known": X.log(), "mask": MASK}, "known pixels must be finite, got a NaN or an infinity"),
    ({"known": X, "mask": MASK.to("meta")}, "mask must be on cpu, got meta"),
    ({"temprature": 1}, "unexpected keyword argument 'temprature'"),
]
OF_A_DENOISER: list[tuple[dict[str, Any], str]] = [
    ({"context": None}, "context is missing"),
    ({"context": X[:1]}, r"context must have shape \(2, 1, 8, 8\), got \(1, "),
    ({"context": X.double()}, "context must be float32, got float64"),
    ({"context": X.to("meta")}, "context must be on cpu, got meta"),
]
OF_A_REQUEST = {"seed", "first_index", "temperature", "guidance", "method"}


@pytest.fixture(scope="module")
def pair() -> dsmooth.SmoothedPair:
    return tiny_pair("continuous", "stack")


def test_numbers_of_numpy_and_torch_are_those_numbers() -> None:
    count, seed, last, half = np.int64(2), np.int32(4), np.int32(2**31 - 1), np.float32(0.5)
    given = {"seed": seed, "first_index": last, "temperature": half}
    whole = resolve(network(), count, size=(4, 4), **given)  # type: ignore[arg-type] # on purpose
    found = (whole.indices, whole.seed, whole.temperature)
    assert found == (range(2**31 - 1, 2**31 + 1), 4, 0.5)
    assert [*map(type, (whole.indices.start, *found[1:]))] == [int, int, float]
    expected = sample_images(network(), 2, height=4, width=4, seed=4, first_index=int(last))
    for seed in (np.int32(4), np.uint64(4), torch.tensor(4)):
        x = sample_images(network(), 2, height=4, width=4, seed=seed, first_index=last)
        assert torch.equal(x, expected)


@pytest.mark.parametrize(
    ("role", "arguments", "message"),
    [*(("noisy", *row) for row in MISTAKES), *(("denoiser", *row) for row in OF_A_DENOISER)],
)
def test_every_entry_point_checks(pair, role, arguments, message) -> None:
    names = set(arguments)
    model, given = getattr(pair, role), {"n": 2, "height": 8, "width": 8, **arguments}
    doors: list[Any] = []
    if names <= OF_A_REQUEST:
        doors.append(lambda: resolve(pair, 2, **arguments))
    if names <= {*OF_A_REQUEST, "threads", "known", "mask"}:
        doors.append(lambda: pair.sample(2, **arguments))
        doors.append(lambda: pair.denoise(X, **arguments))
    if not names & {"method", "threads", "max_slice"}:
        doors.append(lambda: sequential_sample(model, **given))
    if not names & {"method"}:
        doors.append(lambda: CachedSampler(model).sample(**given))
    for door in doors:
        refuses(message, door, error=(ValueError, TypeError))


def test_an_image_that_disagrees_with_its_noisy_one_is_drawn_again(monkeypatch) -> None:
    """As a function of its seed and index; the first draw is kept where all attempts disagree."""
    pair = tiny_pair()
    denoiser, scale = pair.denoiser, 0.15
    pair.smoothing = replace(pair.smoothing, scale=scale)
    torch.manual_seed(0)
    x_tilde, n, first = torch.rand(12, 1, 8, 8) - 0.5, 12, 2**32 - 4
    original, seeds = PackedNetwork.run, set[int]()
    monkeypatch.setattr(
        PackedNetwork, "run", lambda self, d: seeds.add(d.seed) or original(self, d)
    )
    x = pair.denoise(x_tilde, seed=2**64 - 1, first_index=first)
    assert len(seeds) == two_step.ATTEMPTS + 1
    expected: list[torch.Tensor] = []
    attempts = set()
    for i in range(n):
        drawn: list[torch.Tensor] = []
        for attempt in range(two_step.ATTEMPTS + 1):
            seed, seen = (2**64 - 1) ^ attempt << 59, x_tilde[i : i + 1]
            where = {"height": 8, "width": 8, "seed": seed, "first_index": first + i}
            drawn.append(sample_images(denoiser, 1, context=seen, **where)[0])
            rows = (drawn[-1] - seen[0]).div(scale).square().mean((0, 2))
            if rows.max() < 9.18326:  # the quantile of chi-square / 8
                break
        expected.append(drawn[-1 if rows.max() < 9.18326 else 0])
        attempts.add(len(drawn))
    assert torch.equal(x, torch.stack(expected))
    assert {1, two_step.ATTEMPTS + 1} < attempts
    whole = resolve(pair, x_tilde=x_tilde, seed=2**64 - 1, first_index=first)
    parts = [draw(whole.part(part)) for part in batches(n, 5)]
    assert torch.equal(torch.cat(parts), x)
    pair.smoothing = dsmooth.LaplaceSmoothing(0.01)
    again = sample_images(denoiser, n, height=8, width=8, context=x_tilde)
    assert torch.equal(pair.denoise(x_tilde), again)


def test_a_generator_gives_the_seed(pair: dsmooth.SmoothedPair) -> None:
    """Whatever torch's own generator is; each call takes the next number of it."""

    def drawn(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [pair.sample(1, generator=generator) for _ in range(2)]

    torch.manual_seed(0)
    first = drawn(5)
    torch.manual_seed(1)
    assert all(map(torch.equal, drawn(5), first))
    assert not torch.equal(*first)
    assert not torch.equal(drawn(6)[0], first[0])


def test_progress_is_of_the_images_that_are_drawn(pair, monkeypatch) -> None:
    """By rows of the sequential sampler, by batches and steps of a pair, and within a call."""
    seen: list[float] = []

    @contextmanager
    def show(*_: object) -> Iterator[Any]:
        yield seen.append

    monkeypatch.setattr(progress_module, "_shown", show)
    with progress_module.progress("drawing", 8):
        sample_images(network().double(), 1, height=8, width=4)
    assert seen == [*range(1, 9)]
    seen.clear()
    with progress_module.progress("drawing", 5):
        pair.sample(5, batch_size=2)
    assert {1, 2, 3, 4, 4.5, 5} <= {*seen}
    seen.clear()
    slow = CachedSampler(network(n_filters=40, n_resnet=3))
    with progress_module.progress("drawing", 1):
        slow.sample(24, 28, 28)
    assert (seen, seen[-1]) == (sorted(seen), 1)
    assert any(0 < done < 1 for done in seen)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("method", ["two-step", "noisy", "single-step"])
def test_a_diverged_image_costs_no_other(method: str, monkeypatch, capsys) -> None:
    original, diverged = PackedNetwork.run, list[int]()

    def diverge(self: PackedNetwork, drawn: Draw) -> torch.Tensor:
        x = original(self, drawn)
        if drawn.x_tilde is None:  # x~
            x[diverged, 0, 0, 0] = torch.inf
        return x

    monkeypatch.setattr(PackedNetwork, "run", diverge)
    command = ["sample", ".", "-n", "4", "--device", "cpu", "--method", method]
    assert run(*command, "--out", "right.npz") == 0
    diverged.append(2)
    for outputs in (["q.png", "q.npz"], ["folder"]):
        assert run(*command, "--out", *outputs) == 0
        assert "1 of 4 images diverged" in capsys.readouterr().out
    x, expected = (np.load(f"{name}.npz")["x"] for name in ("q", "right"))
    assert np.array_equal(np.delete(x, 2, 0), np.delete(expected, 2, 0))
    assert not np.isfinite(x[2]).all()
    x[2] = 0  # grey
    assert Path("q.png").read_bytes() == grid_png(torch.from_numpy(x))
    diverged[:] = range(4)
    complains(capsys, "4 of 4 images diverged", *command, "--out", "none.npz")


@pytest.mark.usefixtures("place")
def test_a_noisy_model_alone_draws_as_in_its_pair(capsys) -> None:
    dsmooth.save(dsmooth.load("noisy").networks["noisy"], "weights")  # without the noise
    command = ["sample", "-n", "3", "--device", "cpu", "--method"]
    for method in ("noisy", "single-step"):
        for models in (["noisy"], ["noisy", "denoiser"]):
            assert run(*command, method, *models, "--out", f"{len(models)}.npz") == 0
        alone, of_pair = (np.load(f"{n}.npz")["x"] for n in (1, 2))
        assert np.array_equal(alone, of_pair)
    complains(capsys, "--method needs the noise, which", *command, "single-step", "weights")
    trained = RunFolder("noisy")
    words = next_step({trained: trained.read_config()[0]})
    (named,) = re.findall("`dsmooth (.* single-step)`", words)
    assert run(*named.split(), "-n", "3", "--device", "cpu", "--out", "named.npz") == 0
    assert np.array_equal(np.load("named.npz")["x"], alone)


@pytest.mark.usefixtures("place")
def test_a_gpu_without_the_sampler_leaves_the_drawing_to_the_cpu(stub, monkeypatch, caplog) -> None:
    """Too old a card, and one that vanished."""
    caplog.set_level("INFO", "dsmooth")
    monkeypatch.setattr(resolution, "choose_device", lambda _: torch.device("cuda", 1))
    for major, vanished, words in ((7, False, r"compute capability 7\.5"), (9, True, "an error")):
        stub.set_card(major, 5)
        if vanished:
            stub.fail("cuDeviceGet", 46)
        cuda._load.cache_clear()
        caplog.clear()
        assert run("sample", ".", "-n", "2", "--seed", "1", "--out", f"{major}.npz") == 0
        assert re.search(
            f"drawing on the CPU: .*{words}.*; device cuda:1 draws pixel by", caplog.text
        )
    monkeypatch.setattr(cuda, "unavailable_reason", lambda: "no compiler")  # nor does the CPU
    assert resolution.drawing_device("auto") == torch.device("cuda", 1)


class White(dsmooth.PixelCNNpp):
    """Its pixels are white."""

    def given_vector(self, *inputs: Any) -> torch.Tensor:
        params = super().given_vector(*inputs)
        return torch.where(torch.arange(params.shape[1]).view(-1, 1, 1) < 6, params * 0 + 1, -7)


def hook(_: object, inputs: Any) -> Any:
    return (inputs[0] * 0 + 1, *inputs[1:])


def double(forward: Any, *inputs: Any) -> torch.Tensor:
    return 2 * forward(*inputs)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m, "__class__", White), "the model is a White, not the library's own"),
        (lambda m: m.register_forward_pre_hook(hook), "the model has forward hooks"),
        (
            lambda m: m.down[1].ul[0].register_forward_hook(lambda *args: args[2] * 0 + 1),
            r"down\.1\.ul\.0 has forward hooks",
        ),
        (
            lambda m: setattr(m, "given_vector", partial(double, m.given_vector)),
            "the model has a method given_vector of its own",
        ),
    ],
)
def test_every_sampler_draws_from_the_model_that_it_is_given(change, reason, caplog) -> None:
    warn_once.cache_clear()
    model = network("stack", n_classes=3)
    change(model)
    context, label = torch.randn(2, 1, 4, 4), torch.tensor([2, 1])
    arguments: dict[str, Any] = {"height": 4, "width": 4, "seed": SEED, "first_index": FIRST}
    arguments |= {"context": context, "label": label}
    x = sample_images(model, 2, **arguments)
    (line,) = caplog.messages
    assert re.fullmatch(f"one forward pass per pixel: {reason}", line)
    assert torch.equal(x, sequential_sample(model, 2, **arguments))
    plain = sequential_sample(network("stack", n_classes=3), 2, **arguments)
    assert not torch.allclose(x, plain, atol=1e-3)
    refuses(f"cannot run this model: {reason}", CachedSampler, model, error=TypeError)
    forced, _ = teacher_forced(model, x, context, torch.float32, 1.0, label, 0.0)
    torch.testing.assert_close(forced, x)


MADE = torch.linspace(-1, 1, 40).view(40, 1, 1, 1).expand(40, 1, 4, 4).clone()
MADE[3] = torch.nan


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let image i be MADE[i], and a call draw at most three; the numbers of those drawn."""
    numbers: list[int] = []

    def draw(part: Draw) -> Tensor:
        numbers.extend(part.indices)
        return MADE[part.indices.start : part.indices.stop]

    monkeypatch.setattr(output, "draw", draw)
    monkeypatch.setitem(output.CHUNK, "cpu", 3)
    return numbers


def fill(folder: Path, n: int, first: int = 0) -> tuple[int, int]:
    whole = resolve(network(), n, size=(4, 4), first_index=first)
    return output.draw_folder(folder, whole, {"first_index": first})


def test_numbered_pictures(tmp_path: Path, drawn: list[int], monkeypatch) -> None:
    """A larger call adds to them, and one that is missing is drawn again; the others are done."""
    assert [fill(tmp_path, n, first=2) for n in (1, 5, 3)] == [(1, 0), (4, 1), (0, 0)]
    names = [f"{i:08d}.png" for i in range(2, 7)]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == names
    for i in (2, 5):
        (tmp_path / f"{i:08d}.png").unlink()
    drawn.clear()
    shown: list[float] = []
    monkeypatch.setattr(progress_module, "_shown", lambda *_: nullcontext(shown.append))
    with progress_module.progress("drawing", 5):
        assert fill(tmp_path, 5, first=2) == (2, 0)
    assert (drawn, shown) == ([2, 5], [3, 4, 5])
    expected = MADE[2:7].nan_to_num()  # the image that diverged is grey
    pixels = np.stack([np.asarray(Image.open(tmp_path / name)) for name in names])
    assert np.array_equal(pixels, to_bytes(expected)[:, 0].numpy())
    assert torch.equal(read_images(tmp_path).images, to_bytes(expected))


def test_another_folder_is_refused(tmp_path: Path, drawn: list[int]) -> None:
    check_outputs([tmp_path / "samples-0.9"])  # a folder, for all its dot
    with suppress(ValueError):  # of whoever may not write there
        check_writable(Path("/"))
    refuses(r"`out` must end in \.png or \.npz, or be one folder", check_outputs, [Path("x.txt")])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    refuses("run has files, .*: choose a new folder", fill, tmp_path / "run", 3)
    fill(tmp_path / "x", 3)
    with lock_folder(tmp_path / "x", "a test"):
        refuses("draws into it is at w", fill, tmp_path / "x", 4)
    (tmp_path / "x" / "images.json").unlink()
    refuses("x has files", fill, tmp_path / "x", 3)


N, SIZE = 3, (8, 8)
DTYPES = torch.float32, torch.bfloat16
SAMPLERS = [(torch.float32, "sequential"), (torch.float32, "auto"), (torch.bfloat16, "auto")]
if torch.cuda.is_available():
    SAMPLERS += [pytest.param(dtype, "cuda", marks=pytest.mark.gpu) for dtype in DTYPES]
CASES = [("none", 1, {}), ("stack", 3, {}), ("concat", 1, BYTES), ("stack", 1, BYTES)]


def random_mask(n: int = N, size: tuple[int, int] = SIZE) -> Tensor:
    """A mask of half of the pixels; the second row is known in all images, the last in none."""
    mask = torch.rand(n, *size, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[:, 1], mask[:, -1] = True, False
    return mask


@pytest.mark.quick
@pytest.mark.grid
@pytest.mark.parametrize(("dtype", "code"), SAMPLERS)
@pytest.mark.parametrize(("conditioning", "channels", "mixture"), CASES)
def test_known_pixels_stay_and_the_others_follow_from_them(
    conditioning: str, channels: int, mixture: dict[str, Any], dtype: torch.dtype, code: str
) -> None:
    """Bit for bit where all, nothing or parts of a sample are known; else by teacher forcing."""
    model = network(conditioning, channels=channels, n_filters=4, **mixture)
    sampler, size = make_sampler(model, dtype, code), (4, 8)
    context = context_for(model, N, *size)

    def draw(**given: Any) -> Tensor:
        given |= {"context": context, "seed": SEED, "first_index": FIRST}
        given = {k: v.to(sampler.device) if isinstance(v, Tensor) else v for k, v in given.items()}
        return sampler.sample(N, *size, **given).cpu()

    own = images(channels=channels, size=(8, 4)).mT  # strided
    everywhere, mask = torch.ones(1, *size, dtype=torch.bool), random_mask(size=size)
    assert torch.equal(draw(known=own, mask=everywhere), own)
    assert torch.equal(draw(known=own[:1], mask=everywhere[0]), own[:1].expand_as(own))
    x, nothing = draw(), torch.full_like(own, torch.nan)
    assert torch.equal(draw(known=nothing, mask=~everywhere), x)
    for part in (mask, keep_top(0.5, size)):
        assert torch.equal(draw(known=x, mask=part), x)
    completed, kept = draw(known=own, mask=mask), mask[:, None].expand_as(x)
    assert torch.equal(completed[kept], own[kept])
    if dtype == torch.float32:
        again, _ = teacher_forced(model, completed, context, torch.float64, 1.0)
        torch.testing.assert_close(completed[~kept], again[~kept].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("code", ["sequential", "auto"])
def test_a_network_that_sees_bytes_takes_no_other_pixels(code: str) -> None:
    known, mask = images(), random_mask()
    sampler = make_sampler(network(**BYTES), torch.float32, code)
    for wrong in (0.3, 1 + 1 / 127.5, -1 - 1 / 127.5):
        given = {"known": torch.where(mask[:, None], wrong, known), "mask": mask}
        words = r"known must (have values of bytes|lie in \[-1, 1\])"
        refuses(words, sampler.sample, N, *SIZE, **given)
    sampler.sample(N, *SIZE, known=torch.where(mask[:, None], known, 0.3), mask=mask)


@pytest.mark.parametrize("method", ["two-step", "single-step", "noisy"])
def test_a_pair_keeps_pixels_and_their_smoothed_ones(method: Any) -> None:
    pair = tiny_pair()
    x, mask = images(), random_mask()
    given = {"seed": 5, "first_index": 9, "method": method}
    completed = pair.sample(N, **given, known=x, mask=mask)
    kept = mask[:, None]
    x_tilde = pair.sample(N, **{**given, "method": "noisy"}, known=x, mask=mask)
    smoothed = pair.smoothing.sample(x, seed=5, first_index=9)
    at: dict[str, Any] = {"height": 8, "width": 8, "seed": 5, "first_index": 9}
    assert torch.equal(x_tilde, sample_images(pair.noisy, N, **at, known=smoothed, mask=mask))
    assert torch.equal(completed, pair.denoise(x_tilde, **given, known=x, mask=mask))
    assert torch.equal(completed[kept], (smoothed if method == "noisy" else x)[kept])


def test_keep_top() -> None:
    for fraction, rows in ((0, 0), (0.2, 2), (0.25, 2), (0.3, 2), (0.5, 4), (1, 8)):
        mask = keep_top(fraction, (8, 12))
        assert mask.shape == (1, 8, 12)
        assert mask[:, :rows].all()
        assert not mask[:, rows:].any()
    for fraction in (-0.1, 1.5, float("nan")):
        refuses(r"`keep_top` must lie in 0 \.\. 1, got", keep_top, fraction, SIZE)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_is_given_without_a_label_has_no_class(dropout: float) -> None:
    """If the models learned that; else the label must be given."""
    pair = tiny_pair(classes=(CLASSES, CLASSES))
    for model in (pair.noisy, pair.denoiser):
        model.config = replace(model.config, classes=numbered(CLASSES, dropout))
    x, upper = images(2), keep_top(0.5, SIZE)
    if not dropout:
        for call in (pair.complete, pair.denoise, pair.single_step):
            refuses("`label` is missing: .* without label dropout", call, x)
        return
    expected = pair.sample(2, known=x, mask=upper, label=-1)
    assert torch.equal(pair.complete(x), expected)
    assert torch.equal(pair.denoise(x), pair.denoise(x, label=-1))
    assert torch.equal(pair.single_step(x), pair.single_step(x, label=-1))
