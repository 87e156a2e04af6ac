"""Measure the packaged pair of photographs and write its README.md, card.json and samples.png.

    python -m tools.photos PHOTOS RUNS STARTS [PLAIN]

PHOTOS has the folders of pictures `train`, which the pair in RUNS was trained on but for the part
that training holds out, and `test`; the pair is packed from RUNS.
STARTS has pairs trained on other pictures: NAME-scratch from nothing, NAME-init from this one, and
NAME-full from this one at full rates.
PLAIN is a plain model of the same pictures, which is only compared. Samples and bits/dim are kept
in build/card, so a repeated call continues. Also draws the figure of docs/own_images.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import dsmooth
from dsmooth.data import SPLITS, load_dataset, to_float
from dsmooth.data.order import choose_images, epoch_order
from dsmooth.evaluate.likelihood import score_pair, standard_error
from dsmooth.files import write_atomically
from dsmooth.pictures import BORDER
from dsmooth.pretrained import load_models
from dsmooth.pretrained.folders import HERE
from dsmooth.report.contents import Card
from dsmooth.report.describe import describe_machine, describe_model
from dsmooth.report.page import grid
from dsmooth.reproduce import Stages, bytes_to_compare
from dsmooth.sampling.request import Request
from dsmooth.tables import Table
from dsmooth.text import decimals, percent
from dsmooth.training.step import total_images

from .card import pack, save_card
from .judge import TEST, TRAIN, distances, principal_components, thumbnails, two_samples

NAME = "photos"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "photos.png"
COUNT = 4000  # samples of each kind
SCORED = 1000  # held-out images whose bits/dim are measured
FEATURES = {"by pixels": principal_components, "by thumbnails": thumbnails}
IMAGES = "bits/dim, images"
MEAN = "the mean training image"


def compare_starts(folder: Path) -> Table:
    """Bits/dim of held-out images, of pairs trained from nothing and of those from this pair.

    NAME-full began with this pair as NAME-init did, but at full rates.
    """
    head = ["pictures", "to train on", "held out"]
    head += [f"{start}, {IMAGES}" for start in ("from nothing", f"--init {NAME}", "full rates")]
    rows = []
    for scratch in sorted(folder.glob("*-scratch")):
        name, cells = scratch.name.removesuffix("-scratch"), []
        for path in (folder / f"{name}-{kind}" for kind in ("scratch", "init", "full")):
            if not path.exists():
                cells.append("–")
                continue
            loaded = dsmooth.load(path)
            config = loaded.runs["noisy"].read_config()[0]
            train, test = (load_dataset("folder", split, config.data_dir) for split in SPLITS)
            scores = score_pair(loaded.pair, test, progress=True)
            bits = scores.bits(scores.log_weights("discretized"))[0]
            words = decimals(float(bits.mean()), 3, standard_error(bits))
            cells.append(f"{words}, {total_images(config):,}")
        rows.append([name, f"{len(train):,}", f"{len(test):,}", *cells])
    return Table(head, rows)


def draw_starts(folder: Path, name: str = "ships") -> bytes:
    """Samples of the pairs NAME-scratch and NAME-init, between held-out pictures and each other."""
    pairs = [dsmooth.load(folder / f"{name}-{kind}") for kind in ("scratch", "init")]
    data_dir = pairs[0].runs["noisy"].read_config()[0].data_dir
    held_out = load_dataset("folder", "test", data_dir).batch(torch.arange(32))
    return side_by_side(held_out, *(loaded.pair.sample(32, seed=0) for loaded in pairs))


def side_by_side(*sets: Tensor, columns: int = 8) -> bytes:
    """A PNG picture of equally many images of each set."""
    gap = torch.full_like(sets[0][:1], BORDER / 127.5 - 1)
    rows = []
    for i in range(0, min(map(len, sets)), columns):
        parts = [part for x in sets for part in (x[i:][:columns], gap)]
        rows.append(torch.cat(parts[:-1]))
    return grid(*rows)


def judge(stages: Stages, pictures: Mapping[str, Tensor]) -> tuple[Table, Table]:
    """Distances to training images that the features were not made of, and two-sample tests."""
    train, test, n = stages.train_set, stages.test_set, stages.count
    sets = {f"samples, {name}": x for name, x in bytes_to_compare(pictures).items()}
    sets[TEST] = choose_images(test, n)
    mean = train.images.double().mean(0, keepdim=True).round().byte()
    with_mean = {**sets, MEAN: mean.expand(n, -1, -1, -1)}
    return (
        distances(with_mean, train.images, train.known_labels(), FEATURES),
        two_samples({**sets, TRAIN: choose_images(train, n)}),
    )


def failures(noisy: Tensor, clean: Tensor, others: Mapping[str, Tensor], scale: float) -> Table:
    """How many samples become noise, and how many have a pixel with bytes 0 and 255 in two colours.

    noisy, clean, others: (N, C, H, W); a sample becomes noise where a row of it is far from that of
    the noisy image, from which it differs by about 0.8 `scale` elsewhere.
    """
    noise = ((clean - noisy).abs().mean((1, 3)) > 1.5 * scale).any(1)
    rows = []
    samples = {"samples that become noise": clean[noise], "other samples": clean[~noise]}
    for name, x in {**samples, **others}.items():
        extreme = ((x.amin(1) == -1) & (x.amax(1) == 1)).flatten(1).any(1)
        rows.append([name, f"{len(x):,}", percent(float(extreme.double().mean()), 2)])
    return Table(["pictures", "n", "with 0 and 255 in a pixel"], rows)


def main(photos: str, runs: str, starts: str, plain: str | None = None) -> None:
    folder, work = HERE / NAME, Path("build", "card", NAME)
    pack(Path(runs), folder)
    train_set, test_set = (load_dataset("folder", split, photos) for split in SPLITS)
    trained_on = len(load_dataset("folder", "train", Path(photos) / "train"))
    # A folder is read class by class.
    test_set = test_set.part(epoch_order(len(test_set), 0, 0))
    models = load_models([folder])
    stages = Stages(work, models, train_set, test_set, count=COUNT, scored_images=SCORED)
    pictures = stages.pictures()
    if plain is not None:
        models = load_models([folder, Path(plain)])
        with_plain = replace(stages, folder=work / "plain", models=models)
        request = Request(COUNT, stages.seed)
        pictures["plain"] = with_plain.images("plain", models.of("plain"), request)
        stages = with_plain
    shown = [pictures[name] for name in ("plain", "noisy", "two-step") if name in pictures]
    write_atomically(folder / "samples.png", side_by_side(*(x[:64] for x in shown)))
    write_atomically(FIGURE, draw_starts(Path(starts)))
    scale, others = models.pair.smoothing.scale, {TEST: to_float(choose_images(test_set, COUNT))}
    if plain is not None:
        others["samples, plain"] = pictures["plain"]
    card = Card(
        machine=describe_machine(models.device),
        weights_sha256={str(k): v for k, v in models.of("noisy", "denoiser").digests().items()},
        train_images=trained_on,
        test_images=len(test_set),
        models={
            role: describe_model(role, models, test_set, trained_on) for role in models.networks
        },
        bits=stages.bits_per_dim(),
        distance_name="",
        guidance=0.0,
        samples={},
        probes={},
        judges=(
            compare_starts(Path(starts)),
            *judge(stages, pictures),
            failures(pictures["noisy"], pictures["two-step"], others, scale),
        ),
    )
    save_card(folder, card, "photos.md")


if __name__ == "__main__":
    main(*sys.argv[1:])
