"""Linear probes: they see what the network gives, choose fairly, and reach what is separable."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth.config import ProbeSettings
from dsmooth.data import ImageDataset, epoch_order
from dsmooth.evaluate.linear import adam_step, moments, probe_features, train_linear
from dsmooth.evaluate.probe import (
    PIXELS,
    TOGETHER,
    ProbeInputs,
    best_probe,
    block_features,
    joined_features,
    probe_network,
    probe_pair,
    untrained,
)
from dsmooth.results import ProbeResult, ProbeScore
from dsmooth.work import read_result
from tests.helpers.command_runs import run, save_run
from tests.helpers.data_makers import refuses
from tests.helpers.networks import tiny_pair

SETTINGS = ProbeSettings(epochs=2)
BLOCKS = ("up0", "up1", "up2", "down0", "down1", "down2")


def squares(n: int, split: str) -> ImageDataset:
    """8 x 8 pictures of two classes: a bright square on the left or on the right."""
    generator = torch.Generator().manual_seed(len(split))
    kinds = torch.randint(0, 2, (n,), generator=generator)
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    for image, kind in zip(images, kinds.tolist(), strict=True):
        image[0, 2:6, 4 * kind : 4 * kind + 4] = 255
    return ImageDataset(images, kinds, "squares", split, "made for a test")


TRAIN, TEST = squares(23, "train"), squares(11, "test")


def inputs_of(settings: ProbeSettings = SETTINGS) -> ProbeInputs:
    return ProbeInputs(TRAIN, TEST, dsmooth.GaussianSmoothing(0.3), settings)


@pytest.mark.parametrize(
    ("conditioning", "see", "dtype"),
    [("stack", "noisy", torch.float32), ("concat", "clean", torch.bfloat16)],
)
def test_rows_are_the_features_of_the_network_in_float16(conditioning, see, dtype) -> None:
    pair = tiny_pair(conditioning=conditioning).to(dtype)
    run = inputs_of(ProbeSettings(seed=5, input=see))
    for name, network in (("noisy", pair.noisy), ("denoiser", pair.denoiser), (PIXELS, None)):
        for repeat, data in enumerate((run.train, run.test)):
            x = data.batch(torch.arange(len(data))).to(dtype if network else torch.float32)
            x_tilde = run.smoothing.sample(x, seed=5, first_index=0, repeat=repeat)
            seen = x_tilde if see == "noisy" else x
            with block_features(network, run, data, repeat) as stored:
                rows = {block: torch.cat([*file.split(7)]) for block, file in stored.items()}
            if network is None:  # the pixels are what the networks see
                assert torch.equal(rows[PIXELS], seen.flatten(1).half())
                continue
            arguments = (seen,) if name == "noisy" else (seen, x_tilde)
            rows_of_call = torch.arange(50).clamp(max=len(data) - 1)  # sums are rounded alike
            with torch.no_grad():
                expected = network.features(*(x[rows_of_call] for x in arguments))
            assert tuple(rows) == (*BLOCKS, TOGETHER)
            for block, (_, ul) in expected.items():
                assert torch.equal(rows[block], ul.flatten(1)[: len(data)].half())


def test_rows_of_blocks_together_are_averages_over_parts_of_both_streams() -> None:
    maps = {"large": torch.randn(2, 3, 8, 8), "small": torch.randn(2, 3, 2, 2)}
    joined = joined_features([(maps["large"], maps["small"])])
    # 8 x 8 -> 4 x 4: each number is the mean of 2 x 2 pixels. 2 x 2 stays.
    finer = maps["large"].unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    torch.testing.assert_close(joined, torch.cat([finer.flatten(1), maps["small"].flatten(1)], 1))


def test_the_best_probe_is_chosen_without_the_test_set() -> None:
    """By rows of the training set that its weights have not seen."""
    names = ("up0", "together")
    results = [ProbeScore(a, 0.1, 1.0, 5, h) for a, h in ((0.9, 0.5), (0.8, 0.7))]
    assert best_probe(dict(zip(names, results, strict=True))) == "together"
    other_test = replace(TEST, labels=1 - TEST.labels)
    last = torch.arange(23) >= 19
    other_train = replace(TRAIN, labels=torch.where(last, 1 - TRAIN.labels, TRAIN.labels))
    found, swapped, flipped = (
        probe_network(tiny_pair().noisy, replace(inputs_of(), train=train, test=test))
        for train, test in ((TRAIN, TEST), (TRAIN, other_test), (other_train, TEST))
    )
    for block, score in found.items():
        assert swapped[block].held_out == score.held_out
        assert swapped[block].accuracy == pytest.approx(1 - score.accuracy)
        assert flipped[block].held_out == pytest.approx(1 - score.held_out)
    few = probe_network(tiny_pair().noisy, replace(inputs_of(), train=squares(2, "train")))
    assert all(0 <= score.held_out <= 1 for score in few.values())


def test_a_probe_is_of_the_features_with_noise_of_their_own() -> None:
    """Test images get other draws; probes are chosen after a quarter of the passes."""
    generator = torch.Generator().manual_seed(1)  # of labels that depend on nothing
    sets = [
        replace(squares(n, split), labels=torch.randint(0, 2, (n,), generator=generator))
        for n, split in ((120, "train"), (99, "test"))
    ]
    inputs = ProbeInputs(*sets, dsmooth.GaussianSmoothing(0.3), ProbeSettings(epochs=8))
    noised = (
        inputs.of(None, data.batch(torch.arange(len(data))), 0, repeat)[0].flatten(1).half()
        for repeat, data in enumerate(sets)
    )
    train, test = ((rows, data.labels) for rows, data in zip(noised, sets, strict=True))
    score = probe_network(None, inputs)[PIXELS]
    assert score == probe_features(train, test, 2, epochs=8)
    parts = slice(100), slice(100, None)
    first, last = (tuple(values[part] for values in train) for part in parts)
    assert score.held_out == train_linear(first, last, 2, epochs=2)[0]


def test_an_untrained_network_is_new_and_leaves_the_generator_alone() -> None:
    pair, run = tiny_pair(), inputs_of(replace(SETTINGS, seed=2))  # its own seed is 0
    state = torch.random.get_rng_state()
    fresh = untrained(pair.denoiser, run)
    assert torch.random.get_rng_state().equal(state)
    assert fresh.config == pair.denoiser.config
    assert not fresh.stem_u.weight_v.equal(pair.denoiser.stem_u.weight_v)
    again = untrained(pair.denoiser, run)
    assert all(a.equal(b) for a, b in zip(fresh.parameters(), again.parameters(), strict=True))
    other = untrained(pair.denoiser, inputs_of(replace(SETTINGS, seed=1)))
    assert not fresh.stem_u.weight_v.equal(other.stem_u.weight_v)
    assert untrained(pair.denoiser.bfloat16(), run).head.bias.dtype == torch.bfloat16


def test_networks_and_controls_are_there_and_other_settings_do_not_mix(tmp_path: Path) -> None:
    """For a pair whose noisy model is a plain one, too."""
    pair, path = tiny_pair(), tmp_path / "probes.json"
    results = probe_pair(pair, TRAIN, TEST, SETTINGS, path, plain=pair.noisy)
    assert results == read_result(path, ProbeResult)
    accuracy = results.accuracy
    names = ["noisy", "denoiser", PIXELS, "plain", "untrained-noisy"]
    assert list(accuracy) == names
    for name in names:
        assert tuple(accuracy[name]) == ((PIXELS,) if name == PIXELS else (*BLOCKS, TOGETHER))
    assert accuracy["plain"] == accuracy["noisy"]  # here the same network
    assert accuracy["noisy"][TOGETHER].features == 2 * 6 * (4 * 16 + 2 * 4)
    assert [accuracy["noisy"][b].features for b in BLOCKS] == [384, 96, 24, 24, 96, 384]
    assert results.settings.train_images == 23
    stored, wide = path.read_bytes(), tiny_pair()
    wide.smoothing = dsmooth.GaussianSmoothing(0.4)
    for other, test_set, message in (
        (pair, replace(TEST, images=255 - TEST.images), r"its data_sha256\.test is .*, not .*; ch"),
        (wide, TEST, r"its smoothing\.scale is 0\.5, not 0\.4"),
    ):
        refuses(message, probe_pair, other, TRAIN, test_set, SETTINGS, path, plain=other.noisy)
    assert path.read_bytes() == stored


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    pair, path = tiny_pair(), tmp_path / "probes.json"
    train, test = squares(9, "train"), squares(9, "test")
    wide = replace(test, images=test.images.repeat(1, 1, 1, 2))
    for first, second, message in (
        (train, replace(test, labels=None), "made for a test has no labels"),
        (train, wide, r"\(1, 8, 8\), got .* of \(1, 8, .*: made for a test"),
        (train.part(slice(1)), test, "`images` must be at least 2, got 1"),
    ):
        refuses(message, probe_pair, pair, first, second, SETTINGS, path)
    assert list(tmp_path.iterdir()) == []
    pair.denoiser.stem_u.weight_g.data.fill_(1e30)
    message = "block up0 of the network .* has values beyond float16 for train images 0 to 8"
    refuses(message, probe_pair, pair, train, test, SETTINGS, path, error=ArithmeticError)


@pytest.mark.usefixtures("no_plots")
def test_the_command_writes_figures_and_numbers(tmp_path, capsys) -> None:
    noisy, denoiser = (save_run(tmp_path / role, role, size=28) for role in ("noisy", "denoiser"))
    out = tmp_path / "probes"
    sizes = ["--train-images", 10, "--test-images", 8, "--epochs", 1]
    assert run(*map(str, ["probe", denoiser, noisy, "--out", out, *sizes])) == 0
    printed = capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert names == {"probes.json", "noisy.png", "denoiser.png"}
    results = read_result(out / "probes.json", ProbeResult)
    best = results.accuracy["noisy"]["up1"]
    assert f"{100 * best.accuracy:.1f} ± {100 * best.error:.1f} %" in printed


def labelled(n: int, d: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points with a margin of 4 standard deviations between classes, on wild scales."""
    generator = np.random.default_rng(1)
    centres = np.linalg.qr(generator.normal(size=(d, classes)))[0].T * 8
    scale, offset = 10.0 ** generator.uniform(-1, 1, d), generator.normal(size=d) * 3
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    points = centres[labels] + generator.normal(size=(n, d)) * min(1.0, 4 / d**0.5)
    features = (points * scale + offset).astype(np.float16)
    return torch.from_numpy(features), torch.from_numpy(labels)


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
        z = (features[rows].float() - mean) * scale
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
    train, test = ((torch.cat([x, torch.full_like(x, 7)], 1), y) for x, y in both)
    assert train_linear(train, test, 3, epochs=10)[0] == 1
    assert all(values.isfinite().all() for values in moments(train[0], "cpu"))
