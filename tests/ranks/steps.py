"""steps.py OUT SETTINGS...: a few steps of each of these trainings, by this rank.

Rank 0 writes losses, gradients' norms and weights of number i into OUT/i.pt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from dsmooth.config import TrainConfig
from dsmooth.data import ImageDataset
from dsmooth.distributed import process_group, rank_and_size
from dsmooth.training.step import TrainState

STEPS = 3


def main(out: Path, settings: list[str]) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=generator).byte()
    data = ImageDataset(images, torch.arange(40) % 3, "made", "train", "made for a test")
    with process_group():
        for number, text in enumerate(settings):
            config = TrainConfig.from_dict(json.loads(text))
            state = TrainState(config, data, torch.device("cpu"))
            for _ in range(STEPS):
                state.step()
            readings = state.read()
            if rank_and_size()[0] == 0:
                losses, norms = ([r[i] for r in readings] for i in (1, 2))
                torch.save((losses, norms, state.tensors()), out / f"{number}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
