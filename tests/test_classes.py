"""Class-conditional models: golden values; labels in networks, pairs and training."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dsmooth
from dsmooth._extension import warn_once
from dsmooth.config import Classes, ProbeSettings
from dsmooth.data import ImageDataset
from dsmooth.evaluate.classes import classify
from dsmooth.evaluate.probe import probe_pair
from dsmooth.nn.layers import GatedResnet
from dsmooth.philox import Stream, image_words
from dsmooth.pretrained.runs import RunFolder
from dsmooth.sampling import sample_images, sequential_sample
from dsmooth.sampling.resolve import resolve, resolved_labels
from dsmooth.training import train
from tests.helpers.command_runs import complains, run
from tests.helpers.data_makers import random_dataset, refuses
from tests.helpers.networks import (
    CLASSES,
    images,
    inputs,
    network,
    numbered,
    tiny_config,
    tiny_pair,
    with_classes,
)
from tests.helpers.tiny_runs import tiny

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.quick
@pytest.mark.parametrize("channels", [1, 3])
def test_golden_values_of_a_checkpoint_with_classes(channels: int) -> None:
    """The importer and the network give the values that the equations gave in float64."""
    stem = GOLDEN / f"network_c{channels}_8x8_f4_r1_k2"
    state = with_classes(load_file(f"{stem}.safetensors"))
    golden = load_file(f"{stem}.classes.safetensors")
    x = load_file(f"{stem}.io.safetensors")["x"].repeat(4, 1, 1, 1)
    vector, expected = golden["vector"], golden["y"]
    model = dsmooth.load_pixelcnnpp(state, dtype=torch.float64)
    assert model.config.classes == Classes(("0", "1", "2"))
    found = model.given_vector(x, None, vector)  # soft ones too
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    found = model(x[:3], label=torch.arange(3))
    torch.testing.assert_close(found, expected[:3], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "`label` is missing: the model has 3 classes"),
        ([0], r"label must have shape \(2,\), got \(1,\)"),
        (torch.tensor([0, 3]), "`label` must lie in -1 .. 2, got 3"),
        (torch.tensor([-2, 0]), "`label` must lie in -1 .. 2, got -2"),
        (torch.tensor([0, 1]).int(), "label must be int64, got int32"),
        (torch.ones(2, 3), r"label must have shape \(2,\), got \(2, 3\)"),
        (3, "`label` must lie in -1 .. 2, got 3"),
        ("cow", "`label` must be one of 0, 1, 2, got 'cow'"),
        (1.5, "`label` must be a whole number, got 1.5"),
        (True, "`label` must be a whole number, got True"),
        (torch.ones(2, device="meta").long(), "label must be on cpu, got meta"),
    ],
)
def test_wrong_labels_are_named(label: object, message: str) -> None:
    model = network("none", n_classes=CLASSES)
    refuses(message, model, torch.zeros(2, 1, 8, 8), label=label)


def test_a_label_is_a_number_a_name_or_one_of_each_image() -> None:
    """The same in every call that takes one."""
    pair, x = tiny_pair(classes=(CLASSES, CLASSES)), inputs("none")[0]
    classes = Classes(("ape", "bee", "cow"), dropout=0.1)
    for model in (pair.noisy, pair.denoiser):
        model.config = replace(model.config, classes=classes)
    calls = (
        lambda label: pair.noisy.log_prob(x, label=label),
        lambda label: pair.noisy.features(x, label=label)["up0"][0],
        lambda label: pair.sample(3, label=label),
        lambda label: pair.complete(x, label=label, draws=2),
        lambda label: pair.denoise(x, label=label),
        lambda label: pair.single_step(x, label=label),
        lambda label: pair.elbo(x, label=label),
        lambda label: pair(x, label=label, seed=0),
        lambda label: sequential_sample(pair.noisy, 3, height=4, width=4, label=label),
    )
    for call in calls:
        expected = call(torch.tensor([2, 2, 2]))
        for label in ("cow", [2, 2, 2], np.full(3, 2)):
            assert torch.equal(call(label), expected)
        mixed = call(torch.tensor([0, -1, 2]))
        assert torch.equal(call([0, -1, 2]), mixed)
        assert not torch.equal(mixed, expected)


@pytest.mark.parametrize(
    ("names", "shares", "words"),
    [
        ((), (), "`names` must be a list, each item text"),
        (("a", "a"), (), "`names` must be different, and not each or own or prior, got a, a"),
        (("a", "each"), (), "got a, each"),
        (("own", "a"), (), "got own, a"),
        (("a", "b"), (0.5,), "`shares` must be 2 numbers with the sum 1"),
        (("a", "b"), (0.5, 0.6), "`shares` must be 2 numbers with the sum 1"),
        (("a", "b"), (1.5, -0.5), "`shares` must be 2 numbers with the sum 1"),
    ],
)
def test_classes_are_checked(names: tuple[str, ...], shares: tuple[float, ...], words: str) -> None:
    refuses(words, Classes, names, shares)


def with_shares(*shares: float) -> dsmooth.SmoothedPair:
    """A pair with classes of these shares."""
    pair = tiny_pair(classes=(CLASSES, CLASSES))
    for model in (pair.noisy, pair.denoiser):
        classes = replace(model.config.classes, shares=shares)
        model.config = replace(model.config, classes=classes)
    return pair


def test_classes_have_their_shares_of_the_training_images() -> None:
    """In draws of the prior, a function of the image; in the bound and in Bayes' rule."""
    words = image_words(1000, 1, seed=3, first_index=7, stream=Stream.CLASS)
    drawn = labels_by("prior", numbered(10), range(7, 1007), seed=3)
    assert torch.equal(drawn, words[:, 0, 0] * 10 >> 32)
    shares = (0.5, 0.3, 0.2)
    pair, x = with_shares(*shares), inputs("none")[0]
    whole = resolve(pair, 20_000, seed=3)
    drawn = whole.labels
    counts = torch.bincount(drawn, minlength=CLASSES)
    expected = 20_000 * torch.tensor(shares)
    assert ((counts - expected).abs() < 4 * (expected * (1 - torch.tensor(shares))).sqrt()).all()
    part = resolve(pair, 9, seed=3, first_index=100)
    assert torch.equal(part.labels, drawn[100:109])
    assert torch.equal(whole.part(range(100, 109)).labels, drawn[100:109])
    rows = [pair.elbo(x, label=torch.full((3,), c)) for c in range(CLASSES)]
    mixture = torch.stack([bound + math.log(p) for bound, p in zip(rows, shares, strict=True)])
    torch.testing.assert_close(pair.elbo(x), mixture.logsumexp(0))
    found = classify(pair, random_dataset(3, labels=torch.tensor([2, 1, 0])))
    joint = found.log_likelihoods + torch.tensor(shares, dtype=torch.float64).log()
    bits = -float(joint.logsumexp(1).mean()) / (64 * math.log(2))
    assert found.bits_of_mixture == pytest.approx(bits)
    none = with_shares(1.0, 0.0, 0.0)
    assert not resolve(none, 1000, label="prior").labels.any()
    torch.testing.assert_close(none.elbo(x), none.elbo(x, label=torch.zeros(3).long()))


