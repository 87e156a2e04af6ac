"""Clusters of a noisy model's features: equal sizes, a function of the seed, files of labels."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth import PixelCNNpp
from dsmooth.config import Classes
from dsmooth.data import ImageDataset, load_dataset, own_images
from dsmooth.data.labels import with_labels, write_labels
from dsmooth.evaluate import clusters
from dsmooth.evaluate.classes import classify
from dsmooth.evaluate.clusters import agreement, cluster, find_clusters
from dsmooth.evaluate.likelihood import score_pair
from dsmooth.evaluate.probe import CALL_IMAGES
from dsmooth.training.step import initial_state
from tests.helpers.command_runs import complains, run
from tests.helpers.data_makers import random_bytes, random_dataset, refuses
from tests.helpers.networks import images, network, numbered, tiny_pair


def bars(count: int, size: int = 8) -> tuple[ImageDataset, Tensor]:
    """Images with a bright bar at one of four places, in any brightness, and the place of each."""
    place = torch.arange(count) % 4
    dark, bright = torch.from_numpy(random_bytes((2, count, 1, size, size))) // 9
    is_bar = torch.arange(size).view(-1, 1) // 2 == place.view(-1, 1, 1, 1)
    images = torch.where(is_bar, 150 + dark + bright[:, :, :1, :1], dark)
    return ImageDataset(images, None, "bars", "train", "a test"), place


@pytest.mark.parametrize(("count", "n_clusters"), [(61, 7), (10, 10)])
def test_clusters_have_equal_sizes(count, n_clusters):
    data, _ = bars(count)
    sizes = cluster(network(), data, n_clusters).bincount(minlength=n_clusters)
    assert sizes.sum() == count
    assert int(sizes.max() - sizes.min()) <= 2


def test_labels_are_a_function_of_images_and_seed():
    noisy, (data, _) = network(), bars(CALL_IMAGES + 30)  # the last call is filled up
    labels = cluster(noisy, data, 6, seed=3)
    torch.manual_seed(9)
    assert torch.equal(labels, cluster(noisy, data.images, 6, seed=3))
    assert torch.equal(labels, cluster(noisy, dsmooth.to_float(data.images), 6, seed=3))
    assert not torch.equal(labels, cluster(noisy, data, 6, seed=4))


@pytest.mark.parametrize("fitted", [64, 20_000])
def test_images_that_look_alike_share_a_cluster(monkeypatch, fitted):
    """With fewer images in the principal components than there are, too: then in two passes."""
    monkeypatch.setattr(clusters, "FITTED_IMAGES", fitted)
    noisy, (data, place) = network(), bars(160)
    labels, labels_of = find_clusters(noisy, data, 4)
    assert agreement(labels, place)[0] == 1.0
    assert torch.equal(labels_of(data.part(slice(10, 160))), labels[10:])


def test_directions_without_variation_count_for_nothing():
    """Two groups of equal images are two clusters; rounding is not whitened."""
    noisy = network()
    data = own_images(dsmooth.to_bytes(images(2).repeat_interleave(20, 0)))
    labels, _ = find_clusters(noisy, data, 2)
    assert agreement(labels, torch.arange(40) // 20)[0] == 1.0
    (features,) = clusters._features(noisy, data, torch.arange(40))
    whiten, _ = clusters._fit_whitening(features.clone(), 0)
    z = whiten(features)
    torch.testing.assert_close(z.square().sum(1), torch.ones(40))


def test_features_are_whitened_along_their_principal_components():
    noisy, data = network(), random_dataset(300)
    labels, labels_of = find_clusters(noisy, data, 5)
    features = torch.cat([*clusters._features(noisy, data, torch.arange(300))])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, scales, directions = torch.pca_lowrank(features, 40, niter=4)
    projection = directions[:, :30] * (300**0.5 / scales[:30])
    whiten, _ = clusters._fit_whitening(features.clone(), 0)
    assert torch.equal(whiten(features), (features - features.mean(0)) @ projection)
    assert torch.equal(labels_of(data), labels)


def test_a_model_with_classes_shows_a_label_of_zeros():
    data, _ = bars(20)
    noisy, conditional = network(), network(n_classes=3)
    conditional.load_state_dict({**conditional.state_dict(), **noisy.state_dict()})
    assert torch.equal(cluster(conditional, data, 4), cluster(noisy, data, 4))


def test_agreement_of_known_tables():
    same = torch.tensor([0, 0, 1, 1, 2, 2])
    assert agreement(same, same.flip(0)) == pytest.approx((1.0, 1.0))
    assert agreement(same, torch.tensor([0, 1, 0, 1, 0, 1])) == pytest.approx((0.5, 0.0))
    # H = 1 bit and ln 3 / ln 2 bits; mutual information 2/3 of a bit.
    mixed = torch.tensor([0, 0, 0, 1, 1, 1])
    information = (2 / 3) / ((1 + np.log2(3)) / 2)
    assert agreement(same, mixed) == pytest.approx((5 / 6, information))


def diverged(value: float) -> PixelCNNpp:
    model = network()
    model.stem_u.weight_g.data.fill_(value)
    return model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_clusters": 1}, r"`n_clusters` must lie in 2 \.\. 8"),
        ({"n_clusters": 9}, r"`n_clusters` must lie in 2 \.\. 8, got 9"),
        ({"images": 2 * torch.ones(8, 1, 8, 8)}, r"images must be bytes or lie in \[-1, 1\], got"),
        ({"seed": "x"}, "`seed` must be a whole number, got 'x'"),
        ({"seed": -1}, r"`seed` must lie in 0 \.\. "),
        ({"model": diverged(torch.nan)}, "features that are not finite"),
        ({"model": diverged(1e37)}, "features that are not finite or huge"),  # for svd_lowrank
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    request = {"model": network(), "images": bars(8)[0], "n_clusters": 2, **arguments}
    refuses(words, cluster, **request, error=(ValueError, ArithmeticError))


def test_a_file_of_labels_is_of_its_images_alone(tmp_path: Path):
    data, place = bars(12)
    labelled = replace(data, labels=place, class_names=("a", "b", "c", "d"))
    write_labels(tmp_path / "labels.npz", [labelled], labelled.class_names)
    again = with_labels(data, tmp_path / "labels.npz")
    assert again.class_names == labelled.class_names
    assert torch.equal(again.known_labels(), place)
    file, other = tmp_path / "labels.npz", replace(data, images=data.images.flip(0))
    refuses(r"labels\.npz must have labels of the 12 train images", with_labels, other, file)
    refuses("labels.npz cannot be read as .*test", with_labels, replace(data, split="test"), file)
    for names, words in (("abc", r"labels must lie in 0 \.\. 2"), ("abca", "`names` must be diff")):
        write_labels(file, [labelled], [*names])
        refuses(rf"labels\.npz cannot be read as labels \({words}", with_labels, data, file)
    write_labels(file, [labelled], [b"a", b"b", b"c", b"d"])
    assert with_labels(data, file).class_names == labelled.class_names


@pytest.mark.usefixtures("place")
def test_labels_of_the_command_are_written_last_and_never_pass_for_others(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("dsmooth.commands.cluster.write_labels", Mock(side_effect=OSError("full")))
        complains(capsys, "full", "cluster", "noisy", "--clusters", "2", "--out", "part")
    assert [path.name for path in Path("part").iterdir()] == ["clusters.png"]
    Path("0").mkdir()
    Path("0", ".clusters.png.0.partial").touch()  # of a call that was killed
    test, names = load_dataset("folder", "test", "images"), list[str]()
    for seed in ("0", "1"):
        assert run("cluster", "noisy", "--clusters", "2", "--seed", seed, "--out", seed) == 0
        labelled = with_labels(test, Path(seed, "labels.npz"))
        assert labelled.known_labels().max() == 1
        names += labelled.class_names
    assert len(set(names)) == 4
    assert sorted(os.listdir("0")) == ["clusters.png", "labels.npz"]


def test_labels_of_other_classes_are_not_a_models() -> None:
    """Digits are not clusters, however many there are: they are scored without a class."""
    names, labels = ("cluster 0", "cluster 1", "cluster 2"), torch.arange(6) % 3
    digits = replace(random_dataset(6, labels=labels), class_names=("0", "1", "2"))
    same = replace(digits, class_names=names)
    pair = tiny_pair(classes=(3, 0))
    pair.noisy.config = replace(pair.noisy.config, classes=Classes(names, dropout=0.1))
    assert pair.class_names == names
    hidden, given = (score_pair(pair, data) for data in (digits, same))
    assert (hidden.classes, given.classes) == ("hidden", "given")
    x = digits.batch(torch.arange(6))
    for scores, label in ((hidden, -1), (given, labels)):
        weights = scores.log_weights("discretized")[0].float()
        torch.testing.assert_close(weights, pair.elbo(x, label=label), rtol=1e-6, atol=0)
    classify(pair, same)
    refuses("class 0, which is none of the model's classes cluster 0", classify, pair, digits)


def test_weights_of_other_classes_begin_without_them() -> None:
    """--init of a run, with classes or without, gives the same network to one with others."""
    initial, x = network(n_classes=3), images()
    for classes in (None, numbered(5), Classes(("a", "b", "c")), Classes(("1", "0", "2"))):
        for first, none in ((initial, -1), (network(), None)):
            model = network(classes=classes)
            model.load_state_dict(initial_state(model, first))
            label = None if classes is None else torch.arange(3)
            assert torch.equal(model(x, label=label), first(x, label=none))
    same = network(n_classes=3)
    same.load_state_dict(initial_state(same, initial))
    assert torch.equal(same(x, label=torch.arange(3)), initial(x, label=torch.arange(3)))
