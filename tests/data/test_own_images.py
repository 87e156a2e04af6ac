"""Images of one's own: what they mean is what they looked like, whatever form they have."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils import data as loaders

import dsmooth
from dsmooth.config import OWN
from dsmooth.data import ImageDataset, epoch_order, own_images, to_float
from dsmooth.data.dataset import Transform
from dsmooth.data.order import transformed
from dsmooth.data.own import split_own
from dsmooth.philox import Stream, image_words
from dsmooth.training.step import TrainState
from tests.helpers.data_makers import random_bytes, refuses
from tests.helpers.tiny_runs import resolved, tiny

pytestmark = pytest.mark.quick

CHESS = np.indices((8, 8)).sum(0) % 2  # black and white
BLACK = torch.zeros(3, 1, 8, 8).byte()
PIXELS = torch.from_numpy(random_bytes((40, 1, 8, 8)))
CPU = torch.device("cpu")


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


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGBA", (8, 8), (9, 9, 9, 0)),
        *(Image.fromarray(np.full((8, 8), 65535, deep)) for deep in (np.uint16, np.int32)),
    ],
)
def test_the_error_has_the_line_that_converts(picture: Image.Image) -> None:
    white = Image.new("RGB" if picture.mode == "RGBA" else "L", picture.size, "white")
    with pytest.raises(ValueError, match=r"item 1 must (be opaque|have 8 bits).* it: ") as caught:
        own_images([white, picture])
    line = str(caught.value).rpartition("it: ")[2].partition(", if ")[0]
    converted = eval(line, {"Image": Image, "numpy": np, "image": picture})
    assert (own_images([white, converted]).images == 255).all()


class Noisy(loaders.Dataset):
    """A random transform inside a data set."""

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.where(torch.rand(8, 8) < 0.5, PIXELS[index], 0)


def test_a_frozen_transform_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    own_images(loaders.TensorDataset(PIXELS))
    assert not caplog.messages
    own_images(Noisy())
    assert caplog.messages[0].startswith("item 0 of the data set differs at a second read")


def crop(image: torch.Tensor) -> torch.Tensor:
    """A crop by torch's generator, numbers of the two others in it."""
    top = int(torch.randint(5, ()))
    image[:, top, :] = random.randrange(256)
    image[:, top + 1, :] = np.random.randint(256)  # noqa: NPY002 - as users' transforms draw
    return image[:, top : top + 4, 4:]


def test_a_transform_is_a_function_of_seed_and_visit() -> None:
    """Each visit has a draw of its own, whatever the batches; the generators stay as they were."""
    held_out = PIXELS[:4, :, :4, :4]
    pixels = PIXELS.clone()
    own = ImageDataset(pixels, None, "own", "train", "pixels", crop)
    train_set, test_set = split_own((own, held_out))
    assert torch.equal(pixels, PIXELS)  # crop writes into its argument
    before = torch.random.get_rng_state(), random.getstate()

    def batches(size: int, seed: int = 0) -> torch.Tensor:
        state = TrainState(tiny(batch_size=size, images=160, seed=seed), train_set, CPU)
        return torch.cat([state.images.batch_at(i, size)[0] for i in range(0, 80, size)])

    whole = batches(40)
    assert whole.shape == (80, 1, 4, 4)
    assert torch.equal(whole, batches(16))
    assert not torch.equal(whole, batches(40, seed=1))
    assert len(whole.unique(dim=0)) == 80  # an image twice is two images
    seeds: list[int] = []
    transformed(PIXELS, lambda x: (seeds.append(torch.initial_seed()), x)[1], seed=3, first=5)
    words = image_words(40, 1, seed=3, first_index=5, stream=Stream.TRANSFORM)[:, 0].tolist()
    assert seeds == [low | high << 32 for low, high, *_ in words]
    assert random.getstate() == before[1]
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    TrainState(tiny(images=16), train_set, CPU).images.prepare(0)
    torch.manual_seed(7)
    assert torch.equal(state, torch.random.get_rng_state())
    plain = replace(train_set, transform=None)
    assert plain.digest != train_set.digest  # a run is not resumed without its transform
    assert torch.equal(test_set.images, held_out)
    parts = split_own((own_images(plain, transform=crop), replace(test_set, transform=crop)))
    assert [part.transform for part in parts] == [crop, None]
    of_the_argument = split_own((plain, replace(test_set, transform=crop)), transform=crop)
    assert [part.transform for part in of_the_argument] == [crop, None]
    refuses("transform= and the", split_own, (train_set, held_out), transform=crop)
    refuses("must be a function, got a int", own_images, pixels, transform=3, error=TypeError)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (torch.Tensor.float, "must make uint8 .* got torch.float32 .*leave out ToTensor"),
        (torch.Tensor.numpy, r"must make uint8 .* got ndarray \(1, 8, 8\)"),
        (lambda x: x[0], r"must make uint8 .* got torch.uint8 \(8, 8\)"),
        (lambda x: x[:, : int(x[0, 0, 0])], "must make images of one shape"),
        (lambda x: x[:, :4], r"must have the shape \(1, 4, 8\) .* that transform makes"),
    ],
)
def test_transforms_that_cannot_be(transform: Transform, message: str) -> None:
    pixels = torch.arange(8, 0, -1).byte().view(8, 1, 1, 1).expand(-1, -1, 8, 8)
    own = own_images(pixels, transform=transform)
    with pytest.raises(ValueError, match=message):
        TrainState(tiny(), split_own((own, pixels))[0], CPU).inputs(0)


