"""Linear probes: how well a linear classifier tells classes apart by a network's features.

The frozen features of a block are the input of a linear softmax classifier (docs/math.md, section
6). The six blocks of a network come from one pass over the images. They wait on disk as float16
until their probe is trained: for all 70,000 images of MNIST at F = 40 they take 12.6 GB.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Pooling, Precision, ProbeSettings, Split
from ..data import ImageDataset
from ..distributed import in_batches, rank_and_size, side_by_side
from ..machine import autocast, torch_seed
from ..nn import PixelCNNpp
from ..nn.pixelcnnpp import Streams
from ..nn.weights import in_evaluation, weights_digest
from ..pair import SmoothedPair
from ..progress import progress
from ..remembered import remembered
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
    controls: bool = True,
    only: Collection[str] | None = None,
    precision: Precision = "auto",
    replace_other: bool = False,
    again: bool = False,
) -> dict[str, Any]:
    """Accuracy of a linear probe after each block of both networks, and of the controls.

    The controls are the pixels themselves, the model `plain` if given, and networks of the pair's
    shapes with untrained weights; these only with `controls`. One more probe sees the blocks
    together. Each probe also has an accuracy on the last sixth of the training images, after
    training on the others, by which `best_probe` chooses. only: what is probed (noisy, denoiser,
    pixels, plain, untrained-noisy, untrained-denoiser), by default all of these. The result is
    written to `path` as JSON, and the probes of each network beside it until all are done: a later
    call with the same settings goes on from there. Features lie in the folder of `path` while they
    are needed. Their files have no name, so nothing is left however the call ends.
    precision: that networks compute features in; "auto" is float32. replace_other: overwrite a
    result of other settings or weights. again: overwrite one of the same, too.
    A model with classes sees a label of zeros. Raises ValueError for data without labels or of
    another shape than the pair's, for another result in `path`, and where `only` names what there
    is not; OSError where the disk has no room for the features.
    Under torchrun all processes call this; the result is rank 0's.
    """
    splits: dict[Split, ImageDataset] = {
        "train": train_set.part(slice(settings.train_images)),
        "test": test_set.part(slice(settings.test_images)),
    }
    for (split, data), least in zip(splits.items(), (2, 1), strict=True):  # one is held out
        check_images(pair, data)
        if len(data) < least:
            raise ValueError(f"`{split}_images` must be at least {least}, got {len(data)}")
        if (data.known_labels() < 0).any():
            raise ValueError(f"probes need labels of 0 or more, but {data.source} has others")
    pair = in_evaluation(pair)
    probing = Probing(pair.smoothing, splits, settings, path.parent, precision)
    trained = {"noisy": pair.noisy, "denoiser": pair.denoiser}
    subjects: dict[str, Callable[[], PixelCNNpp | None]] = {
        "noisy": lambda: pair.noisy,
        "denoiser": lambda: pair.denoiser,
        PIXELS: lambda: None,
    }
    if plain is not None:
        trained["plain"] = in_evaluation(plain)
        subjects["plain"] = lambda: trained["plain"]
    if controls:
        subjects["untrained-noisy"] = lambda: probing.untrained(pair.noisy)
        subjects["untrained-denoiser"] = lambda: probing.untrained(pair.denoiser)
    missing = [name for name in only or () if name not in subjects]
    if missing or (only is not None and not only):
        hint = "; plain= gives a plain model" * ("plain" in missing)
        got = ", ".join(missing) or "none"
        raise ValueError(f"`only` must be among {', '.join(subjects)}, got {got}{hint}")
    chosen = [name for name in subjects if only is None or name in only]
    key = {
        **asdict(settings),
        "train_images": len(splits["train"]),
        "test_images": len(splits["test"]),
        "data": train_set.name,
        "data_sha256": {"train": train_set.digest, "test": test_set.digest},
        "smoothing": {"kind": pair.smoothing.kind, "scale": pair.smoothing.scale},
        "weights_sha256": {k: weights_digest(v) for k, v in trained.items() if k in chosen},
        "precision": precision,
    }
    parts = {name: path.with_name(f"{path.stem}-{name}.json") for name in chosen}

    def probe_one(name: str) -> dict[str, Any]:
        return {"probes": probing.probe(name, subjects[name]())}

    def probe_all() -> dict[str, Any]:
        accuracy = {
            name: remembered(part, key, partial(probe_one, name))["probes"]
            for name, part in parts.items()
        }
        return {"unit": "fraction classified correctly", "accuracy": accuracy}

    path.parent.mkdir(parents=True, exist_ok=True)
    result = remembered(path, key, probe_all, again=again, replace=replace_other)
    if rank_and_size()[0] == 0:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return result


def best_probe(results: Mapping[str, Any]) -> str:
    """The probe of a network that is best on the last sixth of the training images.

    results: some of the network's entries in a result of `probe_pair`.
    """
    return max(results, key=lambda name: results[name]["held_out"])


def best_block(results: Mapping[str, Any]) -> str:
    """The best probe of a single block."""
    return best_probe({name: result for name, result in results.items() if name != TOGETHER})


@dataclass(frozen=True)
class Probing:
    """The images, the noise, the settings and the folder of features that all subjects share."""

    smoothing: Smoothing
    splits: Mapping[Split, ImageDataset]
    settings: ProbeSettings
    folder: Path
    precision: Precision = "auto"

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
            for one in settings.blocks:
                named = zip(("u", "ul"), streams[one], strict=True)
                chosen = [values for stream, values in named if settings.stream in (stream, "both")]
                blocks[one] = pool(torch.cat(chosen, 1), settings.pooling)
            if settings.together:
                chosen_streams = [streams[one] for one in settings.blocks]
                blocks[TOGETHER] = joined_features(chosen_streams, settings.together)
        rows = {block: values[:count].flatten(1).half().cpu() for block, values in blocks.items()}
        for block, values in rows.items():
            if not values.isfinite().all():
                raise ArithmeticError(
                    f"block {block} of {name} has values beyond float16 for {split} images "
                    f"{first} to {first + count - 1}: the network diverged"
                )
        return rows

    def probe(self, name: str, network: PixelCNNpp | None) -> dict[str, dict[str, Any]] | None:
        """Write all features in one pass, then train each block's probe; None except at rank 0."""
        n_train, n_test = (len(self.splits[split]) for split in ("train", "test"))
        labels = {split: data.known_labels() for split, data in self.splits.items()}
        fit = partial(
            train_linear,
            classes=1 + max(int(values.max()) for values in labels.values()),
            seed=self.settings.seed,
            device=parameter_of(network).device,
        )
        epochs, first = self.settings.epochs, n_train - max(1, round(HELD_OUT * n_train))
        with contextlib.ExitStack() as stack:
            with progress(f"features of {name}", n_train + n_test) as done:
                maps = self.extract(name, network, stack, done)
            if rank_and_size()[0] > 0:
                return None
            train, test = maps["train"], maps["test"]
            with progress(f"probes of {name}", len(train), "blocks") as done:
                parts_done = dict.fromkeys(train, 0.0)

                def of_block(block: str) -> dict[str, Any]:
                    rows = train[block]

                    def part_done(n: int) -> None:
                        parts_done[block] = n / (epochs * n_train)
                        done(sum(parts_done.values()))

                    result = fit(
                        (rows, labels["train"]),
                        (test[block], labels["test"]),
                        epochs=epochs,
                        progress=part_done,
                    )
                    held_out = fit(
                        (rows[:first], labels["train"][:first]),
                        (rows[first:], labels["train"][first:]),
                        epochs=math.ceil(HELD_OUT_PASSES * epochs),
                    )
                    return {**result, "held_out": held_out["accuracy"]}

                # The widest first, so that none is left alone at the end.
                order = sorted(train, key=lambda block: -train[block].shape[1])
                results = dict(zip(order, side_by_side(of_block, order), strict=True))
        return {block: results[block] for block in train}

    def extract(
        self,
        name: str,
        network: PixelCNNpp | None,
        stack: contextlib.ExitStack,
        done: Callable[[int], None],
    ) -> dict[Split, dict[str, FeatureMatrix]]:
        """The features of all images by split and block, as maps of files that `stack` closes."""
        widths: dict[str, int] = {}
        maps: dict[Split, dict[str, FeatureMatrix]] = {}
        before, on_cpu = 0, parameter_of(network).device.type == "cpu"
        for split, data in self.splits.items():
            files: dict[str, IO[bytes]] = {}
            of_call = partial(self.features, name, network, split)
            results = in_batches(len(data), CALL_IMAGES, of_call, on_cpu=on_cpu, to_all=False)
            for number, rows in enumerate(results, 1):
                if not widths:
                    widths = {block: values.shape[1] for block, values in rows.items()}
                    self.check_room(sum(widths.values()))
                for block, values in rows.items():
                    if block not in files:
                        new = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - by the stack
                        files[block] = stack.enter_context(new)
                    files[block].write(values.numpy().tobytes())
                done(before + min(number * CALL_IMAGES, len(data)))
            before += len(data)
            maps[split] = {}
            for block, file in files.items():
                file.flush()
                shape = len(data), widths[block]
                maps[split][block] = np.memmap(file, np.float16, "c", shape=shape)
        return maps

    def check_room(self, width: int) -> None:
        """Raise OSError unless the disk has room for `width` features of every image."""
        needed = 2 * sum(map(len, self.splits.values())) * width
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                f"the features need {needed / 1e9:.1f} GB in {self.folder}, which has "
                f"{free / 1e9:.1f} GB free: use another folder, fewer `train_images` or "
                "`pooling=mean`"
            )


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
    return x.new_zeros(x.shape[0], size) if size else None


def parameter_of(network: PixelCNNpp | None) -> Tensor:
    """A parameter of a network, whose device and dtype its images take; of pixels, an empty one."""
    return torch.empty(0) if network is None else network.head.bias
