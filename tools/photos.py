"""Measure the packaged pair of photographs and write its README.md, card.json and samples.png.

    python -m tools.photos PHOTOS RUNS STARTS [PLAIN]

PHOTOS has the folders of images `train`, which the pair in RUNS was trained on but for the part
that training holds out, and `test`; the pair is packed from RUNS. STARTS has pairs trained on other
images: NAME-scratch from scratch, and NAME-init from this one. PLAIN is a plain model of the same
images. Results are kept in build/card.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import dsmooth
from dsmooth.data import SPLITS, load_dataset
from dsmooth.data.order import choose_images, epoch_order
from dsmooth.data.pictures import save_grid
from dsmooth.evaluate.likelihood import score_pair, standard_error
from dsmooth.experiments import ReproduceSettings, Stages, bytes_to_compare, describe
from dsmooth.pretrained.folders import HERE, PAIR
from dsmooth.text import Table, decimals
from dsmooth.training.step import total_images

from .card import ModelCard, pack, save_card
from .judge import TEST, TRAIN, distances, two_samples

NAME, COUNT = "photos", 4000  # samples of each kind
SCORED = 1000  # held-out images whose bits/dim are measured


def compare_starts(folder: Path) -> Table:
    """Bits/dim of held-out images, of pairs trained from scratch and of those from this pair."""
    starts = ("from scratch", f"--init {NAME}")
    head = ["folder", "to train on", "held out", *(f"{s}, bits/dim, images" for s in starts)]
    rows = []
    for scratch in sorted(folder.glob("*-scratch")):
        name, cells = scratch.name.removesuffix("-scratch"), []
        for kind in ("scratch", "init"):
            loaded = dsmooth.load(folder / f"{name}-{kind}")
            config = loaded.runs["noisy"].read_config()[0]
            train, test = (load_dataset("folder", split, config.data_dir) for split in SPLITS)
            scores = score_pair(loaded.pair, test)
            bits = scores.bits(scores.log_weights("discretized"))[0]
            words = decimals(float(bits.mean()), 3, standard_error(bits))
            cells.append(f"{words}, {total_images(config):,}")
        rows.append([name, f"{len(train):,}", f"{len(test):,}", *cells])
    return Table(head, rows)


def main(photos: str, runs: str, starts: str, *plain: str) -> None:
    folder = HERE / NAME
    pack(Path(runs), folder)
    train, test = (load_dataset("folder", split, photos) for split in SPLITS)
    test = test.part(epoch_order(len(test), 0, 0))  # a folder is read class by class
    trained_on = len(load_dataset("folder", "train", Path(photos) / "train"))
    models = dsmooth.load(folder, *plain)
    choices = ReproduceSettings(count=COUNT, scored_images=SCORED)
    stages = Stages(Path("build/card", NAME), models, train, test, choices)
    pictures, _ = stages.pictures()
    shown = [pictures[name] for name in ("plain", "noisy", "two-step") if name in pictures]
    rows = [x[first : first + 8] for first in range(0, 64, 8) for x in shown]
    save_grid(torch.cat(rows), folder / "samples.png", columns=8 * len(shown))
    sets = {f"samples, {name}": x for name, x in bytes_to_compare(pictures).items()}
    real = choose_images(test, COUNT)
    described = describe(models)
    card = ModelCard(
        machine=described.machine,
        weights_sha256={role: described.weights_sha256[role] for role in PAIR},
        models=described.models,
        train_images=trained_on,
        test_images=len(test),
        bits=stages.bits_per_dim(),
        distance_name="",
        guidance=0.0,
        samples={},
        probes={},
        judges=(
            compare_starts(Path(starts)),
            distances({**sets, TEST: real}, train.images, train.known_labels()),
            two_samples({**sets, TRAIN: choose_images(train, COUNT)}, real),
        ),
    )
    save_card(folder, card, "photos.md")


if __name__ == "__main__":
    main(*sys.argv[1:])
