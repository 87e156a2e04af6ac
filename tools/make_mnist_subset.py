"""Make dsmooth/data/mnist_subset.npz from the four IDX files of MNIST, gzipped or not.

    python -m tools.make_mnist_subset FOLDER [--output FILE]

Takes the first 500 training and the first 100 test images of each digit. Round r holds the r-th
image of each digit, in the order in which these stand in the original file. The same files give
the same arrays, and with the same zlib the same bytes: the archive's time stamps are fixed.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsmooth.data.mnist import SUBSET_PATH, load_idx_dataset

PER_DIGIT = {"train": 500, "test": 100}


def balanced_indices(labels: NDArray[np.uint8], per_digit: int) -> NDArray[np.int64]:
    """Return the (10 * per_digit,) places of the subset's images in the original file."""
    rounds = np.stack([np.flatnonzero(labels == digit)[:per_digit] for digit in range(10)], axis=1)
    return np.sort(rounds, axis=1).reshape(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the MNIST subset of the package.")
    parser.add_argument("folder", type=Path, help="the folder of MNIST's four IDX files")
    parser.add_argument("--output", type=Path, default=SUBSET_PATH)
    args = parser.parse_args()

    arrays: dict[str, NDArray[np.uint8]] = {}
    for split, per_digit in PER_DIGIT.items():
        dataset = load_idx_dataset("mnist", split, args.folder)
        assert dataset.labels is not None
        images, labels = dataset.images[:, 0].numpy(), dataset.labels.byte().numpy()
        chosen = balanced_indices(labels, per_digit)
        arrays[f"{split}_images"] = images[chosen]
        arrays[f"{split}_labels"] = labels[chosen]
    np.savez_compressed(args.output, **arrays)  # type: ignore[arg-type]
    for name, array in arrays.items():
        print(name, array.shape, "sha256", hashlib.sha256(array.tobytes()).hexdigest())
    print(args.output, args.output.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
