"""Linear probes: how well a linear classifier tells classes apart by a network's features.

The features of a block are its flattened map of stream ul (docs/math.md, section 7). Those of all
blocks come from one pass over the images and wait in temporary files as float16: for all 70,000
images of MNIST at F = 40 12.6 GB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Precision, ProbeSettings
from ..data import ImageDataset
from ..machine import autocast, torch_seed
from ..nn import PixelCNNpp
from ..nn.condition import NO_CLASS
from ..nn.pixelcnnpp import Streams
from ..nn.weights import in_evaluation, weights_digest
from ..pair import SmoothedPair
from ..progress import portion
from ..results import BlockScores, ProbeResult, ProbeScore
from ..smoothing import Smoothing
from ..work import Record, batches, map_parts
from .likelihood import check_dataset
from .linear import FeatureFile, probe_features

PIXELS, TOGETHER, UNTRAINED = "pixels", "together", "untrained-noisy"
# Parts of a map a side, over which both streams of all blocks are averaged; for clusters too.
TOGETHER_PARTS = 4
# Images of every network call; the last call is filled up, so that the sums of an image are rounded
# alike, however many others there are.
CALL_IMAGES = 50
# Training images that set the scales and biases of an untrained network.
FIRST_BATCH = 25


@dataclass(frozen=True)
class ProbeInputs:
    """The labelled images of probes, and how a network sees them.

    precision: of the networks; "auto" is float32.
    """

    train: ImageDataset
    test: ImageDataset
    smoothing: Smoothing
    settings: ProbeSettings
    precision: Precision = "auto"

    def of(
        self, network: PixelCNNpp | None, x: Tensor, first: int, repeat: int
    ) -> tuple[Tensor, Tensor | None]:
        """(input, context) of a network for clean images x (B, C, H, W), numbered from `first`.

        repeat: 0 for training images, 1 for test images, which get other draws of noise.
        """
        seed = self.settings.seed
        x_tilde = self.smoothing.sample(x, seed=seed, first_index=first, repeat=repeat)
        seen = x_tilde if self.settings.input == "noisy" else x
        has_context = network is not None and network.config.conditioning != "none"
        return seen, x_tilde if has_context else None


def probe_pair(
    pair: SmoothedPair,
    train_set: ImageDataset,
    test_set: ImageDataset,
    settings: ProbeSettings,
    path: Path,
    *,
    plain: PixelCNNpp | None = None,
    precision: Precision = "auto",
) -> ProbeResult:
    """Accuracy of a linear probe after each block of both networks, and of the controls.

    The controls are the pixels, the model `plain` if given, and an untrained network of the noisy
    model's shape. One more probe sees both streams of all blocks. Each probe also has an accuracy
    on the last sixth of the training images, by which `best_probe` chooses. A model with classes
    sees no class. The record `path` gains the probes of each network when they are done, and a
    later call resumes after them. Raises ValueError for data without labels or of another shape
    than the pair's, and for another request in `path`.
    """
    train, test = train_set.first(settings.train_images), test_set.first(settings.test_images)
    for data in (train, test):
        check_dataset(pair, data, 2)  # one of the training images is held out
    pair = in_evaluation(pair)
    settings = replace(settings, train_images=len(train), test_images=len(test))
    inputs = ProbeInputs(train, test, pair.smoothing, settings, precision)
    networks = {"noisy": pair.noisy, "denoiser": pair.denoiser, PIXELS: None}
    if plain is not None:
        networks["plain"] = in_evaluation(plain)
    request = {
        **asdict(settings),
        "data_sha256": {"train": train_set.digest, "test": test_set.digest},
        "smoothing": {"kind": pair.smoothing.kind, "scale": pair.smoothing.scale},
        "weights_sha256": {k: weights_digest(net) for k, net in networks.items() if net},
        "precision": precision,
    }

    record = Record(path, request, ProbeResult)
    accuracy = {} if record.result is None else record.result.accuracy
    for name in (*networks, UNTRAINED):
        with portion(1 / (len(networks) + 1)):
            if name not in accuracy:
                network = untrained(pair.noisy, inputs) if name == UNTRAINED else networks[name]
                accuracy[name] = probe_network(network, inputs)
                record.keep(ProbeResult(accuracy, settings))
    return ProbeResult(accuracy, settings)


def best_probe(scores: BlockScores) -> str:
    """The probe of a network that is best on the last sixth of the training images."""
    return max(scores, key=lambda block: scores[block].held_out)


def untrained(network: PixelCNNpp, inputs: ProbeInputs) -> PixelCNNpp:
    """An untrained network of the same shape, its scales and biases set from a first batch."""
    with torch_seed(inputs.settings.seed):
        fresh = PixelCNNpp(network.config).eval()
    x = inputs.train.batch(torch.arange(min(FIRST_BATCH, len(inputs.train))))
    fresh.initialize(*inputs.of(fresh, x, 0, repeat=0), NO_CLASS if fresh.config.classes else None)
    return fresh.to(network.head.bias)


def probe_network(network: PixelCNNpp | None, inputs: ProbeInputs) -> BlockScores:
    """The probe after each block of a network in evaluation mode; of the pixels for None."""
    labels, test_labels = inputs.train.known_labels(), inputs.test.known_labels()
    classes = 1 + int(max(labels.max(), test_labels.max()))
    choices = {"epochs": inputs.settings.epochs, "seed": inputs.settings.seed}
    device = parameter_of(network).device

    def probe(block: str) -> ProbeScore:
        sets = (train[block], labels), (test[block], test_labels)
        return probe_features(sets[0], sets[1], classes, device=device, **choices)

    features = partial(block_features, network, inputs)
    with features(inputs.train, repeat=0) as train, features(inputs.test, repeat=1) as test:
        # The widest first, so that the last ones are short.
        order = sorted(train, key=lambda block: -train[block].width)
        scores = dict(zip(order, map_parts(probe, order), strict=True))
    return {block: scores[block] for block in train}


@contextmanager
@torch.no_grad()
def block_features(
    network: PixelCNNpp | None, inputs: ProbeInputs, data: ImageDataset, repeat: int
) -> Iterator[dict[str, FeatureFile]]:
    """The features (N, D) float16 of images after each block and of all together; of the pixels for
    None. Raises ArithmeticError for values beyond float16."""
    n, parameter = len(data), parameter_of(network)

    def compute(batch: range) -> dict[str, Tensor]:
        indices = torch.arange(batch.start, batch.start + CALL_IMAGES)
        x = data.batch(indices.clamp(max=n - 1)).to(parameter)
        seen = inputs.of(network, x, batch.start, repeat)
        blocks = {PIXELS: seen[0]}
        if network is not None:
            label = NO_CLASS if network.config.classes else None
            with autocast(x.device, inputs.precision):
                streams = network.features(*seen, label)
            blocks = {block: ul for block, (_, ul) in streams.items()}
            blocks[TOGETHER] = joined_features(streams.values())
        rows = {block: v[: len(batch)].flatten(1).half().cpu() for block, v in blocks.items()}
        if diverged := [block for block, values in rows.items() if not values.isfinite().all()]:
            role = network.role if network is not None else PIXELS
            raise ArithmeticError(
                f"block {diverged[0]} of the network ({role}) has values beyond float16 for "
                f"{data.split} images {batch.start} to {batch.stop - 1}: it diverged"
            )
        return rows

    features: dict[str, FeatureFile] = {}
    in_threads = parameter.device.type == "cpu"
    with ExitStack() as files:
        for rows in map_parts(compute, batches(n, CALL_IMAGES), in_threads=in_threads):
            for block, values in rows.items():
                if block not in features:
                    file = files.enter_context(TemporaryFile())
                    features[block] = FeatureFile(file, range(n), values.shape[1])
                features[block].file.write(values.numpy().data)
                features[block].file.flush()
        yield features


def joined_features(streams: Iterable[Streams]) -> Tensor:
    """Features (B, D) of several blocks: both streams of each, averaged over 4 x 4 parts."""
    maps = [values for block in streams for values in block]
    sizes = [(min(TOGETHER_PARTS, m.shape[2]), min(TOGETHER_PARTS, m.shape[3])) for m in maps]
    pooled = (F.adaptive_avg_pool2d(m, size) for m, size in zip(maps, sizes, strict=True))
    return torch.cat([values.flatten(1) for values in pooled], 1)


def parameter_of(network: PixelCNNpp | None) -> Tensor:
    """A parameter of a network, whose device and dtype its images take; of pixels, an empty one."""
    return torch.empty(0) if network is None else network.head.bias
