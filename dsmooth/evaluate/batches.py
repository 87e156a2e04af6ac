"""The nats of images by a network, batch by batch, and the check of the images before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import ImageDataset
from ..distributed import in_batches, rank_and_size
from ..fields import check_number
from ..nn import PixelCNNpp
from ..pair import SmoothedPair


def check_dataset(dataset: Any) -> None:
    """Raise TypeError for images that are no `ImageDataset`, with the line that makes it."""
    if not isinstance(dataset, ImageDataset):
        raise TypeError(
            f"dataset must be an ImageDataset, got a {type(dataset).__name__}: "
            "dsmooth.data.own_images(images) makes one"
        )


def check_images(pair: SmoothedPair, dataset: ImageDataset) -> None:
    """Raise ValueError for images of another shape than the pair's."""
    check_dataset(dataset)
    wanted = (pair.noisy.config.image_channels, *pair.image_size)
    if tuple(dataset.images.shape[1:]) != wanted:
        raise ValueError(
            f"the pair is for images (C, H, W) = {wanted}, got {dataset.name} of "
            f"{tuple(dataset.images.shape[1:])}: {dataset.source}"
        )


def labels_for_model(
    dataset: ImageDataset, n_classes: int, class_names: Sequence[str]
) -> Tensor | None:
    """The labels (N,) for a model, None for one without classes.

    Where the images have no labels of its classes, a label of zeros: (N, n_classes) float32.
    Raises ValueError for a model whose classes have no names and images without labels.
    """
    check_dataset(dataset)
    if n_classes and class_names and not dataset.has_classes(class_names):
        return torch.zeros(1, n_classes).expand(len(dataset), -1)
    return dataset.labels_for(n_classes)


def nats_of_images(
    nats_of: Callable[[Tensor, Tensor | None, int, int], dict[str, Tensor]],
    dataset: ImageDataset,
    model: PixelCNNpp,
    labels: Tensor | None,
    limit: int | None,
    batch_size: int,
    progress: Callable[[float], None] | None,
    rows: int = 1,
) -> dict[str, Tensor]:
    """The nats (rows, N) float64 of the first `limit` images, by the names that `nats_of` gives.

    nats_of(batch, its labels or None, index of its first image, row): one row of a batch (B,), on
    the model's device. labels: of all images, as `labels_for_model` gives them. progress: called
    with the number of images done, after each row of a batch.
    Under torchrun each process computes its batches, and all have the rows of all.
    """
    check_dataset(dataset)
    if limit is not None:
        check_number("limit", limit)
    check_number("batch_size", batch_size)
    n = len(dataset) if limit is None else min(limit, len(dataset))
    if n < 1:
        raise ValueError(f"{dataset.name} has no images to measure")
    parameter, ranks, rows_done = model.head.bias, rank_and_size()[1], itertools.count(1)

    def from_image(first: int) -> dict[str, Tensor]:
        indices = torch.arange(first, min(first + batch_size, n))
        label = None if labels is None else labels[indices].to(parameter.device)
        x = dataset.batch(indices).to(parameter.device, parameter.dtype)
        results = []
        for row in range(rows):
            nats = nats_of(x, label, first, row)
            results.append({name: values.double().cpu() for name, values in nats.items()})
            done = next(rows_done) * batch_size * ranks / rows  # the other processes do as many
            if progress is not None:
                progress(min(done, n))
        return {name: torch.stack([row[name] for row in results]) for name in results[0]}

    on_cpu = parameter.device.type == "cpu"
    parts = list(in_batches(n, batch_size, from_image, on_cpu=on_cpu))
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
