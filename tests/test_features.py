"""Feature extractors: names, hashes, the packaged classifier, Inception, modules of the user."""

from __future__ import annotations

import hashlib
import pickle
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models, transforms

from dsmooth.data import ImageDataset, load_dataset
from dsmooth.evaluate import features as features_module
from dsmooth.evaluate.classifier import (
    SHIFT,
    WEIGHTS_PATH,
    MnistClassifier,
    accuracy,
    load_classifier,
    save_classifier,
    shift_images,
    train_classifier,
)
from dsmooth.evaluate.comparison import compare_images
from dsmooth.evaluate.features import FeatureExtractor, extract_features, make_extractor
from dsmooth.evaluate.frechet import PublishedStatistics
from dsmooth.evaluate.sources import ImageSet, read_reference
from tests.helpers.data_makers import random_bytes

USER_MODULE = """
import torch

class Halves(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor({weight}))

    def forward(self, x):
        flat = self.weight * x.flatten(1)
        half = flat.shape[1] // 2
        return flat[:, :half], flat[:, half:]

made = Halves()
def wrong():
    return "text"
"""
LAYERS = """
from torch import nn

def result(x):
    return {result}

class Inner(nn.Module):
    def forward(self, x):
        return result(x)

made = nn.Sequential(Inner(), nn.{layer}())
"""


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset("mnist", "test")


def test_the_packaged_classifier_knows_digits(digits: ImageDataset) -> None:
    model, metadata = load_classifier()
    assert metadata["test_images"] == "10000"
    assert float(metadata["test_accuracy"]) >= 0.99
    assert accuracy(model, digits) >= 0.985  # a thousand of those ten thousand
    assert WEIGHTS_PATH.stat().st_size < 500_000
    extractor = make_extractor("mnist-classifier")
    assert extractor.sha256 == hashlib.sha256(WEIGHTS_PATH.read_bytes()).hexdigest()
    assert extractor.distance_name == "Fréchet distance on mnist-classifier"
    assert extractor.kernel_name == "Kernel distance on mnist-classifier"
    assert "Inception-style" in extractor.score_name


