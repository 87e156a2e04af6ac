"""Images of one's own: what they mean is what they looked like, whatever form they have."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils import data as loaders

import dsmooth
from dsmooth.config import OWN
from dsmooth.data import own_images, to_float
from dsmooth.data.own import split_own
from dsmooth.training.plan import fill_in
from tests.helpers.data_makers import random_bytes, refuses
from tests.helpers.tiny_runs import tiny

pytestmark = pytest.mark.quick

CHESS = np.indices((8, 8)).sum(0) % 2  # black and white
BLACK = torch.zeros(3, 1, 8, 8).byte()
PIXELS = torch.from_numpy(random_bytes((40, 1, 8, 8)))
CLEAR = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
DEEP = Image.fromarray(np.full((8, 8), 65535, np.uint16))


def chess(mode: str) -> Image.Image:
    """Black and white fields in one of Pillow's modes."""
    grey = Image.fromarray((255 * CHESS).astype(np.uint8))
    if mode != "P":
        return grey.convert(mode)
    picture = Image.fromarray(CHESS.astype(np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    return picture


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pillow_pictures_look_as_they_did(mode: str) -> None:
    found = own_images([chess(mode)] * 2)
    assert found.image_channels == (1 if mode in ("1", "L", "LA") else 3)
    assert torch.equal(found.images, torch.from_numpy(255 * CHESS).byte().expand_as(found.images))
    mixed = own_images([chess("L"), chess(mode)]).images
    assert torch.equal(mixed, found.images)


@pytest.mark.parametrize("names", [(), ("cat", "dog", "emu")])
def test_labels_in_every_form(names: tuple[str, ...]) -> None:
    numbers = torch.arange(40) % 3
    labels = [names[i] for i in numbers] if names else numbers.tolist()
    items = [*zip(PIXELS, np.array(labels), strict=True)]
    others = [*zip(PIXELS, 3 - numbers, strict=True)]
    for dataset, apart in (
        (others, labels),  # which come before those of the items
        (PIXELS, labels),
        (PIXELS.numpy(), np.array(labels)),
        (items, None),
        (loaders.Subset(items, range(40)), None),
        ((items, items[9:12]), None),
        *([] if names else [(PIXELS, numbers), (loaders.TensorDataset(PIXELS, numbers), None)]),
    ):
        train_set, held_out = split_own(dataset, apart)
        assert train_set.class_names == held_out.class_names == (names or ("0", "1", "2"))
        for part in (train_set, held_out):
            rows = [int((image == PIXELS).all((1, 2, 3)).nonzero()) for image in part.images]
            assert torch.equal(part.labels, numbers[rows])
    assert train_set.digest != replace(train_set, labels=2 - train_set.labels).digest
    assert own_images([(image, None) for image in PIXELS]).labels is None
    rows = [(image, numbers[i : i + 1]) for i, image in enumerate(PIXELS)]  # of shape (1,)
    assert torch.equal(own_images(rows).labels, numbers)
    parts = split_own(([(PIXELS[0], "cat"), (PIXELS[1], "emu")], [(PIXELS[0], "ape")] * 2))
    assert [part.class_names for part in parts] == [("cat", "emu", "ape")] * 2
    assert parts[1].labels.tolist() == [2, 2]
    found = own_images(PIXELS, labels=10 * numbers)
    assert (found.class_names, found.labels.tolist()) == (("0", "10", "20"), numbers.tolist())


def test_one_in_ten_is_held_out_wherever_the_others_are() -> None:
    """As more images come, none changes its split, and each class keeps a training image."""
    digits = torch.stack([torch.arange(2500) // 250, torch.arange(2500) % 250], 1).byte()
    pixels = digits[:, None, None].repeat(1, 1, 4, 2)
    few, many = (split_own(pixels[:n])[1].images for n in (1500, 2500))
    assert torch.equal(few, many[: len(few)])
    assert abs(len(many) - 250) < 5 * (2500 * 0.09) ** 0.5  # five standard deviations
    train_set, _ = split_own(pixels, torch.arange(2500) // 2)
    assert len(train_set.labels.unique()) == 1250


def test_ranges_of_pixels() -> None:
    x = to_float(PIXELS)
    for same in (PIXELS, x, x.double().numpy(), x.bfloat16(), [*x], [*PIXELS.numpy()]):
        assert (own_images(same).images.int() - PIXELS.int()).abs().max() <= (same is not PIXELS)
    for few, ends in (
        (PIXELS // 16, "0 .. 15"),
        (x.relu(), "128 .. 255"),
        (PIXELS // 128, "0 .. 1"),
    ):
        refuses(f"the bytes of the train images are {ends}, where black", own_images, few)


class Hub(list):
    """As a data set of the Hugging Face Hub with names of its classes."""

    features: ClassVar = {"image": None, "label": SimpleNamespace(names=["dog", "cat"])}


class ClassFolders(list):
    """As an ImageFolder of torchvision."""

    classes: ClassVar = ["dog", "cat"]


def test_names_of_the_classes_of_torchvision() -> None:
    labels = torch.arange(40) % 2
    folders = ClassFolders(zip(PIXELS, labels.tolist(), strict=True))
    for dataset in (folders, loaders.Subset(folders, range(40)), (folders, folders)):
        for part in split_own(dataset):
            assert part.class_names == ("dog", "cat")
    assert own_images(folders, labels=labels).class_names == ("0", "1")  # of another kind
    assert own_images(folders, labels=["a", "b"] * 20).class_names == ("a", "b")
    named_items = ClassFolders(zip(PIXELS, ["emu", "ape"] * 20, strict=True))
    assert own_images(named_items).class_names == ("ape", "emu")
    renumbered = ClassFolders(folders)
    renumbered.target_transform = lambda number: 1 - number
    assert own_images(renumbered).class_names == ("0", "1")


def test_forms_of_images_in_python() -> None:
    pixels = torch.from_numpy(random_bytes((20, 3, 8, 12)))
    last = pixels.permute(0, 2, 3, 1)
    for dataset in (last, last.numpy(), list(last.numpy()), loaders.TensorDataset(pixels)):
        own = own_images(dataset)
        assert torch.equal(own.images, pixels)
        assert own.labels is None
        assert not own.embedded
    assert torch.equal(own_images(last.numpy()[::-1]).images, pixels.flip(0))  # a negative stride
    assert torch.equal(own_images(pixels[:, 0]).images, pixels[:, :1])
    pictures = enumerate(map(Image.fromarray, last.numpy()))
    hub = Hub({"idx": i, "img": picture, "label": i % 2} for i, picture in pictures)
    train_set, held_out = split_own((hub, Hub(hub[:5])))
    assert torch.equal(train_set.images, pixels)
    assert torch.equal(train_set.labels, torch.arange(20) % 2)
    assert len(held_out) == 5
    for named in (train_set, *split_own(hub), split_own(own_images(hub))[1]):
        assert named.class_names == ("dog", "cat")
    halves = tuple(loaders.random_split(loaders.TensorDataset(pixels), [15, 5]))
    for images, half in zip(split_own(halves), halves, strict=True):
        assert torch.equal(images.images, pixels[half.indices])


class Stream(loaders.IterableDataset):
    def __iter__(self):
        yield from PAIRS


class Indexed(loaders.Dataset):
    """Without an end, but with a length."""

    def __getitem__(self, index):
        return PAIRS[index % 40]

    def __len__(self) -> int:
        return 40


PAIRS = [(image, i % 4) for i, image in enumerate(PIXELS)]
ROWS = [{"id": 3, "photo": image, "label": label} for image, label in PAIRS]


@pytest.mark.parametrize(
    "dataset",
    [
        Stream(),
        Indexed(),
        loaders.DataLoader(Stream(), 7),
        loaders.DataLoader(Indexed(), 7, shuffle=True),
        ROWS,
        [{"mask": image, "img": image, "label": label} for image, label in PAIRS],
        {"train": PAIRS},
        {"train": Stream(), "TEST": (row for row in ROWS), "valid": PAIRS[:2]},
    ],
)
def test_whatever_can_be_iterated_is_taken(dataset: object) -> None:
    expected = split_own(PIXELS, torch.arange(40) % 4)
    if isinstance(dataset, dict) and len(dataset) > 1:
        expected = [own_images(PIXELS, labels=torch.arange(40) % 4)] * 2
    for part, other in zip(split_own(dataset), expected, strict=True):
        assert torch.equal(part.images, other.images)
        assert torch.equal(part.labels, other.labels)


def test_a_loader_of_a_part_is_that_part() -> None:
    part = loaders.SubsetRandomSampler([5, 3, 9])
    assert own_images(loaders.DataLoader(Indexed(), 2, sampler=part)).images.equal(
        PIXELS[[3, 5, 9]]
    )


def test_data_sets_of_other_things() -> None:
    for dataset, words in (
        ("images", "must be images, got 'images': of a folder set data"),
        (3, "must be images, got 3"),
        ([{"id": 3, "text": ""}], "one column of images, got none of the columns id, text"),
        ([{"a": BLACK[0], "b": BLACK[0]}], "one column of images, got a, b of the columns a, b"),
    ):
        refuses(words, own_images, dataset, error=TypeError)
    refuses("must have the split train, .* got image, label", own_images, {"image": 3, "label": 4})
    said = refuses("item 0", own_images, ["a", BLACK[0], DEEP, (BLACK[0], 0.5)]).splitlines()
    assert [line.split(" ", 2)[1] for line in said] == ["0", "2", "3"]


def test_arrays_in_every_form() -> None:
    x = to_float(PIXELS).numpy()
    frozen = PIXELS.numpy().copy()
    frozen.flags.writeable = False
    for same in (
        frozen,
        x.astype(">f4"),
        x.astype("<f8"),
        x.astype(np.float16),
        x.astype(np.longdouble),
        to_float(PIXELS).to_sparse(),
        np.array([*PIXELS.numpy(), None], dtype=object)[:-1],
    ):
        assert torch.equal(own_images(same).images, PIXELS)
    for array, words in (
        (x > 0, "bool: take 255"),
        (frozen.astype(">u2"), "uint16: take x // 257"),
        (torch.from_numpy(x).cfloat(), r"complex64: take x\.real"),
        (x.astype(complex), r"complex128: take x\.real"),
        ([frozen[0].astype(object)], r"^item 0 must .* object: take numpy"),
        (frozen.astype(object), r"^images must .* object: take numpy\.array\(x\.tolist\(\)\)$"),
    ):
        refuses(words, own_images, array)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([BLACK[0]], "`images` must be at least 2, got 1"),
        ([BLACK[0], BLACK[0, :, 4:]], "one size, got 8 x 8 in item 0 and 4 x 8 in item 1"),
        ([torch.full((8, 8), -2.0)], r"item 0 must be bytes or lie in .*float32 from -2"),
        (torch.full((2, 8, 8), torch.nan), r"images must be bytes or lie in .*float32"),
        (PIXELS.int(), "images must be uint8, or floating .*, got int32: take x as uint8, if"),
        ((PIXELS, PIXELS[:, 0, 0, 0]), r"images must hold images .* got shape \(40,\)"),
        ([chess("L"), CLEAR], "item 1 cannot be .*must be opaque"),
        ([chess("L"), DEEP], "item 1 .*must have 8 bits"),
        (["a.png"], "item 0 must be an image, got a str"),
        (torch.zeros(20, 8, 8, 2).byte(), r"images must hold .* got shape \(20, 8, 8, 2\)"),
        ([], r"train data set must hold images with pixels, got \(0, 1, 4, 4\)"),
        ([np.zeros((0, 8), np.uint8)] * 20, r"images with pixels, got \(20, 1, 0, 8\)"),
        ((BLACK, BLACK[:0]), "test data set must hold images with pixels"),
        ((BLACK, BLACK, BLACK), r"\(training images, held-out images\), .* got 3: "),
        (torch.zeros(20, 1, 8, 6, dtype=torch.uint8), "multiples of 4, got 8 x 6: crop, pad"),
        ((BLACK, BLACK.expand(-1, 3, -1, -1)), "held-out images must"),
    ],
)
def test_data_that_cannot_be_trained_on(dataset: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill_in(tiny(data=OWN), *split_own(dataset), torch.device("cpu"))


LABELS = torch.arange(40)


@pytest.mark.parametrize(
    ("dataset", "labels", "message"),
    [
        (PIXELS, LABELS[:3], "of 40 images, got 3 such as "),
        (PIXELS, LABELS + 0.5, "item 0 has the label 0.5, which must be a whole"),
        (PIXELS, LABELS - 1, "must be whole numbers from 0, or names, of 40 images, got"),
        (PIXELS, dict(enumerate(range(40))), "names, of 40 images, got 0 such as "),
        ((PIXELS, PIXELS), LABELS, r"\(training images, held-out images\), without labels="),
        ([(PIXELS[0], 1), (PIXELS[1], None)], None, "item 1 has no label, but other items have"),
        ([(PIXELS[0], torch.eye(3)[1])] * 2, None, r"item 1 has the label \[0.*argmax\(\)"),
        ([(PIXELS[0], {"boxes": []})], None, "item 0 has the label {'boxes'.*the images only"),
    ],
)
def test_labels_that_are_refused(dataset: object, labels: object, message: str) -> None:
    refuses(message, split_own, dataset, labels)
    refuses("labels= is for images given by dataset=", dsmooth.train, tiny(), labels=LABELS)
    refuses("unexpected keyword argument 'label'", dsmooth.train, tiny(), label=3, error=TypeError)
