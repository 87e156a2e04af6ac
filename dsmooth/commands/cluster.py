"""`dsmooth cluster`: labels that images give themselves, as a file, a picture and folders."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ..data import ImageDataset
from ..data.folder import image_paths, paths_of_split
from ..data.reading import write_labels
from ..distributed import process_group, rank_and_size
from ..evaluate.clusters import agreement, find_clusters
from ..files import check_writable, printable
from ..machine import choose_device, use_threads
from ..nn import PixelCNNpp
from ..pictures import save_grid
from ..pretrained import load_models
from ..progress import progress
from ..tables import Table
from .options import LABELS, Cluster
from .shared import choose_data

SHOWN = 16  # images of a cluster in the picture, black where it has fewer


def cluster(options: Cluster) -> None:
    """Carry out `dsmooth cluster`. Raises ValueError or FileNotFoundError before any work."""
    check_writable(options.out / LABELS)
    with process_group():
        use_threads(options.execution.threads)
        models = load_models(options.models)
        if "noisy" not in models.networks:
            raise ValueError(f"{options.models[0]} is no noisy model, whose features name images")
        choice = choose_data(models, options.dataset)
        models.to(choose_device(options.execution.device))
        datasets = [choice.load(split) for split in ("train", "test")]
        write_clusters(
            models.networks["noisy"],
            datasets,
            options.clusters,
            options.seed,
            options.out,
            choice.data_dir,
        )
    if rank_and_size()[0] == 0:
        print(f"next: `dsmooth train noisy --labels {options.out / LABELS} --label-dropout 0.1`")


def write_clusters(
    noisy: PixelCNNpp,
    datasets: Sequence[ImageDataset],
    n_clusters: int,
    seed: int,
    out: Path,
    data_dir: str | None,
) -> None:
    """Cluster the training images, give the held-out ones the same clusters, and write both.

    data_dir: the folder of the images, if they lie in one. Links to them are made then.
    All processes call this; rank 0 writes and prints.
    """
    train, test = datasets
    with progress("features of training images", len(train)) as done:
        clusters, labels = find_clusters(noisy, train, n_clusters, seed=seed, progress=done)
    with progress("features of held-out images", len(test)) as done:
        held_out = clusters.labels(noisy, test, progress=done)
    if rank_and_size()[0] > 0:
        return
    names = tuple(f"cluster {number}" for number in range(n_clusters))
    labelled = [
        replace(dataset, labels=numbers, class_names=names)
        for dataset, numbers in zip(datasets, (labels, held_out), strict=True)
    ]
    write_labels(out / LABELS, labelled, names)
    if train.name == "folder" and data_dir is not None:
        link_images(labelled, Path(data_dir), out / "images")
    shown = (train.batch((labels == k).nonzero()[:SHOWN, 0]) for k in range(n_clusters))
    rows_of_images = [F.pad(x, (0, 0) * 3 + (0, SHOWN - len(x)), value=-1.0) for x in shown]
    save_grid(torch.cat(rows_of_images), out / "clusters.png", columns=SHOWN)
    sizes = [numbers.bincount(minlength=n_clusters).tolist() for numbers in (labels, held_out)]
    rows = [[name, *map(str, counts)] for name, *counts in zip(names, *sizes, strict=True)]
    Table(["", "training images", "held-out images"], rows).show()
    if train.labels is not None:
        purity, information = agreement(labels, train.labels)
        print(
            f"beside the labels of {train.name}, which were not used: purity {purity:.3f}, "
            f"normalized mutual information {information:.3f}"
        )
    name = printable(out)
    print(f"wrote {name}/{LABELS} and {name}/clusters.png, a row for each cluster")


def link_images(datasets: Sequence[ImageDataset], data_dir: Path, out: Path) -> None:
    """Links to the images of a folder, SPLIT/CLUSTER/NAME; links of an earlier call are replaced.

    Raises ValueError for a folder that holds anything else.
    """
    if out.is_dir():
        if other := next((p for p in out.rglob("*") if not (p.is_symlink() or p.is_dir())), None):
            raise ValueError(f"{other} is no link of an earlier call: choose another --out")
        shutil.rmtree(out)
    for dataset in datasets:
        paths = paths_of_split(data_dir, image_paths(data_dir), dataset.split)
        for path, number in zip(paths, dataset.known_labels().tolist(), strict=True):
            name = "-".join(path.relative_to(data_dir).parts)
            link = out / dataset.split / dataset.class_names[number] / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