def test_images_have_classes_of_a_model_by_their_names() -> None:
    labels = torch.tensor([2, 0, 0])
    data = replace(random_dataset(3, labels=labels), class_names=("eel", "ant", "bee"))
    assert data.labels_for(Classes(("ant", "bee", "cat", "eel"))).tolist() == [1, 3, 3]
    refuses(
        "has images of class bee, which is none of the model's classes eel, ant",
        data.labels_for,
        Classes(("eel", "ant")),
    )
    assert (data.has_classes(Classes(("bee",))), data.has_classes(Classes(("ant",)))) == (
        True,
        False,
    )


def test_no_class_that_was_not_trained_gets_a_warning(caplog, tmp_path) -> None:
    data = random_dataset(3, labels=torch.tensor([2, 1, 0]))
    data = replace(data, class_names=("cat", "dog", "eel"))
    model = network("none", likelihood="discretized", n_classes=CLASSES)
    pair, x = tiny_pair(classes=(CLASSES, 0)), images(2)
    settings = ProbeSettings(train_images=2, test_images=2, epochs=1)
    calls = (
        lambda: model.log_prob(x, label=[-1, -1]),
        lambda: pair.elbo(x, label=[0, -1]),
        lambda: probe_pair(pair, data, data, settings, tmp_path / f"{warns}.json"),
    )
    for dropout, warns in ((0.1, False), (0.0, True)):
        for learner in (model, pair.noisy):
            classes = Classes(("a", "b", "c"), dropout=dropout)
            learner.config = replace(learner.config, classes=classes)
        for call in calls:
            warn_once.cache_clear()
            caplog.clear()
            call()
            assert ("without a class were never trained" in caplog.text) == warns
            model.log_prob(x, label=[0, 1])
            assert caplog.text.count("never trained") == warns  # once


