"""`dsmooth cluster`: labels that images give themselves, as a file and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import realpath
from pathlib import Path

import torch
import torch.nn.functional as F

from ..data import SPLITS, ImageDataset
from ..data.labels import write_labels
from ..data.pictures import save_grid
from ..evaluate.clusters import agreement, cluster_splits
from ..fields import SettingError
from ..files import printable
from ..machine import choose_device
from ..pretrained import data_of, images_for, load
from ..text import Table
from ..work import once
from .options import Cluster

SHOWN = 16  # images of a cluster in the picture, black where it has fewer


def cluster(options: Cluster) -> None:
    """Run `dsmooth cluster`. Raises ValueError or FileNotFoundError before any work."""
    path, picture = options.outputs
    models = load(*options.models, device=choose_device(options.execution.device))
    if "noisy" not in models.networks:
        raise ValueError("clusters are of features of a noisy model: name its run, or its pair")
    chosen = vars(options.dataset)
    folder = data_of(models, **chosen)[1]
    if folder is not None and Path(realpath(path)).is_relative_to(realpath(folder)):
        raise SettingError("out", f"must not be inside {folder}: clusters.png would be an image")
    train, test = images_for(models, SPLITS, **chosen)
    noisy = models.networks["noisy"]
    labelled = cluster_splits(noisy, train, test, options.clusters, seed=options.seed)
    # The file of labels is written last: where it exists, nothing is missing.
    once(save_clusters, labelled[0], picture)
    once(write_labels, path, labelled, labelled[0].class_names)
    print_sizes(labelled)
    if train.labels is not None:
        purity, information = agreement(labelled[0].known_labels(), train.labels)
        print(
            f"compared with the labels of {train.name}, which were not used: purity {purity:.3f}, "
            f"normalized mutual information {information:.3f}"
        )
    print(f"wrote {printable(path)} and {printable(picture)}, a row for each cluster")
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
