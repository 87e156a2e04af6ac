"""Feature extractors by name: networks that turn images into the vectors of distances."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data import to_float
from ..data.reading import FetchError, guarded
from ..distributed import in_batches
from ..fields import Argument, ArgumentError
from ..files import file_sha256, read_tensors
from ..nn.weights import weights_digest
from ..progress import shows_bars

# The weights of the 2015 Inception network as pytorch-fid and torch-fidelity publish them, one and
# the same file.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
RESNET_SIZE = (224, 224)
# Mean and standard deviation of each colour that torchvision's weights were trained with.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DINOV2_WEIGHTS = "dinov2_vitl14_pretrain.pth"


class Features(NamedTuple):
    """Features (N, D) float32 and, from a classifier, class logits (N, K), both on the CPU."""

    features: Tensor
    logits: Tensor | None


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A frozen network, and the facts that every number computed with it must state.

    name: of the network, with its file if the weights are not the usual ones. sha256: of the
    weights. resize: the change of an image before the network, in words. is_fid: whether these are
    the 2015 Inception weights, the only ones whose Fréchet distance is called FID.
    apply: bytes (B, C, H, W) on the network's device -> features (B, D) and logits or None.
    small: whether a CPU computes several batches at a time rather than parts of one.
    """

    name: str
    sha256: str
    resize: str
    network: nn.Module
    apply: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    is_fid: bool = False
    small: bool = False

    @property
    def distance_name(self) -> str:
        """FID, or the name of the Fréchet distance with another extractor."""
        return "FID" if self.is_fid else f"Fréchet distance on {self.name}"

    @property
    def kernel_name(self) -> str:
        """KID, or the name of the kernel distance with another extractor."""
        return "KID" if self.is_fid else f"Kernel distance on {self.name}"

    @property
    def score_name(self) -> str:
        """Inception score, or the name of the score with another classifier."""
        return "Inception score" if self.is_fid else f"Inception-style score on {self.name}"

    def describe(self) -> dict[str, Any]:
        """The facts that saved numbers and statistics must agree on."""
        return {"name": self.name, "sha256": self.sha256, "resize": self.resize}


