"""Linear probes: how well a linear classifier tells classes apart by a network's features.

The frozen features of a block are the input of a linear softmax classifier (docs/math.md, section
6). The six blocks of a network come from one pass over the images. They wait on disk as float16
until their probe is trained: for all 70,000 images of MNIST at F = 40 they take 12.6 GB.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Precision, Split
from ..data import ImageDataset
from ..distributed import in_batches, rank_and_size, side_by_side
from ..errors import SettingError
from ..fields import check_one_of
from ..machine import autocast, torch_seed
from ..nn import PixelCNNpp
from ..nn.condition import warn_untrained_zero_label, zero_label
from ..nn.pixelcnnpp import Streams
from ..nn.weights import in_evaluation, weights_digest
from ..pair import SmoothedPair
from ..probe_settings import Pooling, ProbeSettings
from ..progress import progress
from ..record import Record
from ..results import BlockScores, ProbeResult, ProbeScore
from ..smoothing import Smoothing
from .batches import check_images
from .linear import FeatureMatrix, train_linear

PIXELS, TOGETHER = "pixels", "together"
# Training image i and test image i get different draws of noise.
REPEATS: dict[Split, int] = {"train": 0, "test": 1}
# Parts of a map a side, over which both streams of all blocks are averaged; for clusters too.
TOGETHER_PARTS = 4
# Images of every network call; the last call is filled up. So the sums of an image are rounded
# alike, whatever the other images are and however many there are.
CALL_IMAGES = 50
# Training images that set the scales and biases of an untrained network.
FIRST_BATCH = 25
# The last training images choose among probes. HELD_OUT is their share of all training images,
# HELD_OUT_PASSES the share of the passes after which probes are compared on them.
HELD_OUT, HELD_OUT_PASSES = 1 / 6, 1 / 4


def probe_pair(
    pair: SmoothedPair,
    train_set: ImageDataset,
    test_set: ImageDataset,
    settings: ProbeSettings,
    path: Path,
    *,
    plain: PixelCNNpp | None = None,
    only: Collection[str] | None = None,
    precision: Precision = "auto",
) -> ProbeResult:
    """Accuracy of a linear probe after each block of both networks, and of the controls.

    The controls are the pixels, the model `plain` if given, and untrained networks of the pair's
    shapes. One more probe sees the blocks together. Each probe also has an accuracy on the last
    sixth of the training images, after training on the others, by which `best_probe` chooses. A
    model with classes sees a label of zeros.
    only: the networks to probe (noisy, denoiser, pixels, plain, untrained-noisy,
    untrained-denoiser), by default all of these. precision: of the networks; "auto" is float32.

    The record `path` keeps the result, and until all are done the probes of each network: a later
    call resumes there. Features are in nameless files in the folder of `path`. Under torchrun all
    processes call this; the result is rank 0's. Raises ValueError for data without labels or of
    another shape than the pair's, for another request in `path`, and for an unknown network.
    """
    sets: dict[Split, ImageDataset] = {"train": train_set, "test": test_set}
    return make_probing(pair, sets, settings, path.parent, plain, only, precision).result(path)


def make_probing(
    pair: SmoothedPair,
    sets: Mapping[Split, ImageDataset],
    settings: ProbeSettings,
    folder: Path,
    plain: PixelCNNpp | None = None,
    only: Collection[str] | None = None,
    precision: Precision = "auto",
) -> Probing:
    """The probes of `probe_pair`, with its arguments and errors."""
    counts = {"train": settings.train_images, "test": settings.test_images}
    splits = {split: data.part(slice(counts[split])) for split, data in sets.items()}
    for (split, data), least in zip(splits.items(), (2, 1), strict=True):  # one is held out
        check_images(pair, data)
        if len(data) < least:
            raise SettingError(f"{split}_images", f"must be at least {least}, got {len(data)}")
        if (data.known_labels() < 0).any():
            raise ValueError(f"probes need labels of 0 or more, but {data.source} has others")
    train_images, test_images = map(len, splits.values())
    settings = replace(settings, train_images=train_images, test_images=test_images)
    pair = in_evaluation(pair)
    subjects = {"noisy": Subject(pair.noisy), "denoiser": Subject(pair.denoiser)}
    subjects[PIXELS] = Subject(None)
    if plain is not None:
        subjects["plain"] = Subject(in_evaluation(plain))
    subjects["untrained-noisy"] = Subject(pair.noisy, trained=False)
    subjects["untrained-denoiser"] = Subject(pair.denoiser, trained=False)
    for name in only or ():
        check_one_of("only", name, [*subjects])
    chosen = {name: subject for name, subject in subjects.items() if name in (only or subjects)}
    digests = {split: data.digest for split, data in sets.items()}
    return Probing(pair.smoothing, splits, settings, folder, precision, chosen, digests)


def best_probe(scores: BlockScores) -> str:
    """The probe of a network that is best on the last sixth of the training images."""
    return max(scores, key=lambda block: scores[block].held_out)


def best_block(scores: BlockScores) -> str:
    """The best probe of a single block."""
    return best_probe({block: score for block, score in scores.items() if block != TOGETHER})


@dataclass(frozen=True)
class Subject:
    """A network to probe, None for the pixels; or an untrained one of its shape."""

    network: PixelCNNpp | None
    trained: bool = True


@dataclass(frozen=True)
class Probing:
    """The images, the noise, the settings and the folder of features that all subjects share.

    digests: of the sets of images whose first ones the splits are.
    """

    smoothing: Smoothing
    splits: Mapping[Split, ImageDataset]
    settings: ProbeSettings
    folder: Path
    precision: Precision = "auto"
    subjects: Mapping[str, Subject] = field(default_factory=dict)
    digests: Mapping[Split, str] = field(default_factory=dict)

    def result(
        self,
        path: Path,
        *,
        known: Mapping[str, BlockScores] | None = None,
        replace: bool = False,
    ) -> ProbeResult:
        """The probes of all subjects by the record `path`, where those of an earlier call are kept.

        known: probes that need not be computed. replace: take over the record of another request.
        """
        request = {
            **self.request(self.digests),
            "networks": [*self.subjects],
            "weights_sha256": {
                name: weights_digest(subject.network)
                for name, subject in self.subjects.items()
                if subject.network is not None and subject.trained
            },
            "precision": self.precision,
        }
        record = Record(path, request, ProbeResult, BlockScores, replace=replace)

        def probe(name: str, subject: Subject) -> BlockScores:
            network = subject.network
            if network is not None and not subject.trained:
                network = self.untrained(network)
            return self.probe(name, network)

        def probe_all() -> ProbeResult:
            scores = dict(known or {})
            for name, subject in self.subjects.items():
                if name not in scores:
                    scores[name] = record.part(name, partial(probe, name, subject))
            return ProbeResult({name: scores[name] for name in self.subjects}, self.settings)

        path.parent.mkdir(parents=True, exist_ok=True)
        return record.obtain(probe_all)

    def request(self, data_sha256: Mapping[Split, str]) -> Mapping[str, object]:
        """The part of a request that all subjects share."""
        smoothing = {"kind": self.smoothing.kind, "scale": self.smoothing.scale}
        return {**asdict(self.settings), "data_sha256": data_sha256, "smoothing": smoothing}

    def controls_request(self) -> Mapping[str, object]:
        """All that decides the probes of the pixels and of the untrained noisy model, but rounding;
        the images by the digests of the first ones."""
        noisy = self.subjects["untrained-noisy"].network
        assert noisy is not None
        digests = {split: data.digest for split, data in self.splits.items()}
        return {**self.request(digests), "network": asdict(noisy.config)}

    def untrained(self, network: PixelCNNpp) -> PixelCNNpp:
        """An untrained network of the same shape, its scales and biases set from a first batch."""
        with torch_seed(self.settings.seed):
            fresh = PixelCNNpp(network.config).eval()
        first = torch.arange(min(FIRST_BATCH, len(self.splits["train"])))
        x = self.splits["train"].batch(first)
        fresh.initialize(*self.inputs(fresh, x, 0, "train"), hidden_label(fresh, x))
        return fresh.to(parameter_of(network))

    def inputs(
        self, network: PixelCNNpp | None, x: Tensor, first: int, split: Split
    ) -> tuple[Tensor, Tensor | None]:
        """(input, context) for clean images x (B, C, H, W), numbers first .. first + B - 1."""
        x_tilde = self.smoothing.sample(
            x, seed=self.settings.seed, first_index=first, repeat=REPEATS[split]
        )
        conditioned = network is not None and network.config.conditioning != "none"
        seen = x_tilde if self.settings.input == "noisy" else x
        return seen, x_tilde if conditioned else None

    @torch.no_grad()
    def features(
        self, name: str, network: PixelCNNpp | None, split: Split, first: int
    ) -> dict[str, Tensor]:
        """Rows (B, D), float16, of CALL_IMAGES images from `first` on, after each block."""
        data = self.splits[split]
        indices = torch.arange(first, first + CALL_IMAGES)
        x = data.batch(indices.clamp(max=len(data) - 1)).to(parameter_of(network))
        count = min(CALL_IMAGES, len(data) - first)
        inputs = self.inputs(network, x, first, split)
        if network is None:
            blocks = {PIXELS: inputs[0]}
        else:
            with autocast(x.device, self.precision):
                streams = network.features(*inputs, hidden_label(network, x))
            settings, blocks = self.settings, {}
            for block in settings.blocks:
                u, ul = streams[block]
                maps = {"u": u, "ul": ul, "both": torch.cat((u, ul), 1)}[settings.stream]
                blocks[block] = pool(maps, settings.pooling)
            if settings.together:
                chosen = [streams[block] for block in settings.blocks]
                blocks[TOGETHER] = joined_features(chosen, settings.together)
        rows = {block: values[:count].flatten(1).half().cpu() for block, values in blocks.items()}
        if diverged := [key for key, values in rows.items() if not values.isfinite().all()]:
            raise ArithmeticError(
                f"block {diverged[0]} of {name} has values beyond float16 for {split} images "
                f"{first} to {first + count - 1}: the network diverged"
            )
        return rows

    def probe(self, name: str, network: PixelCNNpp | None) -> BlockScores:
        """Write all features in one pass, then train each block's probe; empty except at rank 0."""
        labels = {split: data.known_labels() for split, data in self.splits.items()}
        fit = partial(
            train_linear,
            classes=1 + max(int(values.max()) for values in labels.values()),
            seed=self.settings.seed,
            device=parameter_of(network).device,
        )
        n, epochs = len(labels["train"]), self.settings.epochs
        first = n - max(1, round(HELD_OUT * n))
        with contextlib.ExitStack() as stack:
            maps = self.extract(name, network, stack)
            if rank_and_size()[0] > 0:
                return {}
            train, test = maps["train"], maps["test"]

            def probe_block(block: str) -> ProbeScore:
                rows = train[block]
                accuracy, error, train_accuracy = fit(
                    (rows, labels["train"]), (test[block], labels["test"]), epochs=epochs
                )
                held_out, _, _ = fit(
                    (rows[:first], labels["train"][:first]),
                    (rows[first:], labels["train"][first:]),
                    epochs=math.ceil(HELD_OUT_PASSES * epochs),
                )
                return ProbeScore(accuracy, error, train_accuracy, rows.shape[1], held_out)

            # The widest first, so that the last ones are short.
            order, results = sorted(train, key=lambda block: -train[block].shape[1]), {}
            with progress(f"probes of {name}", len(order), "blocks") as done:
                for block, result in zip(order, side_by_side(probe_block, order), strict=True):
                    results[block] = result
                    done(len(results))
        return {block: results[block] for block in train}

    def extract(
        self, name: str, network: PixelCNNpp | None, stack: contextlib.ExitStack
    ) -> dict[Split, dict[str, FeatureMatrix]]:
        """The features of all images by split and block, as maps of files that `stack` closes."""
        maps: dict[Split, dict[str, FeatureMatrix]] = {}
        on_cpu = parameter_of(network).device.type == "cpu"
        for split, data in self.splits.items():
            files: dict[str, IO[bytes]] = defaultdict(
                lambda: stack.enter_context(tempfile.TemporaryFile(dir=self.folder))  # noqa: SIM115
            )
            n, features = len(data), partial(self.features, name, network, split)
            with progress(f"features of {name}, {split}", n) as done:
                for rows in in_batches(
                    n, CALL_IMAGES, features, on_cpu=on_cpu, progress=done, to_all=False
                ):
                    for block, values in rows.items():
                        files[block].write(values.numpy().tobytes())
            for file in files.values():
                file.flush()
            maps[split] = {
                block: np.memmap(file, np.float16, "c").reshape(n, -1)
                for block, file in files.items()
            }
        return maps


def pool(values: Tensor, pooling: Pooling | int) -> Tensor:
    """values (B, F, H, W): flat, their mean (B, F), or averages over n x n parts of the map."""
    if pooling == "flat":
        return values
    if pooling == "mean":
        return values.mean((2, 3))
    height, width = values.shape[2:]
    return F.adaptive_avg_pool2d(values, (min(pooling, height), min(pooling, width)))


def joined_features(streams: Iterable[Streams], parts: int) -> Tensor:
    """Features (B, D) of several blocks: both streams of each, averaged over parts x parts."""
    maps = [values for block in streams for values in block]
    return torch.cat([pool(values, parts).flatten(1) for values in maps], 1)


def hidden_label(network: PixelCNNpp, x: Tensor) -> Tensor | None:
    """A label of zeros for images x, which names no class; None for a network without classes."""
    size = network.config.condition_size
    if size and network.config.hidden_labels == 0:
        warn_untrained_zero_label()
    return zero_label(x.shape[0], size, x) if size else None


def parameter_of(network: PixelCNNpp | None) -> Tensor:
    """A parameter of a network, whose device and dtype its images take; of pixels, an empty one."""
    return torch.empty(0) if network is None else network.head.bias
