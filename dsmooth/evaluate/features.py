"""Feature extractors: networks that turn images into the vectors of distances."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data import to_float
from ..data.dataset import as_grey
from ..fields import SettingError, check_one_of, check_tensor
from ..files import file_sha256, read_tensors
from ..nn.weights import weights_digest
from ..progress import shows_bars
from ..results import Extractor
from ..work import batches, map_parts

# The network that FID is named after, as torch-fidelity calls it.
INCEPTION = "inception-v3-compat"
# The package's classifier; `tools/train_classifier.py` made its weights.
CLASSIFIER = "mnist-classifier"
CLASSIFIER_WEIGHTS = Path(__file__).with_name("mnist_classifier.safetensors")


class Features(NamedTuple):
    """Features (N, D) float32 and, from a classifier, class logits (N, K), both on the CPU."""

    features: Tensor
    logits: Tensor | None


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A frozen network, and the facts that every number computed with it must state.

    facts: the digest is of the file of weights for mnist-classifier and inception-v3-compat, else
    of the weights. apply: bytes (B, C, H, W) on the network's device -> features (B, D), or these
    and logits. small: whether a CPU computes several batches at a time.
    """

    facts: Extractor
    network: nn.Module
    apply: Callable[[Tensor], Any]
    small: bool = False


class MnistClassifier(nn.Module):
    """Four convolutions and one hidden layer, each with ReLU; then a linear layer.

    Fréchet distances compare the hidden layer, scaled to a mean variance of 1 on training images.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),  # 14 x 14
            nn.Conv2d(16, 32, 3, padding=1),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),  # 7 x 7
            nn.Conv2d(64, 64, 3, stride=2, padding=1),  # 4 x 4
        )
        self.hidden = nn.Linear(64 * 4 * 4, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 1, 28, 28) in [-1, 1] -> features (B, 128) and class logits (B, 10)."""
        for conv in self.convs:
            x = conv(x).relu()
        x = nn.functional.dropout(x.flatten(1), 0.25, self.training)
        features = self.hidden(x).relu()
        return features, self.head(nn.functional.dropout(features, 0.5, self.training))


def make_extractor(
    network: str | nn.Module, *, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """An extractor by its name, or of a network of your own, on `device`.

    network: "mnist-classifier", the package's; a name that torch-fidelity has registered, such as
    "inception-v3-compat" (needs the extra "fid"); or a module, which gets (B, C, H, W) float32 in
    [-1, 1] and returns features (B, D), or features and class logits (B, K), and is copied.
    Raises ValueError, ImportError or ConnectionError, saying what to do.
    """
    if isinstance(network, nn.Module):
        own = copy.deepcopy(network)
        facts = Extractor(type(own).__name__, weights_digest(own), "its own")
        extractor = FeatureExtractor(facts, own, lambda x: own(to_float(x)))
    elif network == CLASSIFIER:
        extractor = _mnist_classifier()
    else:
        extractor = _registered(network)
    extractor.network.eval().requires_grad_(False).to(device)
    return extractor


@torch.no_grad()
def extract_features(
    images: Tensor, extractor: FeatureExtractor, *, batch_size: int = 100
) -> Features:
    """Features of images (N, C, H, W), bytes. N >= 1.

    Raises ValueError for other images, and for a network that returns something else or values
    that are not finite.
    """
    check_tensor("images", images, ("N", "C", "H", "W"), dtypes=(torch.uint8,))
    weights = itertools.chain(extractor.network.parameters(), extractor.network.buffers())
    device, name = next(weights, torch.empty(0)).device, extractor.facts.name

    def apply(batch: range) -> list[Tensor]:
        answer = extractor.apply(images[batch.start : batch.stop].to(device))
        outputs = answer if isinstance(answer, tuple) else (answer,)
        for rows in outputs:
            check_tensor(f"what {name} returns", rows, (len(batch), "D"))
        if not all(rows.isfinite().all() for rows in outputs):
            raise ValueError(f"{name} returned values that are not finite")
        return [rows.float().cpu() for rows in outputs]

    in_threads = extractor.small and device.type == "cpu"
    parts = map_parts(apply, batches(len(images), batch_size), in_threads=in_threads)
    features, *logits = map(torch.cat, zip(*parts, strict=True))
    return Features(features, logits[0] if logits else None)


def _mnist_classifier() -> FeatureExtractor:
    model = MnistClassifier()
    model.load_state_dict(read_tensors(CLASSIFIER_WEIGHTS)[0])  # float16; computed in float32

    def apply(images: Tensor) -> Any:
        images = as_grey(images)
        if images.shape[1:] != (1, 28, 28):
            raise SettingError(
                (),
                f"{CLASSIFIER} needs images of shape (1, 28, 28), got {tuple(images.shape[1:])}: "
                "for other images pass your own network to make_extractor(module) in Python, or "
                "pip install 'dsmooth[fid]' and, to download weights, set",
                extractor=INCEPTION,
            )
        return model(to_float(images))

    facts = Extractor(CLASSIFIER, file_sha256(CLASSIFIER_WEIGHTS), "none")
    return FeatureExtractor(facts, model, apply, small=True)


def _registered(name: str) -> FeatureExtractor:
    """An extractor of torch-fidelity, by the layers that it takes for FID and Inception score."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    check_one_of("extractor", name, (CLASSIFIER, *FEATURE_EXTRACTORS_REGISTRY))
    make = FEATURE_EXTRACTORS_REGISTRY[name]
    layers = dict.fromkeys(map(make.get_default_feature_layer_for_metric, ("fid", "isc")))
    try:
        network = make(name, [*layers], verbose=shows_bars())
    except Exception as error:  # of the download, or of reading what was downloaded
        raise ConnectionError(
            f"torch-fidelity cannot load {name} ({' '.join(str(error).split())}): call it once "
            f"where there is a network and copy the files of {torch.hub.get_dir()}, or use the "
            f"extractor {CLASSIFIER}"
        ) from error
    digest = weights_digest(network)
    if name == INCEPTION:
        file = URL_INCEPTION_V3.rsplit("/", 1)[1]
        digest = file_sha256(Path(torch.hub.get_dir(), "checkpoints", file))

    side = getattr(network, "resolution", None) or getattr(network, "INPUT_IMAGE_SIZE", None)
    size = f"bilinear to {side} x {side} as TensorFlow 1 does it (torch-fidelity)"
    resize = f"grey repeated to RGB; {size if side else 'then its own'}"
    facts = Extractor(name, digest, resize)
    return FeatureExtractor(facts, network, lambda x: network(x.expand(-1, 3, -1, -1)))
