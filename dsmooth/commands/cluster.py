"""`dsmooth cluster`: labels that images give themselves, as a file and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os.path import realpath
from pathlib import Path

import torch
import torch.nn.functional as F

from ..data import ImageDataset
from ..data.labels import LABELS_FILE, write_labels
from ..data.pictures import save_grid
from ..evaluate.clusters import agreement, find_clusters
from ..fields import check_number
from ..files import check_writable, printable
from ..machine import choose_device, use_threads
from ..pretrained import load
from ..progress import progress
from ..text import Table
from .options import Cluster
from .shared import choose_data

SHOWN = 16  # images of a cluster in the picture, black where it has fewer


def cluster(options: Cluster) -> None:
    """Run `dsmooth cluster`. Raises ValueError or FileNotFoundError before any work."""
    path = options.out / LABELS_FILE
    check_writable(path)
    check_number("clusters", options.clusters, 2)
    use_threads(options.execution.threads)
    models = load(*options.models, device=choose_device(options.execution.device))
    if "noisy" not in models.networks:
        raise ValueError("clusters are of features of a noisy model: name its run, or its pair")
    noisy, choice = models.networks["noisy"], choose_data(models, options.dataset)
    if choice.data_dir and Path(realpath(choice.data_dir)) in Path(realpath(path)).parents:
        raise ValueError(
            f"--out must not be inside {choice.data_dir}: clusters.png would be an image"
        )
    train, test = (choice.load(split) for split in ("train", "test"))
    with progress("features of training images", len(train)):
        clusters, labels = find_clusters(noisy, train, options.clusters, seed=options.seed)
    with progress("features of held-out images", len(test)):
        held_out = clusters.labels(noisy, test)
    # Clusters of other images or of another call have other names, and never pass for these.
    mark = replace(train, labels=labels, class_names=()).digest[:6]
    names = tuple(f"cluster {number} of {mark}" for number in range(options.clusters))
    labelled = [
        replace(data, labels=numbers, class_names=names)
        for data, numbers in ((train, labels), (test, held_out))
    ]
    # The file of labels is written last: where it exists, nothing is missing.
    save_clusters(labelled[0], path.with_name("clusters.png"))
    write_labels(path, labelled, names)
    print_sizes(labelled)
    if train.labels is not None:
        purity, information = agreement(labels, train.labels)
        print(
            f"compared with the labels of {train.name}, which were not used: purity {purity:.3f}, "
            f"normalized mutual information {information:.3f}"
        )
    name = printable(path.parent)
    print(f"wrote {name}/{path.name} and {name}/clusters.png, a row for each cluster")
    print(f"next: `dsmooth train noisy --labels {printable(path)} --label-dropout 0.1`")


def save_clusters(dataset: ImageDataset, path: Path) -> None:
    """Write a picture with a row of images for each class of a data set."""
    rows = []
    for number in range(len(dataset.class_names)):
        x = dataset.batch((dataset.known_labels() == number).nonzero()[:SHOWN, 0])
        rows.append(F.pad(x, (0, 0) * 3 + (0, SHOWN - len(x)), value=-1.0))
    save_grid(torch.cat(rows), path, columns=SHOWN)


def print_sizes(datasets: Sequence[ImageDataset]) -> None:
    """Print how many training and held-out images each cluster has."""
    names = datasets[0].class_names
    sizes = [data.known_labels().bincount(minlength=len(names)).tolist() for data in datasets]
    rows = [[name, *map(str, counts)] for name, *counts in zip(names, *sizes, strict=True)]
    Table(["", "training images", "held-out images"], rows).show()
