"""rank_work.py FUNCTION ARGUMENTS...: call a function of this file in each rank.

Rank 0 writes the results into the folder OUT.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from dsmooth.config import TrainConfig
from dsmooth.data import ImageDataset
from dsmooth.distributed import process_group, rank_and_size
from dsmooth.fields import structure
from dsmooth.training.step import TrainState


def made_images(n: int, size: int = 8) -> ImageDataset:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 1, size, size), generator=generator).byte()
    return ImageDataset(images, torch.arange(n) % 3, "made", "train", "made for a test")


def steps(out: str, *settings: str) -> None:
    """Losses, gradients' norms and weights of two steps of training number i: OUT/i.pt."""
    data = made_images(40)
    for number, text in enumerate(settings):
        state = TrainState(structure(json.loads(text), TrainConfig), data, torch.device("cpu"))
        for _ in range(2):
            state.step()
        readings = state.results()
        if rank_and_size()[0] == 0:
            losses, norms = ([r[i] for r in readings] for i in (1, 2))
            torch.save((losses, norms, state.tensors()), Path(out, f"{number}.pt"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group():
        globals()[sys.argv[1]](*sys.argv[2:])
