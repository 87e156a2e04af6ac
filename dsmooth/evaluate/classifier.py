"""A small classifier of MNIST digits: features for Fréchet distances of digits.

Its weights are in the package. `train_classifier` made them and makes them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data import ImageDataset, indices_at, to_float
from ..fields import check_number
from ..files import check_tensors, read_tensors, write_tensors
from ..machine import torch_seed
from ..philox import Stream, image_words

WEIGHTS_PATH = Path(__file__).with_name("mnist_classifier.safetensors")
IMAGE_SHAPE = (1, 28, 28)
EPOCHS = 10
BATCH_SIZE = 100
LEARNING_RATE = 2e-3
SCALING_IMAGES = 5000
SHIFT = 2  # pixels by which training images are moved at most, to every side


class MnistClassifier(nn.Module):
    """Four convolutions and one hidden layer, each with ReLU; then a linear layer.

    The hidden layer, (B, 128), is what Fréchet distances compare; it is scaled to a mean variance
    of 1 on training images. 192,970 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        convs = [
            nn.Conv2d(1, 16, 5, stride=2, padding=2),  # 14 x 14
            nn.Conv2d(16, 32, 3, padding=1),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),  # 7 x 7
            nn.Conv2d(64, 64, 3, stride=2, padding=1),  # 4 x 4
        ]
        self.convs = nn.ModuleList(convs)
        self.hidden = nn.Linear(64 * 4 * 4, 128)
        self.head = nn.Linear(128, 10)
        for weight in (*(conv.weight for conv in convs), self.hidden.weight):
            nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 1, 28, 28) in [-1, 1] -> features (B, 128) and class logits (B, 10)."""
        for conv in self.convs:
            x = conv(x).relu()
        x = nn.functional.dropout(x.flatten(1), 0.25, self.training)
        features = self.hidden(x).relu()
        return features, self.head(nn.functional.dropout(features, 0.5, self.training))

    @torch.no_grad()
    def scale_features(self, x: Tensor) -> None:
        """Scale the hidden layer to a mean variance of 1 on x (B, 1, 28, 28), the logits kept."""
        features, _ = self(x)
        factor = features.var(0).mean().rsqrt()
        self.hidden.weight.mul_(factor)
        self.hidden.bias.mul_(factor)
        self.head.weight.div_(factor)


def train_classifier(
    train_set: ImageDataset,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> MnistClassifier:
    """Train a classifier; on one machine with one number of threads a function of the seed.

    Adam with a cosine schedule over `epochs` passes; each image is moved by up to two pixels, and
    dropout keeps features of training images like features of other images.
    progress: called with the number of images visited. Raises ValueError for images that are not
    labelled digits of 28 x 28.
    """
    labels = labels_of_digits(train_set)
    check_number("epochs", epochs)
    n = len(train_set)
    steps = math.ceil(epochs * n / BATCH_SIZE)
    with torch_seed(seed % 2**63):
        model = MnistClassifier()
        optimizer = torch.optim.Adam(model.parameters())
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            first = step * BATCH_SIZE
            indices = indices_at(n, first, BATCH_SIZE, seed)
            x = shift_images(train_set.images[indices], seed=seed, first_index=first)
            _, logits = model(to_float(x))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, labels[indices]).backward()
            optimizer.step()
            if progress:
                progress(min(first + BATCH_SIZE, epochs * n))
    model.eval().scale_features(to_float(train_set.images[:SCALING_IMAGES]))
    return model


def shift_images(images: Tensor, *, seed: int, first_index: int) -> Tensor:
    """Move each of images (B, 1, H, W), bytes, by up to SHIFT pixels, filling with black."""
    b, _, height, width = images.shape
    words = image_words(b, 1, seed=seed, first_index=first_index, stream=Stream.SHIFT)[:, 0, :2]
    offsets = (words >> 16) * (2 * SHIFT + 1) >> 16  # 0 .. 2 SHIFT
    padded = nn.functional.pad(images, (SHIFT,) * 4)
    rows = offsets[:, 0, None] + torch.arange(height)
    columns = offsets[:, 1, None] + torch.arange(width)
    which = torch.arange(b)[:, None, None]
    return padded[which, 0, rows[:, :, None], columns[:, None, :]][:, None]


@torch.no_grad()
def accuracy(model: MnistClassifier, dataset: ImageDataset, batch_size: int = 500) -> float:
    """The fraction of a labelled set that is classified correctly."""
    labels = labels_of_digits(dataset)
    parts = dataset.images.split(batch_size)
    chosen = torch.cat([model(to_float(part))[1].argmax(1) for part in parts])
    return float((chosen == labels).double().mean())


def labels_of_digits(dataset: ImageDataset) -> Tensor:
    """The labels. Raises ValueError unless the images are (N, 1, 28, 28) with labels 0 .. 9."""
    shape = tuple(dataset.images.shape[1:])
    if shape != IMAGE_SHAPE or dataset.labels is None or not len(dataset):
        labels = "without" if dataset.labels is None else "with"
        raise ValueError(
            f"the classifier needs labelled images of shape {IMAGE_SHAPE}, got {len(dataset)} of "
            f"shape {shape} {labels} labels"
        )
    if int(dataset.labels.min()) < 0 or int(dataset.labels.max()) > 9:
        raise ValueError("the labels must lie in 0 .. 9")
    return dataset.labels


def save_classifier(model: MnistClassifier, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the weights as float16, with metadata."""
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    write_tensors(path, state, metadata)


def load_classifier(path: Path = WEIGHTS_PATH) -> tuple[MnistClassifier, dict[str, str]]:
    """A classifier and its metadata, by default the package's; it computes in float32.

    Raises FileNotFoundError or ValueError, naming the file.
    """
    tensors, metadata = read_tensors(path)
    model = MnistClassifier()
    check_tensors(model.state_dict(), tensors, str(path))
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False), metadata
