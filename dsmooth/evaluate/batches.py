"""The nats of images by a network, batch by batch, and the check of the images before."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import Classes
from ..data import ImageDataset
from ..fields import check_number
from ..nn import PixelCNNpp
from ..nn.condition import NO_CLASS
from ..pair import SmoothedPair
from ..work import batches, map_parts


def check_images(model: SmoothedPair | PixelCNNpp, dataset: ImageDataset) -> None:
    """Raise ValueError for images of another shape than a pair's, or than a network's if known."""
    network = model.noisy if isinstance(model, SmoothedPair) else model
    wanted = (network.config.image_channels, *(model.image_size or dataset.image_size))
    if tuple(dataset.images.shape[1:]) != wanted:
        kind = "pair" if isinstance(model, SmoothedPair) else "model"
        raise ValueError(
            f"the {kind} is for images (C, H, W) = {wanted}, got {dataset.name} of "
            f"{tuple(dataset.images.shape[1:])}: {dataset.source}"
        )


def labels_for_model(dataset: ImageDataset, classes: Classes | None) -> Tensor | None:
    """The labels (N,) int64 for a model with `classes`, None for one without.

    They are -1, no class, where no image is of any of its classes, such as clusters. Raises
    ValueError if only some images are of its classes.
    """
    if classes is None:
        return None
    if dataset.has_classes(classes.names):
        return dataset.labels_of(classes.names)
    return torch.full((len(dataset),), NO_CLASS)


def nats_of_images(
    nats_of: Callable[[Tensor, Tensor | None, int, int], dict[str, Tensor]],
    dataset: ImageDataset,
    model: PixelCNNpp,
    labels: Tensor | None,
    batch_size: int,
    rows: int = 1,
) -> dict[str, Tensor]:
    """The nats (rows, N) float64 of images, by the names that `nats_of` gives.

    nats_of(batch, its labels or None, index of its first image, row): one row of a batch (B,), on
    the model's device. labels: of the images, as `labels_for_model` gives them.
    """
    check_number("batch_size", batch_size)
    n, parameter = len(dataset), model.head.bias
    check_number("images", n)

    def compute(part: tuple[range, int]) -> dict[str, Tensor]:
        batch, row = part
        indices = torch.arange(batch.start, batch.stop)
        label = None if labels is None else labels[indices].to(parameter.device)
        x = dataset.batch(indices).to(parameter.device, parameter.dtype)
        nats = nats_of(x, label, batch.start, row)
        return {name: values.double().cpu() for name, values in nats.items()}

    parts = [*itertools.product(batches(n, batch_size), range(rows))]
    found = [*map_parts(compute, parts, in_threads=parameter.device.type == "cpu")]
    by_row = [found[row::rows] for row in range(rows)]
    return {
        name: torch.stack([torch.cat([part[name] for part in row]) for row in by_row])
        for name in found[0]
    }
