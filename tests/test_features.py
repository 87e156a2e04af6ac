"""Feature extractors: the packaged classifier, networks of one's own, and torch-fidelity's."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsmooth.data import ImageDataset, load_dataset
from dsmooth.evaluate.comparison import compare_images, fidelity_scores
from dsmooth.evaluate.features import (
    CLASSIFIER_WEIGHTS,
    INCEPTION_SHA256,
    Features,
    MnistClassifier,
    extract_features,
    make_extractor,
)
from dsmooth.evaluate.frechet import FeatureStatistics
from dsmooth.evaluate.sources import read_reference
from dsmooth.files import file_sha256
from tests.helpers.data_makers import random_bytes, refuses


class Halves(nn.Module):
    """Features and logits: the halves of an image."""

    def __init__(self, weight: float = 2.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.weight * x.flatten(1)).tensor_split(2, 1)


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset("mnist", "test")


def test_the_packaged_classifier_knows_digits(digits: ImageDataset) -> None:
    extractor = make_extractor("mnist-classifier")
    _, logits = extract_features(digits.images, extractor)
    assert (logits.argmax(1) == digits.labels).double().mean() >= 0.985
    assert CLASSIFIER_WEIGHTS.stat().st_size < 500_000
    assert extractor.sha256 == hashlib.sha256(CLASSIFIER_WEIGHTS.read_bytes()).hexdigest()
    assert extractor.distance_name == "Fréchet distance on mnist-classifier"


def test_a_network_of_ones_own_gives_features() -> None:
    images = torch.tensor([[0, 255], [255, 0]]).byte().view(2, 1, 1, 2)
    extractor = make_extractor(Halves())
    assert extractor.distance_name == "Fréchet distance on Halves"
    features, logits = extract_features(images, extractor)
    assert features.flatten().tolist() == [-2, 2]
    assert logits.flatten().tolist() == [2, -2]
    digests = [make_extractor(Halves(weight)).sha256 for weight in (2.0, 3.0)]
    assert digests[0] == extractor.sha256 != digests[1]


@pytest.fixture
def weights_of_inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of random weights where torch-fidelity keeps the published ones."""
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *a, **k: None)
        network = inception.FeatureExtractorInceptionV3("random", ["2048"])
    path = tmp_path / "checkpoints" / Path(inception.URL_INCEPTION_V3).name
    path.parent.mkdir()
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return path


