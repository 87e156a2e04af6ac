"""Fréchet distances: statistics of features, feature extractors, and comparisons of images."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dsmooth.commands.evaluate import read_reference
from dsmooth.data import ImageDataset, load_dataset
from dsmooth.evaluate.comparison import (
    Reference,
    compare_images,
    fidelity_scores,
    kernel_distance,
)
from dsmooth.evaluate.features import (
    CLASSIFIER,
    CLASSIFIER_WEIGHTS,
    INCEPTION,
    Features,
    extract_features,
    make_extractor,
)
from dsmooth.evaluate.frechet import FeatureStatistics, distance_with_error, frechet_distance
from dsmooth.files import file_sha256
from dsmooth.results import FLOOR, INCEPTION_SHA256
from tests.helpers.data_makers import random_bytes, refuses

statistics_of = FeatureStatistics.of_batches
ZERO, EYE, X = torch.zeros(3), torch.eye(3), torch.zeros(4, 3)
SMALL = torch.zeros(2, 1, 4, 4).byte()
seeds = st.integers(0, 2**31)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 2, *[st.floats(-9, 9)] * 2), min_size=1))
@settings(max_examples=30, deadline=None)
def test_diagonal_covariances_have_a_closed_form(axes: list[tuple[float, ...]]) -> None:
    var1, var2, mean1, mean2 = torch.tensor(axes, dtype=torch.float64).T
    expected = (mean1 - mean2).square().sum() + (var1.sqrt() - var2.sqrt()).square().sum()
    distance = frechet_distance(mean1, torch.diag(var1), mean2, torch.diag(var2))
    # Variances below D eps of the largest are taken for rounding noise.
    slack = 1e-6 * float(var1.max() * var2.max()) ** 0.5 * len(axes)
    assert distance == pytest.approx(float(expected), rel=1e-12, abs=1e-12 + slack)


def test_fewer_images_than_features_agree_with_the_exact_factors() -> None:
    """Sample covariances of rank N - 1: their factors are the centred features themselves."""
    x, y = normal(40, 200, seed=1), 0.3 + 1.7 * normal(60, 200, seed=2)
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    root = torch.linalg.svdvals(a @ b.T).sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    distance = frechet_distance(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))
    assert distance == pytest.approx(float(expected - 2 * root), rel=1e-10)
    for seed in range(9):  # rounding gives no negative distance of equals
        same = normal(40, 200, seed=seed)
        assert 0 <= frechet_distance(same[0], torch.cov(same.T), same[0], torch.cov(same.T)) < 1e-9


def test_arrays_lists_and_any_real_dtype_are_taken() -> None:
    (m1, c1), (m2, c2) = ((x.mean(0), x.T.cov()) for x in normal(2, 9, 4))
    distance = frechet_distance(m1, c1, m2, c2)
    assert frechet_distance(m1.numpy(), c1.numpy(), m2.tolist(), c2.tolist()) == distance
    single = frechet_distance(*(x.float().requires_grad_() for x in (m1, c1, m2, c2)))
    assert single == pytest.approx(distance, rel=1e-5)
    for kind in (">f8", np.longdouble, np.float16, np.uint16, int, bool):
        assert frechet_distance(np.ones(2, kind), np.eye(2, dtype=kind), [4, 5], np.eye(2)) == 25


@given(seeds, st.lists(st.integers(0, 7), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_statistics_do_not_depend_on_batches_or_order(seed: int, sizes: list[int]) -> None:
    x = 1000 + normal(sum(sizes) + 2, 5, seed=seed)  # a mean that would drown naive sums
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    expected = torch.from_numpy(np.cov(x.numpy(), rowvar=False))
    for batches in ([x], x[order].split([*sizes, 2])):
        statistics = statistics_of(batches)
        assert statistics.count == len(x)
        torch.testing.assert_close(statistics.mean, x.mean(0), rtol=1e-14, atol=0)
        torch.testing.assert_close(statistics.covariance, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(2)}, "cannot be read as .*sigma"),
        ({"mu": [0.0] * 2, "sigma": np.eye(3)}, r"x\.npz: sigma must have shape \(2, 2\)"),
        ({"mu": ["a"], "sigma": np.eye(3)}, "x.npz: mu must be real, got <U1"),
    ],
)
def test_files_that_are_no_statistics_are_named(tmp_path: Path, arrays, words: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    refuses(words, FeatureStatistics.load, str(tmp_path / "x.npz"))


def test_the_bootstrap_gives_the_scatter_of_independent_samples() -> None:
    real, distances = statistics_of([normal(5000, 3)]), []
    for seed in range(60):
        samples = 0.7 + normal(300, 3, seed=seed + 1)
        distances.append(statistics_of([samples]).distance(real))
    found = distance_with_error(samples, real, repeats=100)
    assert found[0] == distances[-1]
    error = found[1]
    assert error == pytest.approx(float(np.std(distances)), rel=0.4)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(300, (300,), generator=generator) for _ in range(3)]
    exact = np.std([statistics_of([samples[r]]).distance(real) for r in rows], ddof=1)
    assert distance_with_error(samples, real, repeats=3)[1] == pytest.approx(float(exact))
    assert error != distance_with_error(samples, real, repeats=100, seed=1)[1]


class Always(nn.Module):
    """A network with one answer."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.forward = Mock(return_value=answer)


