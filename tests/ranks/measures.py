"""measures.py PAIR OUT: bits/dim, features with their statistics, and probes, by this rank.

Rank 0 writes the numbers into OUT/numbers.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import dsmooth
from dsmooth.config import ProbeSettings
from dsmooth.data import ImageDataset
from dsmooth.distributed import process_group, rank_and_size
from dsmooth.evaluate.comparison import collect_statistics
from dsmooth.evaluate.features import extract_features, make_extractor
from dsmooth.evaluate.likelihood import score_pair
from dsmooth.evaluate.probe import probe_pair


def made_images(n: int, size: int, split: str) -> ImageDataset:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 1, size, size), generator=generator).byte()
    labels = torch.randint(0, 3, (n,), generator=generator)
    return ImageDataset(images, labels, "made", split, "made for a test")


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    pair = dsmooth.SmoothedPair.from_pretrained(folder)
    data = made_images(13, 8, "test")
    digits = made_images(33, 28, "test").images
    extractor = make_extractor("mnist-classifier")
    with process_group():
        scores = score_pair(pair, data, batch_size=5, n_noise=2)
        features, logits = extract_features(digits, extractor, batch_size=10)
        statistics = collect_statistics(features, digits, extractor)
        settings = ProbeSettings(epochs=1)
        train_set = made_images(120, 8, "train")
        probes = probe_pair(pair, train_set, data, settings, out / "probes.json")
        if rank_and_size()[0] == 0:
            numbers = {
                "noisy": scores.noisy,
                "smoothing": scores.smoothing,
                "discretized": scores.discretized,
                "features": features,
                "logits": logits,
                "mean": statistics.mean,
                "covariance": statistics.covariance,
            }
            torch.save((numbers, probes["accuracy"]), out / "numbers.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