def make_extractor(
    name: str, *, weights: Path | str | None = None, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """The extractor called `name`, on `device`.

    name: "mnist-classifier"; "resnet50", of torchvision; "inception"; "dinov2"; or a
    torch.nn.Module of the user's as "module:attribute" or "file.py:attribute". The attribute is the
    module itself, or a class or function that makes it without arguments. It gets (B, C, H, W)
    float32 in [-1, 1] and returns features (B, D), or features and class logits.
    weights: a file for "mnist-classifier" (as `dsmooth evaluate train-classifier` writes it) or
    "inception" (the published .pth or another state dict as .safetensors); without one, the
    package's classifier, or the published Inception file, downloaded once.

    Raises ValueError, FileNotFoundError, ImportError or ConnectionError, saying what to do.
    """
    path = Path(weights) if weights else None
    if name == "mnist-classifier":
        extractor = _mnist_classifier(path)
    elif name == "inception":
        extractor = _inception(path)
    elif weights and (name in ("resnet50", "dinov2") or ":" in name):
        raise ArgumentError("weights", f"is for inception and mnist-classifier, not for {name}")
    elif name == "resnet50":
        extractor = _resnet50()
    elif name == "dinov2":
        extractor = _dinov2()
    elif ":" in name:
        extractor = _user_module(name)
    else:
        raise ArgumentError(
            "extractor",
            "must be mnist-classifier, resnet50, inception, dinov2, module:attribute or "
            f"file.py:attribute, got {name!r}",
        )
    extractor.network.eval().requires_grad_(False).to(device)
    return extractor


@torch.no_grad()
def extract_features(
    images: Tensor,
    extractor: FeatureExtractor,
    *,
    batch_size: int = 100,
    progress: Callable[[int], None] | None = None,
) -> Features:
    """Features of images (N, C, H, W), bytes. N >= 1.

    progress: called with the number of images done. Raises ValueError for other images, and for a
    network that returns something else than it should or values that are not finite. Under torchrun
    each process applies the network to its batches, and all have all features.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be uint8 of shape (N, 1 or 3, H, W), got {images.dtype} of shape "
            f"{tuple(images.shape)}"
        )
    if len(images) < 1 or batch_size < 1:
        raise ValueError(f"needs images and a batch_size of at least 1, got {len(images)} images")
    weights = itertools.chain(extractor.network.parameters(), extractor.network.buffers())
    device = next(weights, torch.empty(0)).device

    def apply(first: int) -> tuple[Tensor, Tensor | None]:
        batch = images[first : first + batch_size]
        f, g = extractor.apply(batch.to(device))
        for what, size, found in (("features", "D", f), ("logits", "K", g)):
            if found is None:
                continue
            if found.ndim != 2 or len(found) != len(batch):
                raise ValueError(
                    f"{extractor.name} must return {what} ({len(batch)}, {size}), got "
                    f"{tuple(found.shape)}"
                )
            if not found.isfinite().all():
                raise ValueError(f"{extractor.name} returned {what} that are not finite")
        return f.float().cpu(), None if g is None else g.float().cpu()

    on_cpu = extractor.small and device.type == "cpu"
    parts = in_batches(len(images), batch_size, apply, on_cpu=on_cpu, progress=progress)
    features, logits = zip(*parts, strict=True)
    return Features(torch.cat(features), None if logits[0] is None else torch.cat(logits))


def _mnist_classifier(weights: Path | None) -> FeatureExtractor:
    from .classifier import IMAGE_SHAPE, WEIGHTS_PATH, load_classifier

    path = weights or WEIGHTS_PATH
    model, _ = load_classifier(path)

    def apply(images: Tensor) -> tuple[Tensor, Tensor | None]:
        if images.shape[1:] != IMAGE_SHAPE:
            raise ArgumentError(
                "",
                f"mnist-classifier needs images of shape {IMAGE_SHAPE}, got "
                f"{tuple(images.shape[1:])}: for others take",
                Argument("extractor", "resnet50"),
                "or inception by pip install 'dsmooth[fid]'",
            )
        return model(to_float(images))

    name = "mnist-classifier" if weights is None else f"mnist-classifier ({path.name})"
    return FeatureExtractor(name, file_sha256(path), "none", model, apply, small=True)


def _resnet50() -> FeatureExtractor:
    """ResNet-50 of He et al. (2016) with torchvision's weights."""
    from torchvision.models import ResNet50_Weights, resnet50

    path = fetch_once(ResNet50_Weights.IMAGENET1K_V2.url, "torchvision's ResNet-50")
    body = resnet50()
    with guarded(path, "torchvision's ResNet-50; remove it to fetch it again"):
        body.load_state_dict(torch.load(path, weights_only=True))
    body.fc, head = nn.Identity(), body.fc

    def apply(images: Tensor) -> tuple[Tensor, Tensor | None]:
        x = nn.functional.interpolate(
            images.expand(-1, 3, -1, -1).float() / 255,
            RESNET_SIZE,
            mode="bilinear",
            antialias=True,
        )
        mean, deviation = x.new_tensor(IMAGENET)[:, :, None, None]
        features = body((x - mean) / deviation)
        return features, head(features)

    side = RESNET_SIZE[0]
    resize = f"grey repeated to RGB; bilinear, antialiased, to {side} x {side}"
    network = nn.ModuleList([body, head])
    return FeatureExtractor("resnet50", file_sha256(path), resize, network, apply)


def _inception(weights: Path | None) -> FeatureExtractor:
    fidelity = import_fidelity("feature_extractor_inceptionv3", "the inception extractor needs")
    path = weights or fetch_once(
        fidelity.URL_INCEPTION_V3,
        "the Inception weights",
        *("or name it by", Argument("weights", "FILE")),
        *("or take", Argument("extractor", "mnist-classifier")),
    )
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    digest = file_sha256(path)
    published = digest == INCEPTION_SHA256  # a pickle, but one whose every byte is known
    if not published and path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is not the published file of the 2015 Inception weights (its sha256 is "
            f"{digest[:16]}..., expected {INCEPTION_SHA256[:16]}...): other weights are read from "
            ".safetensors only, since a pickle can run code"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = path
        if not published:  # torch-fidelity unpickles, so it gets a file that was written here
            file = Path(folder) / "weights.pth"
            torch.save(read_tensors(path)[0], file)
        layers, given = ["2048", "logits_unbiased"], {"feature_extractor_weights_path": str(file)}
        try:
            network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", layers, **given)
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{path} is not of the 2015 Inception network: {error}") from None

    def apply(images: Tensor) -> tuple[Tensor, Tensor | None]:
        return network(images.expand(-1, 3, -1, -1))

    name = "inception" if published else f"inception with the weights {path.name}"
    resize = "grey repeated to RGB; bilinear to 299 x 299 as TensorFlow 1 does it (torch-fidelity)"
    return FeatureExtractor(name, digest, resize, network, apply, is_fid=published)


def _dinov2() -> FeatureExtractor:
    """ViT-L/14 of Oquab et al. (2023), whose published code and weights torch.hub has fetched."""
    fidelity = import_fidelity("feature_extractor_dinov2", "the dinov2 extractor needs")
    hub = Path(torch.hub.get_dir())
    weights = hub / "checkpoints" / DINOV2_WEIGHTS
    if not weights.is_file() or not any(hub.glob("facebookresearch_dinov2_*")):
        raise FileNotFoundError(
            f"{hub} does not hold the published code and weights of dinov2, which dsmooth does not "
            'fetch: python -c "import torch; '
            "torch.hub.load('facebookresearch/dinov2', 'dinov2_vitl14')\" does"
        )
    with faults_of("dinov2", "be loaded"):
        network = fidelity.FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])

    def apply(images: Tensor) -> tuple[Tensor, Tensor | None]:
        return network(images.expand(-1, 3, -1, -1))[0], None

    resize = (
        "grey repeated to RGB; bilinear to 224 x 224 as TensorFlow 1 does it (torch-fidelity), "
        "where published numbers are bicubic"
    )
    return FeatureExtractor("dinov2", file_sha256(weights), resize, network, apply)


