"""How many forwards Jacobi sampling takes per image, for trained models.

    python tools/jacobi_iterations.py -n 16 runs/plain runs/noisy runs/denoiser

Each argument is a run folder of `dsmooth train`. A denoiser's context comes from the run of a noisy
model of the same scale that stands before it; it is drawn from a zero start and from its context.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from dsmooth.runs import RunFolder
from dsmooth.sampling import jacobi_sample, sample_images


def main() -> None:
    """Print one line per model and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("-n", type=int, default=16)
    arguments = parser.parse_args()
    contexts: dict[float, Tensor] = {}
    for folder in arguments.runs:
        model, config, (height, width) = RunFolder(folder).load_model()
        n, scale = arguments.n, config.scale
        size = {"height": height, "width": width}
        context = contexts[scale] if config.role == "denoiser" else None
        starts = {"zeros": None} if context is None else {"zeros": None, "x~": context}
        for name, start in starts.items():
            for by_row in (False, True):
                x, iterations = jacobi_sample(
                    model, n, **size, context=context, by_row=by_row, start=start
                )
                drawn = sample_images(model, n, **size, context=context)
                same = ((x - drawn).abs() < 1e-3).all(1).float().mean()
                mean, error = iterations.double().mean(), iterations.double().std() / n**0.5
                way = "by row" if by_row else "whole"
                print(
                    f"{folder} ({config.role}, scale {scale}), start {name}, {way}: "
                    f"{mean:.1f} ± {error:.1f} of {height * width}, {iterations.min()} to "
                    f"{iterations.max()}; {100 * same:.2f} % of pixels as the cached sampler's",
                    flush=True,
                )
        if config.role == "noisy":
            contexts[scale] = sample_images(model, n, **size)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
