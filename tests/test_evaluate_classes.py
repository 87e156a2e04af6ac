"""Measures of classes: each class's bits/dim and Fréchet distance, and Bayes' rule."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import dsmooth
from dsmooth.config import TrainConfig
from dsmooth.data import ImageDataset, load_dataset
from dsmooth.evaluate.classes import Classification, bits_by_class, classify, frechet_by_class
from dsmooth.evaluate.comparison import compare_images
from dsmooth.evaluate.features import make_extractor
from dsmooth.evaluate.likelihood import conventions, score_pair, score_plain
from dsmooth.runs import RunFolder
from tests.helpers.command_runs import complains, measured
from tests.helpers.data_makers import random_dataset, refuses
from tests.helpers.networks import CLASSES, log_weight, network, tiny_pair

pytestmark = pytest.mark.quick


def labelled(n: int = 12) -> ImageDataset:
    return random_dataset(n, labels=(torch.arange(n) * 2 + 1) % CLASSES)


@torch.no_grad()
def test_scores_are_those_of_the_images_labels() -> None:
    data = labelled()
    x, label = data.batch(torch.arange(12)), data.labels
    plain = network(likelihood="discretized", n_classes=CLASSES)
    scores = score_plain(plain, data, batch_size=5)
    torch.testing.assert_close(scores.discretized[0].float(), plain.log_prob(x, label=label))
    pair = tiny_pair(classes=(CLASSES, CLASSES))
    bound = score_pair(pair, data, n_noise=2, batch_size=5, seed=3)
    terms = sum(log_weight(pair, x, label, seed=3, repeat=1).values())
    torch.testing.assert_close(bound.log_weights("discretized")[1].float(), terms)
    for model, bare in ((plain, score_plain), (pair, score_pair)):
        with pytest.raises(ValueError, match="`n_classes` needs labelled images, but "):
            bare(model, replace(data, labels=None))


def test_the_classes_make_up_the_whole() -> None:
    data = labelled()
    plain, pair = network(n_classes=CLASSES), tiny_pair(classes=(CLASSES, CLASSES))
    for scores in (score_plain(plain, data), score_pair(pair, data, n_noise=2)):
        rows = bits_by_class(scores, data.labels)
        meanings = [row.meaning for row in conventions(scores)]
        assert "P(bytes | class)" in meanings[0]
        assert ("given the class" in meanings[-2]) == (scores.continuous is not None)
        assert [(row.label, row.n_images) for row in rows] == [(0, 4), (1, 4), (2, 4)]
        mean = sum(row.value * row.n_images for row in rows) / 12
        assert mean == pytest.approx(conventions(scores)[0].value)
        assert len({row.value for row in rows}) == 3
    (one,) = bits_by_class(score_plain(plain, data, limit=1), data.labels[:1])
    assert one.standard_error is None
    with pytest.raises(ValueError, match=r"labels must have shape \(12,\), .* got \(13,\)"):
        bits_by_class(scores, torch.zeros(13))


def test_bayes_rule() -> None:
    nats = torch.tensor([[0.0, 1.0, -5.0], [2.0, 2.5, 2.0], [-900.0, -901.0, -902.0]])
    result = Classification(nats.double(), torch.tensor([1, 2, 0]))
    p = nats.double().exp()[:2]
    torch.testing.assert_close(result.log_posterior[:2].exp(), p / p.sum(1, keepdim=True))
    assert result.right.tolist() == [True, False, True]
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.confusion().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    chosen = result.log_posterior[[0, 1, 2], [1, 2, 0]]
    assert result.bits == pytest.approx(-chosen.mean().item() / math.log(2))


@torch.no_grad()
@pytest.mark.parametrize("classes", [None, (CLASSES, CLASSES), (CLASSES, 0), (0, CLASSES)])
def test_images_are_classified_by_their_likelihoods(classes: tuple[int, int] | None) -> None:
    """By those of a plain model, or by the bounds of a pair."""
    data = labelled(6)
    if classes is None:
        model = network(likelihood="discretized", n_classes=CLASSES)
        log_likelihood = model.log_prob
    else:
        model = tiny_pair(classes=classes)
        log_likelihood = partial(model.elbo, n_noise=2, importance_weighted=True, seed=4)
    seen: list[float] = []
    result = classify(model, data, limit=5, n_noise=2, seed=4, batch_size=3, progress=seen.append)
    assert seen == [1, 2, 3, 4, 5, 5]  # after each class of a batch
    x = data.batch(torch.arange(5))
    for label in range(CLASSES):
        nats = log_likelihood(x, label=torch.full((5,), label))
        torch.testing.assert_close(result.log_likelihoods[:, label].float(), nats)
    assert torch.equal(result.labels, data.labels[:5])


def test_images_that_a_model_draws_are_of_the_class_that_it_drew() -> None:
    """A model whose classes are dark and bright classifies its own samples."""
    model = network(n_classes=2, likelihood="discretized")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("condition_weight"):
                weight.mul_(3)
    labels = torch.arange(40) % 2
    x = dsmooth.sampling.sample_images(model, 40, height=8, width=8, label=labels)
    data = ImageDataset(dsmooth.data.to_bytes(x), labels, "made", "test", "drawn")
    assert classify(model, data).accuracy > 0.9


def test_what_cannot_classify_says_so() -> None:
    refuses("only a model with classes classifies", classify, network(n_classes=0), labelled())
    with pytest.raises(ValueError, match="a denoiser does not classify alone"):
        classify(network("concat", n_classes=CLASSES), labelled())
    with pytest.raises(ValueError, match=r"needs labels of 0 .. 1, but .* has 0 .. 2"):
        classify(network(n_classes=2), labelled())


def test_distances_are_those_of_each_class_alone() -> None:
    extractor = make_extractor("mnist-classifier")
    sets = [load_dataset("mnist", split) for split in ("test", "train")]
    (images, labels), real = ((d.images[:200], d.labels[:200]) for d in sets)
    kept = (labels != 4) | ((labels == 4).cumsum(0) == 1)  # one of the fours, which is too few
    drawn = images[kept], labels[kept]
    others = sets[1].images[200:300], sets[1].labels[200:300]
    rows = frechet_by_class(drawn, real, others, extractor)
    assert [row.label for row in rows] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    one = rows[6]
    chosen = [images[labels == 7] for images, labels in (drawn, real, others)]
    alone = compare_images(*chosen[:2], extractor, floor=chosen[2])
    assert one.value == pytest.approx(alone.value, rel=1e-6)
    assert one.error == pytest.approx(alone.error, rel=1e-6)
    assert one.floor == pytest.approx(alone.floor, rel=1e-6)
    assert (one.n_samples, one.n_reference) == (len(chosen[0]), len(chosen[1]))


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of a plain model of the ten digits, in the current folder."""
    monkeypatch.chdir(tmp_path)
    model = network(n_classes=10, likelihood="discretized")
    config = TrainConfig(role="plain", model=model.config, images=1)
    RunFolder(tmp_path / "run").write_model(model, config, (28, 28))
    return tmp_path / "run"