@pytest.mark.parametrize("names", [(), ("cat", "dog", "emu")])
def test_labels_in_every_form(names: tuple[str, ...]) -> None:
    numbers = torch.arange(40) % 3
    one_hot = torch.nn.functional.one_hot(numbers)
    arrays = () if names else (numbers, one_hot, one_hot.float(), numbers.float())
    labels = [names[i] for i in numbers] if names else numbers.tolist()
    items = [*zip(PIXELS, np.array(labels), strict=True)]
    for dataset, apart in (
        *((PIXELS, labels), (PIXELS.numpy(), np.array(labels)), ((PIXELS, labels), None)),
        *(((PIXELS, np.array(labels)), None), (items, None), (PIXELS, [*np.array(labels)])),
        *((loaders.Subset(items, range(40)), None), ((items, items[9:12]), None)),
        *((PIXELS, array) for array in arrays),
        *(((PIXELS, array), None) for array in arrays),
        *((loaders.TensorDataset(PIXELS, array), None) for array in arrays),
    ):
        train_set, held_out = split_own(dataset, apart)
        assert train_set.class_names == held_out.class_names == (names or ("0", "1", "2"))
        for part in (train_set, held_out):
            rows = [int((image == PIXELS).all((1, 2, 3)).nonzero()) for image in part.images]
            assert torch.equal(part.labels, numbers[rows])
    assert train_set.digest != replace(train_set, labels=2 - train_set.labels).digest
    for no_class in (torch.tensor([1, 1, 0]), {"boxes": []}, None):
        assert own_images([(image, no_class) for image in PIXELS]).labels is None
    parts = split_own(([(PIXELS[0], "cat"), (PIXELS[1], "emu")], [(PIXELS[0], "ape")] * 2))
    assert [part.class_names for part in parts] == [("cat", "emu", "ape")] * 2
    assert parts[1].labels.tolist() == [2, 2]


