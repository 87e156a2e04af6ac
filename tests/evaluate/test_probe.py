"""Linear probes: they see what the network gives, choose fairly, and reach what is separable."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth.data import ImageDataset, epoch_order
from dsmooth.evaluate.linear import adam_step, moments, train_linear
from dsmooth.evaluate.probe import PIXELS, Probing, best_probe, make_probing, probe_pair
from dsmooth.machine import torch_threads
from dsmooth.probe_settings import BLOCKS, ProbeSettings
from dsmooth.record import read_result
from dsmooth.results import ProbeResult, ProbeScore
from tests.helpers.command_runs import complains, run, save_run
from tests.helpers.data_makers import refuses
from tests.helpers.networks import tiny_pair

SETTINGS = ProbeSettings(epochs=2)


def squares(n: int, split: str) -> ImageDataset:
    """8 x 8 pictures of two classes: a bright square on the left or on the right."""
    generator = torch.Generator().manual_seed(len(split))
    kinds = torch.randint(0, 2, (n,), generator=generator)
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    for image, kind in zip(images, kinds.tolist(), strict=True):
        image[0, 2:6, 4 * kind : 4 * kind + 4] = 255
    return ImageDataset(images, kinds, "squares", split, "made for a test")


TRAIN, TEST = squares(23, "train"), squares(11, "test")


def probing(folder: Path, settings: ProbeSettings = SETTINGS) -> Probing:
    splits = {"train": TRAIN, "test": TEST}
    return Probing(dsmooth.GaussianSmoothing(0.3), splits, settings, folder)


@pytest.mark.quick
def test_probes_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    """Each has one thread, and the caller keeps its own."""
    probes = []
    for threads in (1, 3):
        with torch_threads(threads):
            for name, network in (("pixels", None), ("noisy", tiny_pair().noisy)):
                probes.append(probing(tmp_path).probe(name, network))
            assert torch.get_num_threads() == threads
    assert probes[:2] == probes[2:]


@pytest.mark.parametrize(
    ("conditioning", "see", "stream", "pooling", "dtype"),
    [
        ("stack", "noisy", "ul", "flat", torch.float32),
        ("concat", "clean", "both", "mean", torch.bfloat16),
    ],
)
def test_rows_are_the_features_of_the_network_in_float16(
    tmp_path: Path, conditioning: str, see: Any, stream: Any, pooling: Any, dtype: torch.dtype
) -> None:
    pair = tiny_pair(conditioning=conditioning).to(dtype)
    given = {"stream": stream, "pooling": pooling, "input": see}
    run = probing(tmp_path, ProbeSettings(together=0, seed=5, **given))
    for name, network in (("noisy", pair.noisy), ("denoiser", pair.denoiser), (PIXELS, None)):
        for repeat, (split, data) in enumerate(run.splits.items()):
            x = data.batch(torch.arange(len(data))).to(dtype if network else torch.float32)
            x_tilde = run.smoothing.sample(x, seed=5, first_index=0, repeat=repeat)
            seen = x_tilde if see == "noisy" else x
            with contextlib.ExitStack() as stack:
                rows = run.extract(name, network, stack)[split]
            if network is None:  # the pixels are what the networks see
                assert np.array_equal(rows[PIXELS], seen.flatten(1).half().numpy())
                continue
            inputs = (seen,) if name == "noisy" else (seen, x_tilde)
            rows_of_call = torch.arange(50).clamp(max=len(data) - 1)  # sums are rounded alike
            with torch.no_grad():
                expected = network.features(*(x[rows_of_call] for x in inputs))
            assert tuple(rows) == BLOCKS
            for block, (u, ul) in expected.items():
                maps = {"u": u, "ul": ul, "both": torch.cat((u, ul), 1)}[stream]
                values = maps.mean((2, 3)) if pooling == "mean" else maps.flatten(1)
                assert np.array_equal(rows[block], values[: len(data)].half().numpy())


def test_rows_of_blocks_together_are_averages_over_parts_of_both_streams(tmp_path: Path) -> None:
    settings = ProbeSettings(blocks=("up2", "down2"), pooling=2, stream="u", together=4)
    run, network = probing(tmp_path, settings), tiny_pair().noisy
    rows = run.features("noisy", network, "test", 0)
    x = run.splits["test"].batch(torch.arange(11))
    x = torch.cat([x, x[-1:].expand(39, -1, -1, -1)])  # a call of 50
    with torch.no_grad():
        maps = network.features(run.smoothing.sample(x, seed=0, first_index=0, repeat=1))
    by_part = [rows[name].view(11, 6, -1) for name in ("up2", "down2")]
    (small, _), (large, _) = (maps[block] for block in ("up2", "down2"))
    # 8 x 8 -> 2 x 2: each number is the mean of a quarter of the map. 2 x 2 stays.
    quarters = large[:11].unflatten(3, (2, 4)).unflatten(2, (2, 4)).mean((3, 5)).flatten(2)
    torch.testing.assert_close(by_part[0], small[:11].flatten(2).half())
    torch.testing.assert_close(by_part[1], quarters.half(), rtol=2e-3, atol=1e-3)
    streams = [small, maps["up2"][1]], [large, maps["down2"][1]]
    finer = [m[:11].unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5)) for m in streams[1]]
    expected = torch.cat([m[:11].flatten(1) for m in (*streams[0], *finer)], 1)
    torch.testing.assert_close(rows["together"], expected.half(), rtol=2e-3, atol=1e-3)


def test_the_best_probe_is_chosen_without_the_test_set(tmp_path: Path) -> None:
    """By rows of the training set that its weights have not seen."""
    names = ("up0", "together")
    results = [ProbeScore(a, 0.1, 1.0, 5, h) for a, h in ((0.9, 0.5), (0.8, 0.7))]
    assert best_probe(dict(zip(names, results, strict=True))) == "together"
    other_test = replace(TEST, labels=1 - TEST.labels)
    last = torch.arange(23) >= 19
    other_train = replace(TRAIN, labels=torch.where(last, 1 - TRAIN.labels, TRAIN.labels))
    found, swapped, flipped = (
        probe_pair(tiny_pair(), train, test, SETTINGS, tmp_path / f"{i}.json", only=["noisy"])
        for i, (train, test) in enumerate(((TRAIN, TEST), (TRAIN, other_test), (other_train, TEST)))
    )
    for block, score in found.accuracy["noisy"].items():
        assert swapped.accuracy["noisy"][block].held_out == score.held_out
        mirrored = pytest.approx(1 - score.accuracy)
        assert swapped.accuracy["noisy"][block].accuracy == mirrored
        mirrored = pytest.approx(1 - score.held_out)
        assert flipped.accuracy["noisy"][block].held_out == mirrored
    few = probe_pair(tiny_pair(), squares(2, "train"), TEST, SETTINGS, tmp_path / "few.json")
    assert few.settings.train_images == 2
    assert all(0 <= score.held_out <= 1 for s in few.accuracy.values() for score in s.values())


def test_an_untrained_network_is_new_and_leaves_the_generator_alone(tmp_path: Path) -> None:
    pair, run = tiny_pair(), probing(tmp_path, replace(SETTINGS, seed=2))  # its own seed is 0
    state = torch.random.get_rng_state()
    fresh = run.untrained(pair.denoiser)
    assert torch.random.get_rng_state().equal(state)
    assert fresh.config == pair.denoiser.config
    assert not fresh.stem_u.weight_v.equal(pair.denoiser.stem_u.weight_v)
    again = run.untrained(pair.denoiser)
    assert all(a.equal(b) for a, b in zip(fresh.parameters(), again.parameters(), strict=True))
    other = replace(run, settings=replace(run.settings, seed=1)).untrained(pair.denoiser)
    assert not fresh.stem_u.weight_v.equal(other.stem_u.weight_v)
    assert run.untrained(pair.denoiser.bfloat16()).head.bias.dtype == torch.bfloat16


def run_probes(path: Path, settings: ProbeSettings = SETTINGS, **options: object) -> ProbeResult:
    """The same holds for a pair whose noisy model is a plain one."""
    path.parent.mkdir(exist_ok=True)
    pair = tiny_pair()
    return probe_pair(pair, TRAIN, TEST, settings, path, plain=pair.noisy, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored results of `run_probes`."""
    path = tmp_path_factory.mktemp("whole") / "probes.json"
    run_probes(path)
    return path


