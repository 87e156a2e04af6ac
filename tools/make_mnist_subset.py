"""Make dsmooth/data/mnist_subset.npz from MNIST.

    python -m tools.make_mnist_subset FOLDER

The four files lie unpacked in FOLDER/MNIST/raw. Takes the first 500 training and the first 100 test
images of each digit. Round r holds the r-th image of each digit, in the order in which these stand
in the original file. The same files give the same arrays, and with the same zlib the same bytes:
the archive's time stamps are fixed.
"""

from __future__ import annotations

import hashlib
import sys

import numpy as np

from dsmooth.data import load_dataset
from dsmooth.data.mnist import SUBSET_PATH


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for split, per_digit in {"train": 500, "test": 100}.items():
        dataset = load_dataset("mnist", split, sys.argv[1])
        assert dataset.labels is not None
        images, labels = dataset.images[:, 0].numpy(), dataset.labels.byte().numpy()
        of_digits = [np.flatnonzero(labels == digit)[:per_digit] for digit in range(10)]
        chosen = np.sort(np.stack(of_digits, axis=1), axis=1).reshape(-1)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
    np.savez_compressed(SUBSET_PATH, **arrays)  # type: ignore[arg-type]
    for name, array in arrays.items():
        print(name, array.shape, "sha256", hashlib.sha256(array.tobytes()).hexdigest())


if __name__ == "__main__":
    main()