def held_out_places(n: int, labels: torch.Tensor | None) -> torch.Tensor:
    """The places of the held-out images among n."""
    digits = torch.stack([torch.arange(n) // 250, torch.arange(n) % 250], 1).byte()
    pixels = digits.repeat(1, 8).view(n, 1, 4, 4)
    train_set, held_out = split_own(pixels, labels)
    assert len(train_set) == n - n // 10
    return held_out.images[:, 0, 0, :2].long() @ torch.tensor([250, 1])


UNEQUAL = torch.arange(5).repeat_interleave(torch.tensor([90, 900, 14, 6, 3]))


@pytest.mark.parametrize(
    "labels",
    [
        *(torch.arange(n) % k for n in (40, 120, 1000) for k in (2, 5, 10, 20)),
        *(UNEQUAL, UNEQUAL[epoch_order(len(UNEQUAL), 0, 5)]),
        torch.tensor([7, 2**62]).repeat(50),
    ],
)
def test_held_out_images_have_the_shares_of_the_classes(labels: torch.Tensor) -> None:
    """Of classes in turn, too. No class is held out entirely."""
    n = len(labels)
    places = held_out_places(n, labels)
    assert torch.equal(places, held_out_places(n, labels.clone()))
    assert len(places) == n // 10
    for label, count in zip(*labels.unique(return_counts=True), strict=True):
        held_out = int((labels[places] == label).sum())
        assert abs(held_out - count / 10) <= 1
        assert held_out < count


@pytest.mark.parametrize("labels", [None, torch.arange(2500) // 10 % 10])
def test_held_out_images_are_at_no_regular_places(labels: torch.Tensor | None) -> None:
    places = held_out_places(2500, labels)
    assert torch.equal(places, places.unique())  # in the order of the data
    # Five standard deviations: of the mean of 250 uniform numbers, and of a binomial.
    assert abs(places.double().mean() / 2500 - 0.5) < 5 * (1 / 12 / 250) ** 0.5
    assert ((places % 10).bincount(minlength=10) - 25).abs().max() < 5 * (250 * 0.09) ** 0.5


def test_ranges_of_pixels(caplog: pytest.LogCaptureFixture) -> None:
    arrays = [PIXELS.numpy().astype(kind) for kind in (np.uint16, ">i4", ">u8")]
    for same in (PIXELS.long(), *arrays, [*PIXELS.int()], [*arrays[1]]):
        assert torch.equal(own_images(same).images, PIXELS)
    assert torch.equal(own_images(PIXELS > 99).images, (PIXELS > 99).byte() * 255)
    assert not caplog.messages
    for few, ends in ((PIXELS // 16, "0 .. 15"), (PIXELS // 2 + 127, "127 .. 254")):
        own_images(few)
        assert caplog.messages.pop().startswith(f"the bytes of the train images are {ends}, where")


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
    counted = ClassFolders(folders)
    counted.classes = 2
    assert own_images(counted).class_names == ("0", "1")


def test_forms_of_images_in_python() -> None:
    pixels = torch.from_numpy(random_bytes((20, 3, 8, 12)))
    last = pixels.permute(0, 2, 3, 1)
    for dataset in (last, last.numpy(), list(last.numpy()), loaders.TensorDataset(pixels)):
        own = own_images(dataset)
        assert torch.equal(own.images, pixels)
        assert own.labels is None
    assert torch.equal(own_images(last.numpy()[::-1]).images, pixels.flip(0))  # a negative stride
    assert torch.equal(own_images(pixels[:, 0]).images, pixels[:, :1])
    pictures = enumerate(map(Image.fromarray, last.numpy()))
    hub = Hub({"idx": i, "img": picture, "label": i % 2} for i, picture in pictures)
    train_set, held_out = split_own({"train": hub, "validation": hub[:5], "test": None})
    assert torch.equal(train_set.images, pixels)
    assert torch.equal(train_set.labels, torch.arange(20) % 2)
    assert len(held_out) == 5
    for named in (train_set, *split_own(hub), split_own(own_images(hub))[1]):
        assert named.class_names == ("dog", "cat")
    halves = loaders.random_split(loaders.TensorDataset(pixels), [15, 5])
    for images, half in zip(split_own(halves), halves, strict=True):
        assert torch.equal(images.images, pixels[half.indices])


class Endless(loaders.Dataset):
    def __getitem__(self, index: int) -> torch.Tensor:
        return PIXELS[0]


class Promise(Endless):
    def __len__(self) -> int:
        return 1 << 50


NO_BYTES = r"must be bytes, got {}: dsmooth\.to_bytes\(x\) "
NO_ITEMS = "must have a length and numbers of its items, got a {}: give the .dataset of a DataLoad"


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([BLACK[0]] * 9, "10 images or more, one of which is held out, got 9"),
        ([chess("L"), chess("RGB")], r"item 1 of .*: image\.convert\(.RGB.\) makes colour "),
        ([torch.full((8, 8), -2.0)], f"item 0 {NO_BYTES.format('float32')}"),
        ((PIXELS / 255).numpy(), f"images {NO_BYTES.format('float32')}"),
        ((PIXELS, to_float(PIXELS)), f"images {NO_BYTES.format('float32')}"),
        (PIXELS.int() + 1, r"images must be whole numbers in 0 \.\. 255, got \d+ to 256"),
        (["a.png"], "item 0 must be an image, got a str"),
        ([()], "item 0 must be an image, got a NoneType"),
        (Path("images"), NO_ITEMS.format("PosixPath")),
        (loaders.DataLoader(Promise()), NO_ITEMS.format("DataLoader")),
        (Endless(), NO_ITEMS.format("Endless")),
        (Promise(), "a Promise takes .* more than there is memory"),
        ([{"pixels": 3}], "item 0 must have an entry image, img, .*, got pixels"),
        (torch.zeros(20, 8, 8, 2).byte(), r"images must hold .* got shape \(20, 8, 8, 2\)"),
        ([], "train data set must have a length and hold images, got none"),
        (torch.zeros(20, 1, 0, 0).byte(), "train images must have pixels, got 0 x 0$"),
        ([np.zeros((0, 8), np.uint8)] * 20, "train images must have pixels, got 0 x 8$"),
        ((BLACK, BLACK[:, :, :, :0]), "test images must have pixels, got 8 x 0$"),
        ((BLACK, BLACK[:0]), "test data set must have a length and hold images, got none"),
        ((BLACK, BLACK, BLACK), r"\(training images, held-out images\), .* got 3$"),
        ({"a": PIXELS, "b": PIXELS}, "has no split 'train', but a, b"),
        (torch.zeros(20, 1, 8, 6, dtype=torch.uint8), "multiples of 4, got 8 x 6: crop, pad"),
        ((BLACK, BLACK.expand(-1, 3, -1, -1)), "held-out images must"),
        (PIXELS.expand(-1, 3, -1, -1), "`image_channels` must fit the images of own, "),
    ],
)
def test_data_that_cannot_be_trained_on(dataset: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(tiny(data=OWN), *split_own(dataset))


LABELS = torch.arange(40)


def test_given_labels_come_before_those_of_items() -> None:
    numbers = torch.arange(40) % 4
    items = [*zip(PIXELS, (3 - numbers).tolist(), strict=True)]
    assert torch.equal(own_images(items, labels=numbers).labels, numbers)


@pytest.mark.parametrize(
    ("dataset", "labels", "message"),
    [
        (PIXELS, LABELS[:3], "of 40 images, got 3 such as 2$"),
        (PIXELS, LABELS + 0.5, "must be whole numbers, one-hot vectors or names of 40 images, got"),
        (PIXELS, ["cat", 3] * 20, "got 40 such as 'cat' and 3$"),
        (PIXELS, [1e30, *[0.0] * 39], r"labels must be whole numbers, .* got 40 such as 1e\+30$"),
        (PIXELS, [0, 10**400, *[0] * 38], "labels must be whole numbers, .* got 40 such as 10+$"),
        (PIXELS, [float("nan"), *[0] * 39], "got 40 such as nan and 0$"),
        ((PIXELS, PIXELS), LABELS, r"\(images, labels\)\), got 2 and labels="),
        ((PIXELS, LABELS), LABELS, r"\(images, labels\) were both given: leave one out"),
        ([(PIXELS[0], None), (PIXELS[1], 1)], None, "got 2 such as None and 1"),
    ],
)
def test_labels_that_are_refused(dataset: object, labels: object, message: str) -> None:
    refuses(message, split_own, dataset, labels)
    refuses("labels= is for images given by dataset=", dsmooth.train, tiny(), labels=LABELS)
    refuses("unexpected keyword argument 'label'", dsmooth.train, tiny(), label=3, error=TypeError)