def test_only_the_published_weights_of_inception_give_a_fid(weights_of_inception: Path) -> None:
    name = "inception-v3-compat"
    extractor, digest = make_extractor(name), file_sha256(weights_of_inception)
    assert (extractor.distance_name, extractor.sha256) == (f"Fréchet distance on {name}", digest)
    assert "299 x 299" in extractor.resize
    grey = torch.from_numpy(random_bytes((1, 1, 28, 28)))
    features, logits = extract_features(grey, extractor)
    layers = ["2048", "logits_unbiased"]
    theirs = type(extractor.network)(name, layers)(grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close((features, logits), theirs)
    assert replace(extractor, sha256=INCEPTION_SHA256).distance_name == "FID"


def test_extractors_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity.registry", None)
        words = r"vgg16 needs .*pip install 'dsmooth\[fid\]'"
        refuses(words, make_extractor, "vgg16", error=ModuleNotFoundError)
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    fail = Mock(side_effect=OSError("no route\nto host"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    for name in ("inception-v3-compat", "vgg16"):
        message = f"cannot load {name} .no route to host.*{tmp_path}, or take .extractor=mnist"
        refuses(message, make_extractor, name, error=ConnectionError)
    refuses(r"must be mnist-classifier, inception-v3-compat, .*got 'vgg'", make_extractor, "vgg")


def test_images_that_cannot_be_extracted_are_named() -> None:
    extract = partial(extract_features, extractor=make_extractor("mnist-classifier"))
    colour, grey = torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2, 1, 28, 28)
    for images, message in (
        (
            colour,
            r"images of shape \(1, 28, 28\), got \(3, .* `extractor=inception-v3-compat` by pip",
        ),
        (grey, "images must be uint8"),
        (grey[:0].byte(), r"N >= 1, got torch.uint8 of shape \(0, 1, 28, 28\)"),
    ):
        refuses(message, extract, images)


def test_networks_that_return_something_else() -> None:
    network = nn.Identity()
    extractor = make_extractor(network)
    for result, message in (
        (torch.zeros(2, 3, 4), r"must return features \(2, D\), got \(2, 3, 4\)"),
        (torch.zeros(1, 3), r"must return features \(2, D\), got \(1, 3\)"),
        (torch.full((2, 3), torch.nan), "returned features that are not finite"),
        ((torch.zeros(2, 3), torch.zeros(1, 4)), r"must return logits \(2, K\), got \(1, 4\)"),
        ((torch.zeros(2, 3), torch.zeros(2)), r"must return logits \(2, K\), got \(2,\)"),
        (torch.full((2, 2, 3), torch.inf).unbind(), "returned features that are not finite"),
        ((torch.zeros(2, 3), torch.full((2, 4), torch.nan)), "returned logits that are not"),
        ("text", "must return features, or features and logits, got str"),
    ):
        network.forward = Mock(side_effect=[result])
        refuses(message, extract_features, torch.zeros(2, 1, 4, 4).byte(), extractor)
    network.register_buffer("of_no_parameter", torch.zeros(1, device="meta"))
    network.forward = Mock(side_effect=lambda x: torch.zeros(2, 3 if x.is_meta else 0))
    assert extract_features(torch.zeros(2, 1, 4, 4).byte(), extractor).features.shape == (2, 3)


def test_a_comparison_orders_real_images_before_noise(digits: ImageDataset) -> None:
    """Other digits are near, blurred ones farther, noise far; every metric agrees."""
    extractor = make_extractor("mnist-classifier")
    reference, floor, rest = digits.images[:300], digits.images[300:450], digits.images[450:600]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, rest.shape, generator=generator).byte()
    blurred = nn.functional.avg_pool2d(rest.float(), 3, 1, 1).byte()
    runs = {
        name: compare_images(x, reference, extractor, floor=floor)
        for name, x in (("real", rest), ("blurred", blurred), ("noise", noise))
    }
    values = [runs[name].value for name in ("real", "blurred", "noise")]
    assert values == sorted(values)
    assert values[0] == pytest.approx(runs["real"].floor, rel=0.5)
    result = runs["real"]
    assert (result.n_samples, result.n_reference, result.n_floor) == (150, 300, 150)
    assert result.extractor["dimension"] == 128
    assert result.extractor["sha256"] == extractor.sha256
    assert result.warnings == ()

    shuffled = compare_images(rest.flip(0), reference, extractor)
    assert shuffled.value == pytest.approx(result.value, rel=1e-5)
    assert (shuffled.floor, shuffled.floor_scores) == (None, {})

    few = compare_images(rest[:127], reference, extractor, floor=floor)
    assert any("127 samples are fewer than the 128 features" in w for w in few.warnings)
    assert any("the floor is of 150 images, not 127" in w for w in few.warnings)


def test_scores_are_there_with_the_extra_alone(digits: ImageDataset, monkeypatch) -> None:
    pytest.importorskip("torch_fidelity")
    compare = partial(compare_images, extractor=make_extractor("mnist-classifier"))
    real, noise = digits.images[:60], torch.from_numpy(random_bytes((20, 1, 28, 28)))
    found = compare(noise, real, floor=digits.images[60:80])
    one, other = found.scores, found.floor_scores
    assert one["kernel_distance"] > other["kernel_distance"]
    assert one["inception_score"] < other["inception_score"]
    assert {"kernel_distance_deviation", "inception_score_deviation"} < one.keys() == other.keys()
    of_classes = {"inception_score", "inception_score_deviation"}
    assert compare(noise, found.reference).scores.keys() == of_classes
    assert "precision" not in compare(noise[:3], real).scores
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # as if it were not installed
    alone = compare(noise, real)
    assert (alone.value, alone.scores) == (found.value, {})


def test_precision_is_of_the_samples_and_recall_of_the_real_images() -> None:
    pytest.importorskip("torch_fidelity")
    generator = torch.Generator().manual_seed(1)
    left, right, far = torch.randn(3, 40, 3, generator=generator)
    both, few = torch.cat([left, 50 + right]), torch.cat([left, 500 + far])
    found, other = (
        fidelity_scores(Features(one, None), real) for one, real in ((few, both), (both, few))
    )
    assert found["precision"] == 0.5  # half of the samples are where no real image is
    assert found["recall"] == 0.5  # nothing of the right half is found
    assert (other["precision"], other["recall"]) == (found["recall"], found["precision"])
    # As many of the real images as there are samples, at random.
    fewer = fidelity_scores(Features(left, None), both)
    assert fewer["precision"] > 0.8
    assert 0.3 < fewer["recall"] < 0.7


def test_statistics_of_other_programs(tmp_path: Path) -> None:
    """The layouts of pytorch-fid and ADM."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    x, y = torch.from_numpy(random_bytes((2, 40, 3, 8, 8))).unbind()
    extractor = make_extractor(network)
    direct = compare_images(x, y, extractor)
    mu, sigma = direct.reference.mean.numpy(), direct.reference.covariance.numpy()
    np.savez(tmp_path / "pytorch-fid.npz", mu=mu, sigma=sigma)
    spatial = {"mu_s": np.zeros(7), "sigma_s": np.eye(7), "arr_0": np.zeros((2, 8, 8, 3), np.uint8)}
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, **spatial)
    for name in ("pytorch-fid.npz", "adm.npz"):
        published = read_reference(tmp_path / name)
        assert isinstance(published, FeatureStatistics)
        found = compare_images(x, published, extractor, floor=x[:1])
        assert (found.floor, found.n_reference) == (None, None)
        assert "one image gives no floor" in found.warnings
        assert found.value == pytest.approx(direct.value, rel=1e-9)
        assert any("state neither their extractor nor" in text for text in found.warnings)
        with pytest.raises(ValueError, match="must have dimension 4, as Sequential has, got 12"):
            compare_images(x[:, :1], published, extractor)
    np.savez(tmp_path / "images.npz", arr_0=y.permute(0, 2, 3, 1).numpy())
    images = read_reference(tmp_path / "images.npz")
    assert isinstance(images, Tensor)
    assert images.equal(y)


def test_statistics_of_other_weights_or_images_are_refused(digits: ImageDataset) -> None:
    few = digits.images[:9]
    statistics = compare_images(few, few, make_extractor("mnist-classifier")).reference
    with pytest.raises(ValueError, match="the saved statistics were made with"):
        compare_images(few, statistics, make_extractor(MnistClassifier()))
    with pytest.raises(ValueError, match=r"reference must have the samples' shape \(1, 8, 8\)"):
        compare_images(torch.zeros(3, 1, 8, 8).byte(), statistics, make_extractor(Halves()))