def test_training_is_a_function_of_the_seed(tmp_path: Path, digits: ImageDataset) -> None:
    few = replace(digits, images=digits.images[:300], labels=digits.labels[:300])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    seen: list[int] = []
    model = train_classifier(few, epochs=2, seed=1, progress=seen.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert seen[-1] == 600
    again, other = (train_classifier(few, epochs=2, seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(v, again[k]) for k, v in model.state_dict().items())
    assert not torch.equal(model.head.weight, other["head.weight"])
    save_classifier(model, tmp_path / "a.safetensors", {"seed": "1"})
    loaded, metadata = load_classifier(tmp_path / "a.safetensors")
    assert metadata["seed"] == "1"
    torch.testing.assert_close(loaded.head.weight, model.head.weight, rtol=1e-3, atol=1e-7)


def test_shifts_move_images_whole() -> None:
    images = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 10:14, 8:16] = torch.arange(1, 33, dtype=torch.uint8).view(4, 8)
    moved = shift_images(images, seed=0, first_index=7)
    assert torch.equal(moved[3:], shift_images(images[3:], seed=0, first_index=10))
    offsets = set()
    for image in moved:
        rows, columns = (image[0] > 0).nonzero().min(0).values.tolist()
        offsets.add((rows - 10, columns - 8))
        back = image[0, rows : rows + 4, columns : columns + 8]
        assert torch.equal(back, images[0, 0, 10:14, 8:16])
    wanted = {(i, j) for i in range(-SHIFT, SHIFT + 1) for j in range(-SHIFT, SHIFT + 1)}
    assert offsets == wanted


def test_the_hash_follows_the_weights(tmp_path: Path) -> None:
    model, _ = load_classifier()
    path = tmp_path / "mine.safetensors"
    digests = {make_extractor("mnist-classifier").sha256}
    for change in (0.0, 0.25):
        with torch.no_grad():
            model.head.bias[3] += change
        save_classifier(model, path, {})
        extractor = make_extractor("mnist-classifier", weights=path)
        assert extractor.name == "mnist-classifier (mine.safetensors)"
        digests.add(extractor.sha256)
    assert len(digests) == 3


def test_the_hash_of_a_users_module_follows_weights_layers_and_code(tmp_path: Path) -> None:
    halves = USER_MODULE.format(weight="3.0")
    layers = ((result, layer) for result in ("x", "-x") for layer in ("ReLU", "Tanh"))
    codes = [USER_MODULE.format(weight="2.0"), halves, halves.replace("flat =", "flat = 2 *")]
    codes += [LAYERS.format(result=result, layer=layer) for result, layer in layers]
    digests = []
    for i, code in enumerate(codes * 2):
        path = tmp_path / str(i) / "layers.py"  # files of one name
        path.parent.mkdir()
        path.write_text(code)
        digests.append(make_extractor(f"{path}:made").sha256)
    assert digests[:7] == digests[7:]
    assert len({*digests}) == 7
    assert "layers" not in sys.modules


def test_modules_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_features.py").write_text(USER_MODULE.format(weight="2.0"))
    images = torch.tensor([[0, 255], [255, 0]]).byte().view(2, 1, 1, 2)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("user_features:Halves", "user_features:made", f"{tmp_path}/user_features.py:made"):
        extractor = make_extractor(name)
        assert extractor.distance_name == f"Fréchet distance on {name}"
        features, logits = extract_features(images, extractor)
        assert logits is not None
        assert features.flatten().tolist() == [-2, 2]
        assert logits.flatten().tolist() == [2, -2]
    sys.modules.pop("user_features")


def test_resnet50_is_what_torchvision_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For RGB of any size; the logits are those of the whole network."""
    network = models.resnet50().eval()
    weights = models.ResNet50_Weights.IMAGENET1K_V2
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / Path(weights.url).name)
    extractor = make_extractor("resnet50")
    images = torch.from_numpy(random_bytes((1, 3, 16, 12)))
    features, logits = extract_features(images, extractor)
    with torch.no_grad():
        x = nn.functional.interpolate(images / 255, (224, 224), mode="bilinear", antialias=True)
        expected = network(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(x))
    assert (features.shape, extractor.distance_name) == ((1, 2048), "Fréchet distance on resnet50")
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    grey = make_extractor("mnist-classifier")
    with pytest.raises(ValueError, match=r"take extractor=resnet50 or inception by pip install"):
        extract_features(images, grey)


def test_inception_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the published file is called FID; others are read without unpickling."""
    fidelity = pytest.importorskip("torch_fidelity")
    torch.manual_seed(0)
    with monkeypatch.context() as patch:  # random weights, not the file that it would download
        network = fidelity.feature_extractor_inceptionv3
        patch.setattr(network, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *a, **k: None)
        theirs = fidelity.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"])
    path = tmp_path / "other.safetensors"
    save_file(theirs.state_dict(), path)
    extractor = make_extractor("inception", weights=path)
    assert extractor.distance_name == (
        "Fréchet distance on inception with the weights other.safetensors"
    )
    assert extractor.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "299" in extractor.resize
    grey = torch.randint(0, 256, (1, 1, 28, 28)).byte()
    features, logits = extract_features(grey, extractor)
    assert features.shape == (1, 2048)
    expected = theirs(grey.expand(-1, 3, -1, -1).contiguous())
    torch.testing.assert_close(features, expected[0])
    torch.testing.assert_close(logits, expected[1])

    pickled = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), pickled)
    with pytest.raises(ValueError, match="is not the published file of the 2015 Inception"):
        make_extractor("inception", weights=pickled)
    digest = hashlib.sha256(pickled.read_bytes()).hexdigest()
    monkeypatch.setattr(features_module, "INCEPTION_SHA256", digest)
    published = make_extractor("inception", weights=pickled)
    assert (published.distance_name, published.kernel_name) == ("FID", "KID")
    assert published.score_name == "Inception score"

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not of the 2015 Inception network"):
        make_extractor("inception", weights=path)


def test_dinov2_is_what_torch_hub_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"does not fetch: python -c .*dinov2_vitl14'\)"):
        make_extractor("dinov2")
    with pytest.raises(ValueError, match="weights is for inception and mnist-classifier, not for"):
        make_extractor("dinov2", weights="x")
    for folder in ("facebookresearch_dinov2_main", "checkpoints"):
        (tmp_path / folder).mkdir()
    (tmp_path / "checkpoints" / "dinov2_vitl14_pretrain.pth").write_bytes(b"weights")
    asked: list[tuple[str, ...]] = []

    def load(*names: str) -> nn.Module:
        asked.append(names)
        return nn.Sequential(nn.AvgPool2d(112), nn.Flatten())

    monkeypatch.setattr(torch.hub, "load", load)
    extractor = make_extractor("dinov2")
    assert asked == [("facebookresearch/dinov2", "dinov2_vitl14")]
    assert extractor.distance_name == "Fréchet distance on dinov2"
    assert extractor.sha256 == hashlib.sha256(b"weights").hexdigest()
    grey = torch.full((2, 1, 8, 8), 255).byte()
    features, logits = extract_features(grey, extractor)
    white = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(
        features, white.repeat_interleave(4).expand(2, 12), rtol=0, atol=1e-3
    )
    assert logits is None