def test_the_classes_of_a_pair_are_the_same() -> None:
    """Names and their order."""

    def make(*names: str) -> dsmooth.SmoothedPair:
        classes = Classes(("cat", "dog", "eel")), Classes(names) if names else None
        kinds = zip(("none", "concat"), classes, strict=True)
        networks = (dsmooth.PixelCNNpp(tiny_config(kind, classes=own)) for kind, own in kinds)
        return dsmooth.SmoothedPair(*networks, dsmooth.GaussianSmoothing(0.5), (8, 8))

    for names in ((), ("cat", "dog", "eel")):
        assert make(*names).class_names == ("cat", "dog", "eel")
    for other in (("eel", "dog", "cat"), ("cat", "dog", "fox"), ("cat", "dog")):
        refuses(f"the same classes, got cat, dog, eel and {', '.join(other)}", make, *other)


def labels_by(
    label: object, classes: Classes | None, indices: range, seed: int = 0, device: str = "cpu"
) -> torch.Tensor | None:
    return resolved_labels(label, classes, indices, 1, seed, torch.device(device))


def test_the_labels_of_a_draw() -> None:
    """A function of the image's number; parts have those of their images."""
    fixed = np.broadcast_to(np.array(2), 3)  # nobody may write into it
    for label in (2, "2", np.int64(2), np.array(2), np.array([2, 2, 2])[::-1], fixed, [2, 2, 2]):
        assert labels_by(label, numbered(4), range(3)).tolist() == [2, 2, 2]
    far, three = range(2**40 + 1, 2**40 + 6), numbered(3)
    assert labels_by("each", three, far).tolist() == [i % 3 for i in far]
    assert torch.equal(labels_by("each", three, far[2:4]), labels_by("each", three, far)[2:4])
    label = torch.tensor([0, 2, -1, 1, 0])
    own = resolve(network(n_classes=3), 5, size=(4, 4), label=label)
    assert own.part(range(1, 4)).labels.data_ptr() == label[1:].data_ptr()  # no copy
    assert torch.equal(own.part(range(1, 4)).labels, label[1:4])
    assert labels_by(label.tolist(), three, range(5)).tolist() == label.tolist()
    assert labels_by(None, None, range(5)) is None
    beyond = torch.tensor([0, 3])
    words = "label` must lie in -1 .. 2, got 3"
    refuses(words, labels_by, beyond, three, range(2), device="meta")  # as a GPU
    refuses("`label` must have 5 classes, got 4", labels_by, label[1:], three, range(5))


@pytest.mark.parametrize(("noisy", "denoiser"), [(0, CLASSES), (CLASSES, 0)])
def test_guidance_of_a_pair_is_for_the_models_with_classes(noisy: int, denoiser: int) -> None:
    pair, (x, _, label) = tiny_pair(classes=(noisy, denoiser)), inputs("none")
    for changes, draw in (
        (noisy, partial(pair.sample, 3, method="noisy", label=label)),
        (denoiser, partial(pair.denoise, x, label=label)),
        (noisy, partial(pair.denoise, x, label=label, method="single-step")),
        (noisy, partial(pair.single_step, x, label=label)),
    ):
        if noisy or changes:
            assert torch.equal(draw(guidance=0.5), draw()) == (not changes)
        else:  # these use no other model than the noisy one
            refuses("`guidance` needs a model with classes .* has no classes", draw, guidance=0.5)
    if not noisy:
        return
    slopes = [pair.single_step(x, label=y) - x for y in (label, -1)]
    found = pair.single_step(x, label=label, guidance=0.5) - x
    torch.testing.assert_close(found, slopes[1] + 1.5 * (slopes[0] - slopes[1]))