def test_networks_and_controls_are_there(whole: Path) -> None:
    assert mapped_files(whole.parent) == [str(whole)]
    results = read_result(whole, ProbeResult)
    accuracy = results.accuracy
    names = ["noisy", "denoiser", PIXELS, "plain", "untrained-noisy", "untrained-denoiser"]
    assert list(accuracy) == names
    for name in names:
        assert tuple(accuracy[name]) == ((PIXELS,) if name == PIXELS else (*BLOCKS, "together"))
    assert accuracy["plain"] == accuracy["noisy"]  # here the same network
    assert accuracy["noisy"]["together"].features == 2 * 6 * (4 * 16 + 2 * 4)
    assert [accuracy["noisy"][b].features for b in BLOCKS] == [384, 96, 24, 24, 96, 384]
    assert results.settings.train_images == 23


def mapped_files(folder: Path) -> list[str]:
    """Files in `folder`, and those without a name that this process still has open or mapped."""
    gc.collect()
    found = [str(path) for path in folder.rglob("*") if path.is_file()]
    if sys.platform == "linux":
        maps = Path("/proc/self/maps").read_text().splitlines()
        found += [line for line in maps if str(folder) in line]
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(link.readlink())
                found += [target] if target.startswith(str(folder)) else []
    return found


def test_a_stopped_call_leaves_no_features_and_goes_on_after_the_last_network(
    whole: Path, tmp_path: Path
) -> None:
    pair, path = tiny_pair(), tmp_path / "probes.json"
    held: list[int] = []
    noisy_calls: list[int] = []

    def stop(*_: object) -> None:
        held.append(len(mapped_files(tmp_path)))
        if len(held) == 2:  # the features of the training images are written
            raise KeyboardInterrupt

    pair.denoiser.stem_u.register_forward_pre_hook(stop)
    pair.noisy.stem_u.register_forward_pre_hook(lambda *_: noisy_calls.append(1))
    with pytest.raises(KeyboardInterrupt):
        probe_pair(pair, TRAIN, TEST, SETTINGS, path, plain=tiny_pair().noisy)
    assert mapped_files(tmp_path) == [str(path)]
    assert read_result(path, ProbeResult) is None
    assert held[0] < held[1] or sys.platform != "linux"  # the features were on disk then
    calls = len(noisy_calls)
    again = probe_pair(pair, TRAIN, TEST, SETTINGS, path, plain=tiny_pair().noisy)
    assert path.read_bytes() == whole.read_bytes()
    assert again == read_result(path, ProbeResult)
    assert len(noisy_calls) == calls
    assert mapped_files(tmp_path) == [str(path)]


