"""Data sets at large: bytes and floats, missing data, published files; the order of images.

torchvision, which imports torch._dynamo, is imported by the tests that read published files.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
from functools import partial
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dsmooth
from dsmooth.data import (
    DATASETS,
    SPLITS,
    ImageDataset,
    epoch_order,
    indices_at,
    load_dataset,
    order,
    to_bytes,
    to_float,
)
from dsmooth.data.batches import ImagesOnDevice, flips
from dsmooth.data.order import choose_images
from dsmooth.data.published import PUBLISHED, SUBSET_PATH
from dsmooth.philox import Stream, image_words
from tests.helpers.data_makers import random_bytes, refuses, write_images

pytestmark = pytest.mark.quick

IMAGES = torch.from_numpy(random_bytes((7, 3, 4, 8)))
load = partial(load_dataset, split="train")
made = partial(ImageDataset, labels=None, name="folder", split="train", source="memory")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_byte_survives_the_way_to_float_and_back(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    x = to_float(levels)
    assert x.dtype == torch.float32
    # byte / 127.5 lies below 2, so it is rounded by at most 2^-24; the difference, by less again.
    assert (x.double() - (levels.double() / 127.5 - 1)).abs().max() < 2.0**-23
    assert (x[0], x[255]) == (-1, 1)
    assert torch.equal(to_bytes(x.to(dtype)), levels)


@given(st.floats(allow_nan=False, width=32))
@settings(deadline=None)
def test_to_bytes_gives_the_nearest_level(value: float) -> None:
    level = int(to_bytes(torch.tensor([value], dtype=torch.float64)))
    distance = abs(level / 127.5 - 1 - value)
    for other in {max(0, level - 1), min(255, level + 1)}:
        assert distance <= abs(other / 127.5 - 1 - value) + 1e-15


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: to_bytes(torch.tensor([0.0, torch.nan])), "NaN, got 1 among 2"),
        (lambda: to_bytes(IMAGES), "x must have a floating-point dtype, got torch.ui"),
        (lambda: to_float(IMAGES.float()), "images must have dtype torch.uint8, got"),
        (lambda: made(IMAGES[:, :2]), r"images must have shape \(N, 1 or 3, H, W\), got"),
        (lambda: made(IMAGES, labels=torch.arange(6)), r"labels .* shape \(7,\), got \(6,\)"),
        (lambda: load_dataset("svhn", "train"), "one of mnist, .* got 'svhn'"),
        (lambda: load_dataset("mnist", "all"), "one of train, test, got 'all'"),
        (lambda: load("mnist", image_size=32), "`image_size` must .* of 4, for celeba or folder"),
        (lambda: load("mnist", download=True), "`download` .* needs `data_dir`"),
        (lambda: load("folder", download=True), "`download` is for mnist, fash"),
        (lambda: indices_at(0, 0, 1, 0), "`n` must lie in 1 .. 4294967295, got 0"),
        (lambda: indices_at(5, -1, 1, 0), "`images_seen` must be at least 0, got -1"),
        (lambda: indices_at(5, 0, 0, 0), "`batch_size` must be at least 1, got 0"),
        (lambda: indices_at(5, 0, 1, -1), "`seed` must lie in .*, got -1"),
        (lambda: indices_at(5, 0, 1, 2**64), "`seed` must .*, got 18446744073709551"),
        (lambda: epoch_order(5, -1, 0), "`epoch` must be at least 0, got -1"),
        (lambda: flips(-1, 1, seed=0), r"must lie in 0 \.\."),
        (lambda: flips(0, 1, seed=-1), r"must lie in 0 \.\."),
        (
            lambda: load("cifar10"),
            '"cifar10" needs the folder of its files; to name it, set `data_dir',
        ),
    ],
)
def test_what_has_no_meaning_is_refused(call, words: str) -> None:
    refuses(words, call, error=(ValueError, FileNotFoundError))


def test_dataset_hands_out_what_it_holds() -> None:
    images, dataset = IMAGES, made(IMAGES, labels=torch.arange(7))
    assert (len(dataset), dataset.image_size, dataset.image_channels) == (7, (4, 8), 3)
    indices = torch.tensor([3, 0, 3])
    assert torch.equal(to_bytes(dataset.batch(indices)), images[indices])
    x, label = dataset[-1]
    assert torch.equal(x, to_float(images[6]))
    assert label == 6
    assert torch.equal(made(images)[3], to_float(images[3]))
    batch, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=7)))
    assert torch.equal(batch, to_float(images))
    assert torch.equal(labels, torch.arange(7))
    with pytest.raises(IndexError):
        dataset[7]


@pytest.mark.parametrize("name", sorted({*DATASETS} - {"folder"}))
def test_missing_data_says_the_ways_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for split, place in itertools.product(SPLITS, (tmp_path / "empty", tmp_path / "absent")):
        parts = [str(place)] + ["embedded subset"] * (name == "mnist")
        parts += ["`download=True`", PUBLISHED[name][1]] if name in PUBLISHED else []
        said = refuses("data_dir", load_dataset, name, split, place, error=FileNotFoundError)
        assert len(said.splitlines()) == 2
        assert all(part in said for part in parts)


@pytest.mark.parametrize("failure", [URLError("no name"), RuntimeError("x:\ny"), TimeoutError()])
def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch, failure: Exception) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Mock(side_effect=failure))
    reason = " ".join(str(failure).split()) or "TimeoutError"
    load = partial(load_dataset, download=True)
    words = f"^could not download cifar10 to {tmp_path}: {reason}\n.*/cifar.html by hand"
    refuses(words, load, "cifar10", "train", tmp_path, error=ConnectionError)


SUBSET_DIGESTS = {
    "train": "596c75ad54d93fb53c44cd48bc1b982a86d35531d524fc49d6cb11e637f3319f",
    "test": "7ac047a0c9c563eccc668baee0dfa0dfecd866c22a8f159041e11063569085e7",
}


@pytest.mark.parametrize(("split", "n"), [("train", 5000), ("test", 1000)])
def test_embedded_subset_is_itself(split: str, n: int) -> None:
    dataset = load_dataset("mnist", split)
    assert dataset.digest == SUBSET_DIGESTS[split]
    assert dataset.embedded
    assert dataset.images.shape == (n, 1, 28, 28)
    assert dataset.source == f"embedded MNIST subset ({n:,} images)"
    text = (SUBSET_PATH.parent / "ATTRIBUTION.md").read_text()
    assert all(name in text for name in ("LeCun", "Cortes", "Burges", "Share Alike"))


@pytest.mark.parametrize(("name", "root"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_datasets_are_read_back(tmp_path: Path, name: str, root: str) -> None:
    images, labels = random_bytes((8, 28, 28)), random_bytes((8,), 1) % 10
    raw = tmp_path / root / "raw"
    raw.mkdir(parents=True)
    for prefix, part in (("train", slice(5)), ("t10k", slice(5, None))):
        for kind, array in (("images-idx3", images[part]), ("labels-idx1", labels[part])):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())
    train, test = (load_dataset(name, split, tmp_path, download=True) for split in SPLITS)
    assert torch.equal(torch.cat([train.images, test.images])[:, 0], torch.from_numpy(images))
    assert [*train.labels.tolist(), *test.labels.tolist()] == labels.tolist()
    assert train.source == f"{tmp_path} (5 images)"
    if name == "mnist":  # or a model of the packaged subset does not fit these labels
        assert train.class_names == load_dataset("mnist", "train").class_names
    os.truncate(raw / "train-images-idx3-ubyte", 100)
    words = f"{tmp_path} must hold {root}/raw with its four files, unpacked .*84"
    refuses(words, load_dataset, name, "train", tmp_path, error=FileNotFoundError)


def test_cifar10_is_read_if_it_is_the_published(tmp_path, monkeypatch) -> None:
    from torchvision.datasets import CIFAR10

    pixels, mark = random_bytes((12, 3072)), tmp_path / "ran"
    (tmp_path / CIFAR10.base_folder).mkdir()
    batches: list[list[str]] = []
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        batch = {"data": pixels[2 * i : 2 * i + 2], "labels": [i, 9]}
        (path := tmp_path / CIFAR10.base_folder / name).write_bytes(pickle.dumps(batch))
        batches.append([name, hashlib.md5(path.read_bytes()).hexdigest()])
    (path.with_name("batches.meta")).write_bytes(pickle.dumps({"label_names": []}))
    monkeypatch.setattr(CIFAR10, "train_list", batches[:5])
    monkeypatch.setattr(CIFAR10, "test_list", batches[5:])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    train, test = (load_dataset("cifar10", split, tmp_path) for split in SPLITS)
    # R, G and B planes of 32 rows.
    both = torch.cat([train.images, test.images])
    assert np.array_equal(both.numpy(), pixels.reshape(12, 3, 32, 32))
    assert train.images.is_contiguous()
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]

    path.write_bytes(f"cos\nmkdir\n(S'{mark}'\ntR.".encode())  # would make the folder
    words = "cifar-10-batches-py with the published batches"
    refuses(words, load_dataset, "cifar10", "test", tmp_path, error=FileNotFoundError)
    assert not mark.exists()


def test_celeba_is_cropped_to_140_in_the_official_split(tmp_path, monkeypatch) -> None:
    from torchvision.datasets import CelebA

    frames = [random_bytes((218, 178, 3), seed) for seed in range(5)]
    frames[0][39:179, 19:159] = (10, 20, 30)  # the centre; the noise around it must not be seen
    leaves = [f"{i}.png" for i in range(5)]
    root = tmp_path / CelebA.base_folder
    write_images(root / "img_align_celeba", dict(zip(leaves, frames, strict=True)))
    for _, _, leaf in CelebA.file_list[1:]:
        header = "5\nnames\n" * leaf.startswith(("list_attr", "list_bbox", "list_land"))
        lines = [f"{name} {part}\n" for name, part in zip(leaves, (0, 1, 2, 0, 2), strict=True)]
        (root / leaf).write_text(header + "".join(lines))
    monkeypatch.setattr(
        CelebA, "file_list", [(*file[:1], None, file[2]) for file in CelebA.file_list]
    )

    train, test = (load_dataset("celeba", split, tmp_path, image_size=140) for split in SPLITS)
    centres = [frame[39:179, 19:159].transpose(2, 0, 1) for frame in frames]
    assert np.array_equal(train.images, np.stack([centres[0], centres[3]]))
    assert np.array_equal(test.images, np.stack([centres[2], centres[4]]))
    assert train.labels is None
    small = load_dataset("celeba", "train", tmp_path).images
    flat = torch.tensor([10, 20, 30])[:, None, None].expand(3, 32, 32)
    assert torch.equal(small[0], flat)
    # A widened triangle filter of a 140 / 32 pixels' radius keeps the mean of the image.
    noise, whole = small[1].double(), train.images[1].double()
    assert abs(noise.mean() - whole.mean()) < 2
    assert noise.std() < 0.4 * whole.std()  # nearest or unwidened would keep it

    write_images(tmp_path, {"3.jpg": frames[3]})
    (tmp_path / "3.jpg").replace(root / "img_align_celeba" / "3.png")
    assert load_dataset("celeba", "train", tmp_path).images.shape == (2, 3, 32, 32)

    write_images(root / "img_align_celeba", {"2.png": random_bytes((139, 200, 3))})
    words = "img_align_celeba/2.png cannot .*at least 140 x 140 are needed"
    refuses(words, load_dataset, "celeba", "test", tmp_path)


sizes, seeds = st.integers(1, 300), st.integers(0, 2**64 - 1)


@given(n=sizes, epoch=st.integers(0, 2**40), seed=seeds)
@settings(deadline=None)
def test_an_epoch_is_the_permutation_that_sorts_its_keys(n: int, epoch: int, seed: int) -> None:
    found = epoch_order(n, epoch, seed)
    words = image_words(1, n, seed=seed, first_index=epoch, stream=Stream.ORDER)[0].tolist()
    assert found.dtype == torch.int64
    assert found.tolist() == sorted(range(n), key=lambda i: (words[i][0], words[i][1], i))


def test_equal_keys_keep_the_order_of_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def same_words(n_images: int, n_counters: int, **_: object) -> torch.Tensor:
        return torch.full((n_images, n_counters, 4), 7)

    monkeypatch.setattr(order, "image_words", same_words)
    assert epoch_order(1000, 0, 987_654_321).tolist() == list(range(1000))


def test_order_and_flips_stay_as_they_were_released() -> None:
    assert epoch_order(10, 0, 0).tolist() == [2, 6, 8, 4, 7, 0, 9, 5, 1, 3]
    assert flips(0, 12, seed=0).int().tolist() == [0, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 0]


@given(n=st.integers(1, 40), seen=st.integers(0, 99), batch=st.integers(1, 99), seed=seeds)
@settings(deadline=None, max_examples=40)
def test_the_stream_is_the_epochs_one_after_another(n, seen, batch, seed) -> None:
    epochs = range((seen + batch) // n + 1)
    stream = torch.cat([epoch_order(n, epoch, seed) for epoch in epochs])
    assert torch.equal(indices_at(n, seen, batch, seed), stream[seen : seen + batch])


def test_chosen_images_are_in_a_random_order() -> None:
    dataset = made(IMAGES)
    assert torch.equal(choose_images(dataset, 3), IMAGES[epoch_order(7, 0, 0)[:3]])


def test_what_is_handed_out_can_be_changed() -> None:
    before = epoch_order(9, 3, 5).clone()
    epoch_order(9, 3, 5).zero_()
    assert epoch_order(9, 3, 5).equal(before)


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("n", "batch"), [(10, 4), (3, 8), (8, 8), (1, 5), (7, 1)])
def test_a_device_knows_the_same_order(n: int, batch: int, name: str) -> None:
    """From any position, over several epochs."""
    images, labels = torch.arange(n * 16).byte().view(n, 1, 4, 4), torch.arange(n)
    dataset = ImageDataset(images, labels, "made", "train", "made for a test")
    device = torch.device(name)
    on_device = ImagesOnDevice(dataset, labels, batch, 5, device)
    for first in (0, 3, 1000):
        for position in range(first, first + 3 * max(n, batch), batch):
            on_device.prepare(position)
            expected = indices_at(n, position, batch, 5)
            found = on_device.part(0, batch)
            assert torch.equal(found[0].cpu(), images[expected])
            assert torch.equal(found[1].cpu(), expected)
            half = on_device.part(batch // 2, batch - batch // 2)
            assert torch.equal(half[1].cpu(), expected[batch // 2 :])


def test_flips_are_fair_coins_of_the_seed_and_the_position() -> None:
    n = 100_000
    coins = flips(0, n, seed=3)
    assert coins.dtype == torch.bool
    assert coins.shape == (n,)
    others = (coins.roll(1), flips(0, n, seed=4), flips(2**32, n, seed=3))
    for bits in (coins, *(coins ^ other for other in others)):  # fair, independent
        assert abs(int(bits.sum()) - n / 2) < 5 * (n / 4) ** 0.5
    position = torch.tensor(70)
    batches = [flips(first, 7, seed=3) for first in range(0, 70, 7)]
    assert torch.equal(torch.cat([*batches, flips(position, 30, seed=3)]), coins[:100])
    assert flips(0, 0, seed=3).shape == (0,)


def test_show_gives_a_picture_that_displays_itself() -> None:
    x = torch.linspace(-1, 1, 5 * 3 * 8 * 12).view(5, 3, 8, 12)
    x[4] = torch.inf  # diverged: grey
    picture = dsmooth.show(x, columns=2, zoom=1)
    assert picture.size == (2 * 13 + 1, 3 * 9 + 1)
    assert picture._repr_png_().startswith(b"\x89PNG")
    pixels = np.asarray(picture)
    assert pixels.shape == (28, 27, 3)
    expected = ((x[3] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels[10:18, 14:26], expected)
    assert (pixels[19:27, 1:13] == 128).all()
    assert dsmooth.show(x[:1, :1]).mode == "L"
    for images in (bytes_ := dsmooth.to_bytes(x[:4]), bytes_.numpy()):
        assert dsmooth.show(images).tobytes() == dsmooth.show(x[:4]).tobytes()
    with pytest.raises(TypeError, match=r"x must be uint8 or floating point, got torch\.int32"):
        dsmooth.show(bytes_.int())
    for name in ("columns", "zoom"):
        refuses(f"`{name}` must be at least 1, got 0", dsmooth.show, x, **{name: 0})
    for image in (x[0], x[0, 0], x[:1, :1].numpy()):
        assert dsmooth.show(image).size == (2 * 12 + 4, 2 * 8 + 4)
    assert dsmooth.show([*x[:3, 0]]).tobytes() == dsmooth.show(x[:3, :1]).tobytes()
    for wrong in (x[:0], x[:, :2], x[:, 0]):
        refuses("x must have shape", dsmooth.show, wrong)
    refuses(r"show\(2 \* x - 1\) shows images in \[0, 1\]", dsmooth.show, (x[:4] + 1) / 2)
    refuses(r"show\(x\.byte\(\)\) shows images in \[0, 255\]", dsmooth.show, (x[:4] + 1) * 127.5)
