"""Train the classifier of MNIST digits in dsmooth/evaluate, and write its weights as float16.

    python -m tools.train_classifier OUT.safetensors FOLDER

FOLDER has the files of MNIST. Adam, ten epochs, a cosine schedule; images are shifted by up to two
pixels, and dropout keeps the features of training images similar to those of other images. On one
machine with a fixed number of threads the weights are a function of the seed.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import nn
from torchvision.transforms.v2 import RandomCrop

from dsmooth import __version__
from dsmooth.data import SPLITS, ImageDataset, indices_at, load_dataset, to_float
from dsmooth.evaluate.features import MnistClassifier
from dsmooth.files import write_tensors
from dsmooth.machine import torch_seed
from dsmooth.progress import advance_to, progress

EPOCHS = 10
BATCH_SIZE = 100
LEARNING_RATE = 2e-3
SCALING_IMAGES = 5000
SHIFTED = RandomCrop(28, padding=2)  # shifts by up to 2 pixels, and fills with black


def train_classifier(train_set: ImageDataset, epochs: int = EPOCHS, seed: int = 0) -> nn.Module:
    """Train a classifier and scale its features to a mean variance of 1, with the same logits."""
    labels, n = train_set.known_labels(), len(train_set)
    steps = math.ceil(epochs * n / BATCH_SIZE)
    with torch_seed(seed), progress("training the classifier", steps, "steps"):
        model = MnistClassifier()
        for layer in (*model.convs, model.hidden):
            nn.init.kaiming_normal_(layer.get_parameter("weight"), nonlinearity="relu")
        optimizer = torch.optim.Adam(model.parameters())
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            first = step * BATCH_SIZE
            indices = indices_at(n, first, BATCH_SIZE, seed)
            x = torch.stack([SHIFTED(image) for image in train_set.images[indices]])
            _, logits = model(to_float(x))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, labels[indices]).backward()
            optimizer.step()
            advance_to((step + 1) / steps)
    with torch.no_grad():
        features, _ = model.eval()(to_float(train_set.images[:SCALING_IMAGES]))
        factor = features.var(0).mean().rsqrt()
        model.hidden.weight.mul_(factor)
        model.hidden.bias.mul_(factor)
        model.head.weight.div_(factor)
    return model


def main() -> None:
    out, folder = map(Path, sys.argv[1:])
    train_set, test_set = (load_dataset("mnist", split, folder) for split in SPLITS)
    model = train_classifier(train_set).half().float()  # rounded as in the file
    _, logits = model(to_float(test_set.images))
    right = float((logits.argmax(1) == test_set.known_labels()).double().mean())
    metadata = {
        "what": "classifier of MNIST digits of dsmooth.evaluate.features",
        "dsmooth": __version__,
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "train_images": str(len(train_set)),
        "test_accuracy": f"{right:.4f}",
    }
    write_tensors(out, {k: tensor.half() for k, tensor in model.state_dict().items()}, metadata)
    print(f"{100 * right:.2f} % of {len(test_set):,} test images classified correctly")


if __name__ == "__main__":
    main()
