"""The stages of a reproduction after training: draw samples, score held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import read_json, write_json
from ..data import ImageDataset
from ..draw import write_npz
from ..images import save_grid
from ..nn import PixelCNNpp
from ..pair import Method, SmoothedPair, load_run
from ..progress import progress
from ..sampling import sample_images
from ..smoothing import GaussianSmoothing
from .figures import is_diverged, visible
from .likelihood import evaluate_bits_per_dim

# Images drawn or scored at a time.
CHUNK = 64
# Held-out images whose denoising is shown.
DENOISED_IMAGES = 10


@dataclass(frozen=True)
class Models:
    """The trained models, in evaluation mode."""

    pair: SmoothedPair
    plain: PixelCNNpp | None


def load_models(out: Path) -> Models:
    """Read the trained models from the run folders in `out`, onto the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pair = SmoothedPair.from_runs(out / "noisy", out / "denoiser").to(device)
    plain = load_run(out / "plain")[0].to(device) if (out / "plain").exists() else None
    return Models(pair, plain)


def draw_all(
    folder: Path, models: Models, test_set: ImageDataset, count: int, seed: int
) -> dict[str, Tensor]:
    """The pictures of the report: (N, C, H, W) by name, drawn or read from `folder`.

    "noisy", "two-step", "single-step" and "plain" are `count` samples; the same x~ stands behind
    the first three. "held-out", "held-out-noisy", "held-out-two-step" and
    "held-out-single-step" are test images, with noise, and denoised.
    """
    folder.mkdir(exist_ok=True)
    pair, plain = models.pair, models.plain
    height, width = pair.image_size
    device = next(pair.parameters()).device
    pictures: dict[str, Tensor] = {}

    def draw(name: str, n: int, what: Callable[[int, int], Tensor]) -> Tensor:
        """`what` (first, n) in chunks, unless the file is there."""
        path = folder / f"{name}.npz"
        x = read_npz(path, n)
        if x is None:
            with progress(f"drawing {name}", n) as done:
                chunks = []
                for first in range(0, n, CHUNK):
                    chunks.append(what(first, min(CHUNK, n - first)).cpu())
                    done(first + chunks[-1].shape[0])
            x = torch.cat(chunks)
            write_npz(path, x, seed, 0)
            save_grid(visible(x), folder / f"{name}.png")
        pictures[name] = x
        return x

    def denoise(x_tilde: Tensor, method: Method) -> Callable[[int, int], Tensor]:
        def some(first: int, n: int) -> Tensor:
            part = x_tilde[first : first + n].to(device)
            x = pair.denoise(visible(part), seed=seed, first_index=first, method=method)
            # What was drawn for a noisy image that diverged means nothing.
            return torch.where(is_diverged(part)[:, None, None, None], math.nan, x)

        return some

    def sample(model: PixelCNNpp) -> Callable[[int, int], Tensor]:
        return lambda first, n: sample_images(
            model, n, height=height, width=width, seed=seed, first_index=first
        )

    clean = test_set.batch(torch.arange(min(DENOISED_IMAGES, len(test_set))))
    noise = {"seed": seed, "first_index": 0, "repeat": 0}
    x_tilde = {
        "": draw("noisy", count, sample(pair.noisy)),
        "held-out-": pair.smoothing.sample(clean, **noise),
    }
    pictures |= {"held-out": clean, "held-out-noisy": x_tilde["held-out-"]}
    for prefix, x in x_tilde.items():
        draw(f"{prefix}two-step", len(x), denoise(x, "two-step"))
        if isinstance(pair.smoothing, GaussianSmoothing):
            draw(f"{prefix}single-step", len(x), denoise(x, "single-step"))
    if plain is not None:
        draw("plain", count, sample(plain))
    return pictures


def read_npz(path: Path, count: int) -> Tensor | None:
    """The `count` images that `write_npz` wrote to `path`, or None if others or none are there."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        x = torch.from_numpy(arrays["x"])
    return x if x.shape[0] == count else None


def score_all(
    path: Path, models: Models, test_set: ImageDataset, limit: int
) -> dict[str, dict[str, Any]]:
    """Bits/dim of the pair and of the baseline on held-out images, computed or read from `path`."""
    n = min(limit, len(test_set))
    if path.exists():
        stored = read_json(path)
        if stored["pair"]["n_images"] == n:
            return stored
    with progress("scoring held-out images", n) as done:
        bound = evaluate_bits_per_dim(
            models.pair, test_set, limit=n, batch_size=CHUNK, progress=lambda i, _: done(i)
        )
    scores = {"pair": {"unit": "bits/dim", **asdict(bound)}}
    if models.plain is not None:
        with progress("scoring the plain model", n) as done:
            scores["plain"] = score_plain(models.plain, test_set, n, done)
    write_json(path, scores)
    return scores


@torch.no_grad()
def score_plain(
    model: PixelCNNpp, test_set: ImageDataset, n: int, done: Callable[[int], None]
) -> dict[str, Any]:
    """-log2 p(x) / d of the first n images: exact, not a bound."""
    device = next(model.parameters()).device
    parts = []
    for first in range(0, n, CHUNK):
        x = test_set.batch(torch.arange(first, min(first + CHUNK, n))).to(device)
        parts.append(-model.log_prob(x).double().cpu() / (math.log(2) * x[0].numel()))
        done(first + x.shape[0])
    bits = torch.cat(parts)
    return {
        "unit": "bits/dim",
        "likelihood": model.config.likelihood,
        "value": float(bits.mean()),
        "standard_error": float(bits.std() / math.sqrt(n)) if n > 1 else math.nan,
        "n_images": n,
    }