def test_inception_without_network_or_extra_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'dsmooth\[fid\]'"):
            make_extractor("inception")
    pytest.importorskip("torch_fidelity")

    def fail(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    for name, way in (("inception", "weights=FILE"), ("resnet50", "put it into")):
        with pytest.raises(ConnectionError, match=f"no route to host.*: fetch .*{way}"):
            make_extractor(name)
    damaged = tmp_path / "checkpoints" / Path(models.ResNet50_Weights.IMAGENET1K_V2.url).name
    damaged.write_bytes(b"")
    with pytest.raises(ValueError, match=r"resnet50.* cannot be read as .*; remove it to fetch it"):
        make_extractor("resnet50")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(damaged))  # no folder can be made there
    with pytest.raises(ConnectionError, match=r"Not a directory.*: fetch .*put it into"):
        make_extractor("resnet50")


def test_extractors_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("nothing")
    (tmp_path / "lines.py").write_text("raise ModuleNotFoundError('two\\nlines')")
    broken = "\ndef broken():\n    1 / 0\n"
    (tmp_path / "user.py").write_text(USER_MODULE.format(weight="2.0") + broken)
    for name, error, message in (
        ("vgg", ValueError, "extractor must be mnist-classifier, resnet50, inception, dinov2"),
        ("no_such_module:f", ImportError, "no_such_module.*put its folder on PYTHONPATH"),
        (f"{tmp_path}/none.py:f", FileNotFoundError, "none.py"),
        (f"{tmp_path}/user.py:nothing", ValueError, "must be a torch.nn.Module.*got NoneType"),
        (f"{tmp_path}/user.py:wrong", ValueError, "got str"),
        (f"{tmp_path}/lines.py:f", ImportError, "lines.py cannot be imported: two lines: name"),
        (f"{tmp_path}/bad.py:f", ValueError, "bad.py cannot be imported: NameError: name 'nothin"),
        (f"{tmp_path}/user.py:broken", ValueError, "cannot be made without arguments: ZeroDivi"),
    ):
        with pytest.raises(error, match=message) as caught:
            make_extractor(name)
        assert "\n" not in str(caught.value)


def test_what_cannot_be_extracted_or_trained_on_is_named(digits: ImageDataset) -> None:
    extract = partial(extract_features, extractor=make_extractor("mnist-classifier"))
    colour, grey = torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2, 1, 28, 28)
    bare, shifted = (replace(digits, labels=y) for y in (None, digits.labels + 1))
    for call, argument, message in (
        (extract, colour, r"images of shape \(1, 28, 28\), got \(3, "),
        (extract, grey, "images must be uint8"),
        (extract, grey[:0].byte(), "at least 1, got 0 images"),
        (train_classifier, bare, "labelled images of shape"),
        (partial(train_classifier, epochs=0), digits, "epochs must be at least 1, got 0"),
        (partial(accuracy, MnistClassifier()), shifted, r"lie in 0 \.\. 9"),
    ):
        with pytest.raises(ValueError, match=message):
            call(argument)


def test_networks_that_return_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Identity()
    monkeypatch.setattr(features_module, "wrong", network, raising=False)
    extractor = make_extractor("dsmooth.evaluate.features:wrong")
    for result, message in (
        (torch.zeros(2, 3, 4), r"must return features \(2, D\), got \(2, 3, 4\)"),
        (torch.zeros(1, 3), r"must return features \(2, D\), got \(1, 3\)"),
        (torch.full((2, 3), torch.nan), "returned features that are not finite"),
        ((torch.zeros(2, 3), torch.zeros(1, 4)), r"must return logits \(2, K\), got \(1, 4\)"),
        ((torch.zeros(2, 3), torch.zeros(2)), r"must return logits \(2, K\), got \(2,\)"),
        (torch.full((2, 2, 3), torch.inf).unbind(), "returned features that are not finite"),
        ((torch.zeros(2, 3), torch.full((2, 4), torch.nan)), "returned logits that are not"),
        ("text", "must return features, or features and logits, got str"),
        (RuntimeError("a\nb"), r"cannot compute features of images \(2, 1, 4, 4\): .*: a b"),
    ):
        network.forward = Mock(side_effect=[result])
        with pytest.raises(ValueError, match=message):
            extract_features(torch.zeros(2, 1, 4, 4).byte(), extractor)
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
        name: compare_images(x, reference, extractor, floor=floor, subsets=3, subset_size=100)
        for name, x in (("real", rest), ("blurred", blurred), ("noise", noise))
    }
    values = [runs[name].value for name in ("real", "blurred", "noise")]
    assert values == sorted(values)
    assert values[0] == pytest.approx(runs["real"].floor, rel=0.5)
    kernels = [runs[name].kernel.value for name in ("real", "blurred", "noise")]
    assert kernels == sorted(kernels)
    assert runs["real"].score.value > runs["noise"].score.value
    result = runs["real"]
    assert (result.n_samples, result.n_reference, result.n_floor) == (150, 300, 150)
    assert result.extractor["dimension"] == 128
    assert result.extractor["sha256"] == extractor.sha256
    assert result.warnings == ()

    shuffled = compare_images(rest.flip(0), reference, extractor, batch_size=33)
    assert shuffled.value == pytest.approx(result.value, rel=1e-5)
    assert shuffled.score.value == pytest.approx(result.score.value, rel=1e-6)
    assert shuffled.floor is None

    few = compare_images(rest[:127], reference, extractor, floor=floor)
    assert any("127 samples are fewer than the 128 features" in w for w in few.warnings)
    assert any("the floor is of 150 images, not 127" in w for w in few.warnings)


