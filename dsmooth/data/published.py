"""Published data sets: the subset of MNIST inside the package, and what torchvision reads.

torchvision has its own layout of folders. It compares the MD5s of what it downloads, of CIFAR-10's
batches before it unpickles one, and of CelebA's lists.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..files import printable, read_npz
from .dataset import ImageDataset, channels_first
from .folder import MissingFiles, read_pictures

# torchvision's class of each data set, what a folder must hold, and an address of the files.
PUBLISHED = {
    "mnist": (
        "MNIST",
        "MNIST/raw with its four files, unpacked",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    "fashion-mnist": (
        "FashionMNIST",
        "FashionMNIST/raw with its four files, unpacked",
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    "cifar10": (
        "CIFAR10",
        "cifar-10-batches-py with the published batches",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "celeba": (
        "CelebA",
        "celeba with img_align_celeba and the five published lists",
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    ),
}


SUBSET_PATH = Path(__file__).with_name("mnist_subset.npz")

_CELEBA_CROP, _CELEBA_SIZE = 140, 32


def load_embedded_mnist(split: str) -> ImageDataset:
    """The subset in the package, in rounds of one of each digit: any prefix is balanced."""
    images, labels = map(
        torch.from_numpy, read_npz(SUBSET_PATH, (f"{split}_images", f"{split}_labels")).values()
    )
    source = f"embedded MNIST subset ({len(images):,} images)"
    names = tuple("0123456789")
    return ImageDataset(
        images[:, None], labels.long(), "mnist", split, source, class_names=names, embedded=True
    )


def load_published(
    name: str,
    split: str,
    folder: Path,
    download: bool,
    image_size: int | None,
) -> ImageDataset:
    """A data set of `PUBLISHED`, of whose files `folder` is torchvision's root.

    CelebA's images are cropped to 140 and resized to `image_size`, 32 by default.
    """
    from torchvision import datasets

    torchvision_class, files, address = PUBLISHED[name]
    celeba = {"split": split, "target_type": []}
    options = celeba if name == "celeba" else {"train": split == "train"}
    try:
        published = getattr(datasets, torchvision_class)(folder, download=download, **options)
    except Exception as error:  # of any kind, where a file is damaged
        reason = " ".join(str(error).split()) or type(error).__name__
        if not download:
            sentence = reason.partition(". ")[0]  # torchvision's next one advises to download
            subset = "Leave the folder out to use the embedded subset. " * (name == "mnist")
            ways = f"{subset}To name such a folder, or to fetch the files into it, set"
            what = f"{folder} must hold {files} ({sentence}).\n{ways}"
            raise MissingFiles((), what, data_dir=None, download=True) from error
        failed = f"could not download {name} to {folder}: {reason}\nFetch it from {address} by hand"
        raise ConnectionError(f"{failed}: the folder must hold {files}") from error
    source = f"{printable(folder)} ({len(published):,} images)"
    if name == "celeba":
        paths = [folder / "celeba" / "img_align_celeba" / leaf for leaf in published.filename]
        images = read_pictures(paths, image_size or _CELEBA_SIZE, _CELEBA_CROP)
        return ImageDataset(images, None, name, split, source)
    images = channels_first(torch.as_tensor(published.data), name).contiguous()
    names = tuple(label.partition(" - ")[0] for label in published.classes)  # of MNIST "0 - zero"
    labels = torch.as_tensor(published.targets)
    return ImageDataset(images, labels, name, split, source, class_names=names)