def import_fidelity(module: str, who: str) -> Any:
    """A module of torch-fidelity. Raises ModuleNotFoundError, beginning with `who`, without it."""
    try:
        importlib.import_module("torch_fidelity")
    except ImportError:
        raise ModuleNotFoundError(f"{who} the extra: pip install 'dsmooth[fid]'") from None
    return importlib.import_module(f"torch_fidelity.{module}")


def fetch_once(url: str, what: str, *ways: str | Argument) -> Path:
    """The file at `url`, kept in torch.hub's folder. Raises ConnectionError if it cannot be had.

    Its name ends with the beginning of its SHA-256. ways: others to have the features.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        digest = path.stem.rpartition("-")[2]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shown = shows_bars()  # not with quiet
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=shown)
        except (OSError, RuntimeError) as error:
            message = f"could not fetch {what} ({error}): fetch {url} elsewhere and put it into"
            raise FetchError("", f"{message} {path.parent}", *ways) from None
    return path


def _user_module(name: str) -> FeatureExtractor:
    where, _, attribute = name.rpartition(":")
    module = _import(where)
    found: Any = getattr(module, attribute, None)
    if not isinstance(found, nn.Module) and callable(found):
        with faults_of(name, "be made without arguments"):
            found = found()
    if not isinstance(found, nn.Module):
        raise ValueError(
            f"{name} must be a torch.nn.Module, or make one when called without arguments, got "
            f"{type(found).__name__}"
        )

    def apply(images: Tensor) -> tuple[Tensor, Tensor | None]:
        with faults_of(name, f"compute features of images {tuple(images.shape)}"):
            out = found(to_float(images))
        if isinstance(out, Tensor):
            return out, None
        if isinstance(out, tuple) and len(out) == 2 and all(isinstance(x, Tensor) for x in out):
            return out
        raise ValueError(
            f"{name} must return features, or features and logits, got {type(out).__name__}"
        )

    return FeatureExtractor(name, digest_of_code(found, module), "its own", found, apply)


def _import(where: str) -> Any:
    path = Path(where)
    if path.suffix == ".py" and not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    with faults_of(where, "be imported"):
        if path.suffix != ".py":
            return importlib.import_module(where)
        # Another file, or a library, may have the same stem.
        name = f"dsmooth_extractor_{hashlib.sha256(bytes(path.resolve())).hexdigest()}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None  # there is a loader for .py
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where dataclasses and `inspect` look it up
        spec.loader.exec_module(module)
    return module


@contextmanager
def faults_of(name: str, action: str) -> Iterator[None]:
    """Turn errors of a user's code into one of a line: extractor cannot `action`."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError):
            raise ModuleNotFoundError(
                f"extractor {name} cannot {action}: {reason}: name a module of yours as "
                "file.py:attribute, or put its folder on PYTHONPATH"
            ) from None
        raise ValueError(
            f"extractor {name} cannot {action}: {type(error).__name__}: {reason}"
        ) from error


def digest_of_code(network: nn.Module, module: ModuleType) -> str:
    """SHA-256 of a network's layers and weights, and of the source of its layers' modules.

    module: also of this one. torch's are left out, for `repr` tells of their layers, and modules
    without a source.
    """
    words = [repr(network), weights_digest(network)]
    of_layers = (sys.modules.get(type(layer).__module__) for layer in network.modules())
    for each in dict.fromkeys((module, *of_layers)):
        if each is not None and not each.__name__.startswith("torch."):
            with suppress(OSError, TypeError):
                words.append(inspect.getsource(each))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