def test_statistics_of_other_programs(tmp_path: Path) -> None:
    """The layouts of pytorch-fid and ADM; they are of Inception's features and no others."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    x, y = torch.randint(0, 256, (2, 40, 3, 8, 8)).byte().unbind()
    extractor = FeatureExtractor(
        "inception", "0", "resized", network, lambda b: (network(b.float()), None), is_fid=True
    )
    direct = compare_images(x, y, extractor)
    mu, sigma = direct.reference.mean.numpy(), direct.reference.covariance.numpy()
    np.savez(tmp_path / "pytorch-fid.npz", mu=mu, sigma=sigma)
    spatial = {"mu_s": np.zeros(7), "sigma_s": np.eye(7), "arr_0": np.zeros((2, 8, 8, 3), np.uint8)}
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, **spatial)
    for name in ("pytorch-fid.npz", "adm.npz"):
        published = read_reference(tmp_path / name)
        assert isinstance(published, PublishedStatistics)
        found = compare_images(x, published, extractor, floor=x[:1])
        assert found.name == "FID"
        assert found.floor is None
        assert "one image gives no floor" in found.warnings
        assert found.value == pytest.approx(direct.value, rel=1e-9)
        assert (found.n_reference, found.kernel) == (None, None)
        assert any(f"{name} states neither the number of its" in text for text in found.warnings)
        with pytest.raises(ValueError, match=f"{name} is of Inception's features, not of own's"):
            compare_images(x, published, replace(extractor, name="own", is_fid=False))
        with pytest.raises(ValueError, match="must have dimension 4, got 12"):
            compare_images(x[:, :1], published, extractor)
        with pytest.raises(ValueError, match="precision and recall need real images"):
            compare_images(x, published, extractor, precision_recall=True)
    np.savez(tmp_path / "images.npz", arr_0=y.permute(0, 2, 3, 1).numpy())
    for wrong in ({"subsets": 0}, {"subset_size": 1}, {"seed": -1}, {"seed": 2**64}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must "):
            compare_images(x, y, Mock(), **wrong)  # before any work
    images = read_reference(tmp_path / "images.npz")
    assert isinstance(images, ImageSet)
    assert images.images.equal(y)


def test_edm2s_pickle_is_refused_with_its_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fid = {"mu": np.arange(3.0), "sigma": np.eye(3)}
    Path("st'ats.pkl").write_bytes(pickle.dumps({"fid": fid, "fd_dinov2": fid}))
    with pytest.raises(ValueError, match=r"st'ats\.pkl is a pickle, which can run code") as caught:
        read_reference(Path("st'ats.pkl"))
    *_, python, option, code = shlex.split(str(caught.value).partition("EDM2's: ")[2])
    assert (python, option) == ("python", "-c")
    exec(code, {})
    converted = read_reference(Path("st'ats.npz"))
    assert isinstance(converted, PublishedStatistics)
    assert converted.mean.tolist() == [0, 1, 2]


def test_statistics_of_other_weights_or_images_are_refused(
    tmp_path: Path, digits: ImageDataset
) -> None:
    extractor, weights = make_extractor("mnist-classifier"), tmp_path / "other.safetensors"
    save_classifier(MnistClassifier(), weights, {})
    other, few = make_extractor("mnist-classifier", weights=weights), digits.images[:9]
    statistics = compare_images(few, few, extractor).reference
    with pytest.raises(ValueError, match="the saved statistics were made with"):
        compare_images(few, statistics, other)
    with pytest.raises(ValueError, match=r"reference must have the samples' shape \(1, 8, 8\)"):
        compare_images(torch.zeros(3, 1, 8, 8).byte(), statistics, extractor)