def test_a_call_for_some_networks_depends_on_these_alone(tmp_path: Path) -> None:
    """Another denoiser repeats nothing."""
    few, path = ("noisy", PIXELS), tmp_path / "few.json"
    first = run_probes(path, only=few)
    assert first.accuracy.keys() == {*few}
    before, pair = path.stat().st_mtime_ns, tiny_pair(conditioning="stack")
    assert probe_pair(pair, TRAIN, TEST, SETTINGS, path, plain=pair.noisy, only=few) == first
    assert path.stat().st_mtime_ns == before


def test_other_settings_do_not_mix_with_stored_ones(whole: Path, tmp_path: Path) -> None:
    stored, wide, longer = Path(shutil.copy(whole, tmp_path)), tiny_pair(), ProbeSettings(epochs=3)
    wide.smoothing = dsmooth.GaussianSmoothing(0.4)
    other = replace(TEST, images=255 - TEST.images)
    for pair, test_set, settings, message in (
        (tiny_pair(), TEST, longer, "its epochs is 2, not 3; choose another folder"),
        (tiny_pair(), other, SETTINGS, r"its data_sha256\.test is .*, not"),
        (wide, TEST, SETTINGS, r"its smoothing\.scale is 0\.5, not 0\.4"),
    ):
        refuses(message, probe_pair, pair, TRAIN, test_set, settings, stored, plain=pair.noisy)
    assert stored.read_bytes() == whole.read_bytes()
    probing = make_probing(tiny_pair(), {"train": TRAIN, "test": TEST}, longer, tmp_path)
    assert probing.result(stored, replace=True).settings.epochs == 3


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    pair, path = tiny_pair(), tmp_path / "probes.json"
    train, test = squares(9, "train"), squares(9, "test")
    wide = replace(test, images=test.images.repeat(1, 1, 1, 2))
    for first, second, message in (
        (train, replace(test, labels=None), "made for a test has no labels"),
        (train, replace(test, labels=test.labels - 1), "need labels of 0 or more, but made"),
        (train, wide, r"\(1, 8, 8\), got .* of \(1, 8, .*: made for a test"),
        (train.part(slice(1)), test, "`train_images` must be at least 2, got 1"),
        (train, test.part(slice(0)), "`test_images` must be at least 1, got 0"),
    ):
        refuses(message, probe_pair, pair, first, second, SETTINGS, path)
    message = "`only` must be one of noisy, denoiser, pixels, .*, got 'plain'"
    refuses(message, probe_pair, pair, train, test, SETTINGS, path, only=["noisy", "plain"])
    assert list(tmp_path.iterdir()) == []
    pair.denoiser.stem_u.weight_g.data.fill_(1e30)
    message, only = "block up0 of denoiser has values beyond float16", ["denoiser"]
    calls = pair, train, test, SETTINGS, path
    refuses(message, probe_pair, *calls, only=only, error=ArithmeticError)


def test_settings_out_of_range_are_refused() -> None:
    for field, value in (
        *(("stream", "ur"), ("pooling", "max"), ("pooling", 0), ("blocks", ("up3",))),
        *(("blocks", ()), ("together", -1), ("input", "dark"), ("epochs", 0), ("seed", -1)),
    ):
        refuses(field, ProbeSettings, **{field: value})