def labelled(n: int = 30, classes: int = 2, split: str = "train") -> ImageDataset:
    return replace(random_dataset(n, labels=torch.arange(n) % classes), split=split)


def test_data_without_the_labels_is_refused(tmp_path: Path) -> None:
    data = labelled(classes=3)
    bare = replace(data, labels=None)
    two, words = labelled(), "images of class 2, which is none of the model's classes 0, 1"
    for dataset, message in (
        ((bare, bare), "`classes` needs labelled images"),
        ((two, replace(data, split="test")), words),
    ):
        config = tiny("plain", classes=True)
        refuses(message, train, config, tmp_path / "run", dataset=dataset)
    assert list(tmp_path.iterdir()) == []


def test_a_run_learns_the_classes_of_its_data(tmp_path: Path) -> None:
    """Their names and shares; the averaged projections of classes have moved apart."""
    data, run = random_dataset(8, labels=torch.tensor([0, 0, 0, 0, 0, 1, 1, 3])), tmp_path / "run"
    train(tiny("denoiser", classes=True, label_dropout=0.25), run, dataset=(data, data))
    model = dsmooth.PixelCNNpp.from_pretrained(run)
    assert model.config.classes == Classes(("0", "1", "3"), (0.625, 0.25, 0.125), 0.25)
    blocks = [m for m in model.modules() if isinstance(m, GatedResnet)]
    assert all((m.condition_weight[:, 0] != m.condition_weight[:, 1]).any() for m in blocks)
    config, _ = RunFolder(run).read_config()
    assert model.config == config.model
    again = replace(config, model=replace(config.model, classes=None), data="own")
    train(again, run, dataset=(data, data), resume=True)
    dsmooth.save(model, tmp_path / "saved")
    assert dsmooth.load(tmp_path / "saved").model.config == model.config


def test_the_command_draws_a_class_or_each(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    pair = tiny_pair(classes=(CLASSES, 0))
    for model in (pair.noisy, pair.denoiser):
        model.head.weight_g.data.mul_(0.1)
    pair.save_pretrained("pair")
    command = ["sample", "pair", "-n", "5", "--device", "cpu", "--out"]
    for label, labels in (("each", [0, 1, 2, 0, 1]), ("1", [1] * 5)):
        assert run(*command, "x.npz", "--label", label) == 0
        arrays = np.load("x.npz")
        assert arrays["label"].tolist() == labels
        assert np.array_equal(arrays["x"], pair.sample(5, label=labels).numpy())
    assert run(*command, "prior.npz") == 0
    assert len(set(np.load("prior.npz")["label"].tolist())) > 1
    assert run(*command, "folder", "--label", "each") == 0
    for label, message in (("1", "label is each, not 1"), ("3", "--label must be one of 0, 1, 2")):
        complains(capsys, message, *command, "folder", "--label", label)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "guidance`? needs a model with classes .* has no classes"),
        (CLASSES, "`guidance` needs .* label dropout; this one was trained with label_dropout 0"),
    ],
)
def test_guidance_needs_a_model_with_and_without_classes(count: int, words: str) -> None:
    pair, label = tiny_pair(classes=(count, 0)), 0 if count else None
    pair.noisy.config = replace(pair.noisy.config, classes=numbered(count, dropout=0.0))
    samplers = (sample_images, sequential_sample)
    by_model = (partial(draw, pair.noisy, height=8, width=8) for draw in samplers)
    for draw in (pair.sample, *by_model):
        refuses(words, draw, 2, label=label, guidance=0.5)
    for denoise in (pair.single_step, partial(pair.denoise, method="single-step")):
        refuses(words, denoise, images(2), label=label, guidance=0.5)
        refuses("`guidance` must be 0, or positive", denoise, images(2), guidance=math.nan)
