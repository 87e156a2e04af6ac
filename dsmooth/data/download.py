"""Fetching published data sets, by torchvision."""

from __future__ import annotations

import socket
from http.client import HTTPException
from pathlib import Path

_CLASSES = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "celeba": "CelebA",
}
_HOMES = {
    "mnist": "http://yann.lecun.com/exdb/mnist",
    "fashion-mnist": "https://github.com/zalandoresearch/fashion-mnist",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "celeba": "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
}
_TIMEOUT = 30.0  # seconds without an answer; torchvision sets none


def download_dataset(name: str, data_dir: Path) -> None:
    """Fetch data set `name` into `data_dir`, in torchvision's layout.

    Raises ValueError for a name that has no download, ModuleNotFoundError without torchvision and
    ConnectionError, with the reason and what to do by hand, if the download fails.
    """
    if name not in _CLASSES:
        raise ValueError(f"--download is for {', '.join(_CLASSES)}, got {name!r}")
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ModuleNotFoundError(
            f"--download needs torchvision (pip install torchvision); or fetch {name} from "
            f"{_HOMES[name]} and point --data-dir to its files",
            name="torchvision",
        ) from error
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        getattr(datasets, _CLASSES[name])(root=str(data_dir), download=True)
    except (OSError, RuntimeError, HTTPException, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionError(
            f"could not download {name} to {data_dir}: {reason}\n"
            f"Fetch it from {_HOMES[name]} by hand and point --data-dir to its files."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