REFUSED = [
    (frechet_distance, (X, EYE, ZERO, EYE), r"mean1 must have shape \(D,\), got \(4, 3\)"),
    (frechet_distance, (ZERO, EYE, X[0, :2], EYE), r"mean2 must have shape \(3,\), got \(2,\)"),
    (frechet_distance, (ZERO, X, ZERO, EYE), r"cov1 must have shape \(3, 3\), got \(4, 3\)"),
    (frechet_distance, (ZERO / 0, EYE, ZERO, EYE), "mean1 must be finite, got 3 NaN or infinite"),
    (frechet_distance, (ZERO, EYE + EYE.roll(1, 0), ZERO, EYE), "cov1 must be symmetric, got e"),
    (frechet_distance, (ZERO, EYE, ZERO, -EYE), "cov2 must be .*, got an eigenvalue of -1"),
    (frechet_distance, (ZERO, EYE * 1j, ZERO, EYE), "cov1 must be real"),
    (statistics_of, ([X, X[:, :2]],), r"must have shape \(B, 3\), got \(4, 2\)"),
    (statistics_of, ([X[0]],), r"must have shape \(B, D\), got \(3,\)"),
    (statistics_of, ([X[:1], X[:0]],), "`images` must be at least 2, got 1"),
]


@pytest.mark.parametrize(("call", "arguments", "words"), REFUSED)
def test_what_is_no_gaussian_is_refused(call, arguments, words) -> None:
    refuses(words, call, *arguments)


@pytest.mark.parametrize(
    ("network", "images", "words"),
    [
        (CLASSIFIER, SMALL, r"\(1, 28, 28\), got \(1, 4, 4\): .* `extractor=inception-v3-compat`"),
        (CLASSIFIER, SMALL.float(), "images must be uint8"),
        (Always(torch.zeros(1, 3)), SMALL, r"Always returns must have shape \(2, D\), got \(1, 3"),
        (Always(torch.zeros(2, 3) / 0), SMALL, "returned values that are not finite"),
        (Always((X[:2], X)), SMALL, r"returns must have shape \(2, D\), got \(4, 3\)"),
    ],
)
def test_images_and_networks_without_features_are_named(network, images, words: str) -> None:
    refuses(words, extract_features, images, make_extractor(network))


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset("mnist", "test")


