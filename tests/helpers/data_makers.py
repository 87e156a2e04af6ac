"""Writers of tiny data sets in the published formats, and what errors must say, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dsmooth.data import ImageDataset
from dsmooth.data.published import load_embedded_mnist

Bytes = NDArray[np.uint8]


def random_bytes(shape: tuple[int, ...], seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def random_dataset(
    n: int, size: int = 8, channels: int = 1, labels: torch.Tensor | None = None
) -> ImageDataset:
    images = torch.from_numpy(random_bytes((n, channels, size, size), seed=n))
    return ImageDataset(images, labels, "noise", "test", f"{n} images of noise")


@cache
def few_digits(split: str) -> ImageDataset:
    """300 images of the embedded subset."""
    return load_embedded_mnist(split).part(slice(300))


def write_images(folder: Path, images: Mapping[str, Bytes]) -> None:
    """Write {file name: (H, W) or (H, W, 3 or 4)}; the suffix names the format."""
    from PIL import Image

    for name, pixels in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def refuses(
    words: str, call: Callable[..., object], *args: Any, error: Any = ValueError, **options: Any
) -> str:
    """Check that the call is refused by an error with these words; returns the whole error."""
    with pytest.raises(error, match=words) as caught:
        call(*args, **options)
    return str(caught.value)