def test_the_command_classifies(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured("classify", str(plain), "--limit", "6")
    assert found["exact"] is True
    assert sum(map(sum, found["confusion"])) == found["n_images"] == 6
    text = capsys.readouterr().out
    assert f"{100 * found['accuracy']:.2f} %" in text
    assert "Bayes' rule over 10 classes of equal prior probability, by exact likelihoods" in text


def test_the_commands_give_each_class(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bits = measured("bpd", str(plain), "--limit", "20", "--per-class")
    assert sum(row["n_images"] for row in bits["classes"]["plain"]) == 20
    each = measured("fid", str(plain), "--count", "20", "--per-class")
    assert [row["label"] for row in each["classes"]] == list(range(10))
    assert {row["n_samples"] for row in each["classes"]} == {2}
    three = measured("fid", str(plain), "--count", "20", "--label", "3")
    labels = load_dataset("mnist", "train").labels
    assert three["n_reference"] == int((labels == 3).sum())
    assert three["samples"]["label"] == 3
    for wrong, message in (
        (["fid", str(plain), "--label", "10"], "fewer than two images of class 10"),
        (["fid", str(plain), "--label", "3", "--per-class"], "--per-class needs --label each"),
        (["fid", str(plain), "--per-class", "--reference", "r.npz"], "not --reference"),
        (["fid", "mnist", "--label", "3"], "has labels of other classes than cluster 0, cluster 1"),
    ):
        complains(capsys, message, "evaluate", *wrong, "--count", "2")