def test_the_packaged_classifier_knows_digits(digits: ImageDataset) -> None:
    extractor = make_extractor(CLASSIFIER)
    _, logits = extract_features(digits.images, extractor)
    assert (logits.argmax(1) == digits.labels).double().mean() >= 0.985
    assert extractor.facts.sha256 == file_sha256(CLASSIFIER_WEIGHTS)
    assert extractor.facts.distance_name == "Fréchet distance on mnist-classifier"


def test_a_network_of_ones_own_gives_features() -> None:
    images = torch.tensor([[0, 255], [255, 0]]).byte().view(2, 1, 1, 2)
    extractor = make_extractor(nn.Flatten())
    assert extractor.facts.distance_name == "Fréchet distance on Flatten"
    features, logits = extract_features(images, extractor)
    assert (features.tolist(), logits) == ([[-1, 1], [1, -1]], None)


def test_only_the_published_weights_of_inception_give_a_fid(tmp_path: Path, monkeypatch) -> None:
    """Random weights lie where torch-fidelity keeps the published ones."""
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

    extractor = make_extractor(INCEPTION)
    assert extractor.facts.distance_name == f"Fréchet distance on {INCEPTION}"
    assert extractor.facts.sha256 == file_sha256(path)
    assert "299 x 299" in extractor.facts.resize
    grey = torch.from_numpy(random_bytes((1, 1, 28, 28)))
    layers = ["2048", "logits_unbiased"]
    expected = type(extractor.network)(INCEPTION, layers)(grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close(tuple(extract_features(grey, extractor)), expected)
    assert replace(extractor.facts, sha256=INCEPTION_SHA256).distance_name == "FID"


def test_extractors_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    fail = Mock(side_effect=OSError("no route\nto host"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    message = f"cannot load {INCEPTION} .no route to host.*{tmp_path}, or use the extractor mnist"
    refuses(message, make_extractor, INCEPTION, error=ConnectionError)
    words = "`extractor` must be one of .*vgg16.*got 'vgg'"
    refuses(words, make_extractor, "vgg")


def test_a_comparison_orders_real_images_before_noise(digits: ImageDataset) -> None:
    """Other digits are near, blurred ones farther, noise far."""
    extractor = make_extractor(CLASSIFIER)
    real, floor, rest = digits.images[:300], digits.images[300:450], digits.images[450:600]
    compare = partial(compare_images, reference=Reference.of(real, extractor))
    noise = torch.from_numpy(random_bytes(tuple(rest.shape)))
    blurred = nn.functional.avg_pool2d(rest.float(), 3, 1, 1).byte()
    result = compare({"others": rest, "blurred": blurred, "noise": noise, FLOOR: floor})
    values = [result.distances[name].value for name in ("others", "blurred", "noise")]
    assert values == sorted(values)
    assert values[0] == pytest.approx(result.distances[FLOOR].value, rel=0.5)
    assert (result.n_reference, result.distances[FLOOR].n_images) == (300, 150)
    assert result.dimension == 128
    assert result.warnings == ()

    shuffled = compare({"others": rest.flip(0)}).distances["others"]
    assert shuffled.value == pytest.approx(values[0], rel=1e-5)
    # Another seed resamples other images: the error differs, the distance does not.
    reseeded = compare({"others": rest}, seed=1).distances["others"]
    assert reseeded.value == values[0]
    assert reseeded.error != result.distances["others"].error
    assert compare({"enough": rest[:128]}).warnings == ()
    warnings = "\n".join(compare({"few": rest[:127], FLOOR: floor}).warnings)
    assert "127 samples are fewer than the 128 features" in warnings
    assert "the floor is of 150 images, not 127" in warnings


def test_scores_are_there_with_the_extra(digits: ImageDataset) -> None:
    pytest.importorskip("torch_fidelity")
    extractor = make_extractor(CLASSIFIER)
    real, noise = digits.images[:60], torch.from_numpy(random_bytes((20, 1, 28, 28)))
    reference = Reference.of(real, extractor)
    sets = {"noise": noise, "few": noise[:3], FLOOR: digits.images[60:80]}
    scores = {k: d.scores for k, d in compare_images(sets, reference).distances.items()}
    assert scores["noise"].kernel_distance > scores[FLOOR].kernel_distance
    assert scores["noise"].inception_score < scores[FLOOR].inception_score
    assert None not in vars(scores["noise"]).values()
    assert scores["few"].precision is None
    statistics = replace(reference, features=None)
    found = compare_images({"noise": noise}, statistics).distances["noise"].scores
    assert {k for k, value in vars(found).items() if value is not None} == {
        "inception_score",
        "inception_score_deviation",
    }


def test_the_kernel_distance_is_that_of_torch_fidelity() -> None:
    metric = pytest.importorskip("torch_fidelity.metric_kid").kid_features_to_metric
    for n, m in ((30, 50), (1100, 1010)):
        x, y = normal(n, 8, seed=1), 0.2 + normal(m, 8, seed=2)
        expected = metric(x, y, kid_subset_size=min(n, m, 1000), verbose=False)
        assert kernel_distance(x, y) == pytest.approx([*expected.values()], rel=1e-9)


def test_precision_is_of_the_samples_and_recall_of_the_real_images() -> None:
    pytest.importorskip("torch_fidelity")
    left, right, far = normal(3, 40, 3, seed=1)
    real, samples = torch.cat([left, 50 + right]), torch.cat([left, 500 + far])
    found = fidelity_scores(Features(samples, None), real)
    assert found.precision == 0.5  # half of the samples are where no real image is
    assert found.recall == 0.5  # nothing of the right half is found
    # As many of the real images as there are samples, at random.
    fewer = fidelity_scores(Features(left, None), real)
    assert fewer.precision > 0.8
    assert 0.3 < fewer.recall < 0.7


def test_statistics_of_other_programs(tmp_path: Path) -> None:
    """The layouts of pytorch-fid and ADM."""
    x, y = torch.from_numpy(random_bytes((2, 40, 3, 8, 8))).unbind()
    extractor = make_extractor(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()))
    reference = Reference.of(y, extractor)
    direct = compare_images({"x": x}, reference).distances["x"]
    mu, sigma = reference.statistics.mean.numpy(), reference.statistics.covariance.numpy()
    spatial = {"mu_s": np.zeros(7), "sigma_s": np.eye(7), "arr_0": np.zeros((2, 8, 8, 3), np.uint8)}
    for name, arrays in {"pytorch-fid.npz": {}, "adm.npz": spatial}.items():
        np.savez(tmp_path / name, mu=mu, sigma=sigma, **arrays)
        published = Reference(extractor, read_reference(tmp_path / name))
        found = compare_images({"x": x, FLOOR: x[:1]}, published)
        assert ([*found.distances], found.n_reference) == (["x"], None)
        assert "one image gives no floor" in found.warnings
        assert found.distances["x"].value == pytest.approx(direct.value, rel=1e-9)
        assert any("state neither their extractor nor" in text for text in found.warnings)
        words = r"features of Sequential must have shape \(N, 12\), got \(40, 4\)"
        refuses(words, compare_images, {"x": x[:, :1]}, published)
    np.savez(tmp_path / "images.npz", arr_0=y.permute(0, 2, 3, 1).numpy())
    assert torch.equal(read_reference(tmp_path / "images.npz"), y)


def test_a_network_of_ones_own_stays_as_it_is_and_its_weights_identify_it() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 2)).train()
    extractor = make_extractor(network)
    assert all(module.training for module in network.modules())
    assert all(weight.requires_grad for weight in network.parameters())
    before = extract_features(SMALL, extractor).features
    with torch.no_grad():
        network[2].weight.add_(1)
    assert torch.equal(extract_features(SMALL, extractor).features, before)
    other = make_extractor(network).facts
    assert other == make_extractor(network).facts != extractor.facts