def test_the_command_writes_figures_and_numbers(tmp_path, capsys) -> None:
    noisy, denoiser = (save_run(tmp_path / role, role, size=28) for role in ("noisy", "denoiser"))
    out = tmp_path / "probes"
    sizes = ["--train-images", 40, "--test-images", 20, "--epochs", 1]
    assert run(*map(str, ["probe", denoiser, noisy, "--out", out, *sizes])) == 0
    printed = capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert names == {"probes.json", "noisy.png", "denoiser.png"}
    results = read_result(out / "probes.json", ProbeResult)
    best = 100 * results.accuracy["noisy"]["up1"].accuracy
    assert f"{best:.1f} ±" in printed
    other = map(str, ["probe", noisy, denoiser, "--out", out, *sizes, "--seed", 1])
    complains(capsys, "its seed is 0, not 1", *other)


def labelled(n: int, d: int, classes: int, seed: int) -> tuple[np.ndarray, Tensor]:
    """Points with a margin of 4 standard deviations between classes, on wild scales."""
    generator = np.random.default_rng(1)
    centres = np.linalg.qr(generator.normal(size=(d, classes)))[0].T * 8
    scale, offset = 10.0 ** generator.uniform(-1, 1, d), generator.normal(size=d) * 3
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    points = centres[labels] + generator.normal(size=(n, d)) * min(1.0, 4 / d**0.5)
    return ((points * scale + offset).astype(np.float16), torch.from_numpy(labels))


@pytest.mark.quick
@pytest.mark.parametrize(("n", "d", "classes"), [(60, 2, 2), (1000, 40, 10), (40, 500, 4)])
def test_what_is_linearly_separable_is_reached(n: int, d: int, classes: int) -> None:
    sets = labelled(n, d, classes, 2), labelled(500, d, classes, 3)
    assert train_linear(*sets, classes, epochs=20) == (1, 0, 1)


def test_each_gradient_is_that_of_the_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images come in another order in each epoch, at a rate that falls to almost 0."""
    features, labels = labelled(52, 7, 3, 2)  # ten steps of five images, and one of two
    seen: list[tuple[Tensor, ...]] = []
    rates: list[float] = []

    def step(parameters: list[Tensor], gradients: list[Tensor], *state: Any, **how: Any) -> None:
        rates.append(how["lr"])
        halves = [t.clone().split([7, 1], dim=1) for t in (*parameters, *gradients)]
        seen.append(tuple(part.squeeze(1) for pair in zip(*halves, strict=True) for part in pair))
        adam_step(parameters, gradients, *state, **how)

    monkeypatch.setattr("dsmooth.evaluate.linear.adam_step", step)
    data = features, labels
    train_linear(data, data, 3, epochs=2, seed=4)
    falling = [3 / 7 * (1 + math.cos(math.pi * step / 22)) / 2 for step in range(22)]
    assert rates == pytest.approx(falling)
    mean, scale = moments(features, "cpu")
    steps = itertools.product(range(2), range(0, 52, 5))
    for (epoch, first), (weight, of_weight, bias, of_bias) in zip(steps, seen, strict=True):
        rows = epoch_order(52, epoch, 4)[first : first + 5].sort().values
        z = (torch.from_numpy(features[rows.numpy()]).float() - mean) * scale
        leaves = weight.requires_grad_(), bias.requires_grad_()
        logits = torch.nn.functional.linear(z, *leaves)
        loss = torch.nn.functional.cross_entropy(logits, labels[rows])
        for got, expected in zip(
            (of_weight, of_bias), torch.autograd.grad(loss, leaves), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_labels_that_have_nothing_to_do_with_the_features_are_not_told() -> None:
    n, classes = 1000, 4
    (train, labels), (test, _) = labelled(n, 6, classes, 2), labelled(n, 6, classes, 3)
    wrong = torch.from_numpy(np.random.default_rng(4).integers(0, classes, n))
    accuracy, error, _ = train_linear((train, labels), (test, wrong), classes, epochs=2)
    assert abs(accuracy - 1 / classes) < 4 * (0.25 * 0.75 / n) ** 0.5
    assert error == pytest.approx((accuracy * (1 - accuracy) / n) ** 0.5)


def test_features_that_never_vary_change_nothing() -> None:
    both = labelled(200, 6, 3, 2), labelled(200, 6, 3, 3)
    train, test = ((np.concatenate([x, np.full_like(x, 7)], 1), y) for x, y in both)
    assert train_linear(train, test, 3, epochs=10)[0] == 1
    assert all(values.isfinite().all() for values in moments(train[0], "cpu"))


def test_moments_are_those_of_the_features() -> None:
    features = labelled(333, 5, 3, 2)[0]
    exact = features.astype(np.float64)
    variance = exact.var(0)
    mean, scale = moments(features, "cpu")
    np.testing.assert_allclose(mean.numpy(), exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale.numpy(), (variance + variance.mean()) ** -0.5, rtol=1e-6)
