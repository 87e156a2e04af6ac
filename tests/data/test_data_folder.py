"""Image folders: pixels are kept, crops are centred, splits are stable."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from dsmooth.config import TrainConfig
from dsmooth.data import SPLITS, ImageDataset, folder, load_dataset, load_splits
from dsmooth.data.order import held_out
from dsmooth.progress import lines_shown
from dsmooth.training.plan import load_data
from tests.helpers.data_makers import random_bytes, refuses, write_images

DRAFT = JpegImageFile.draft
load = partial(load_dataset, "folder", "train")
pytestmark = pytest.mark.quick


def rows(dataset: ImageDataset) -> list[bytes]:
    return [image.numpy().tobytes() for image in dataset.images]


def test_folder_is_read_back_split_and_stable(tmp_path: Path) -> None:
    images = {f"{i // 10}/{i}.png": random_bytes((8, 12), seed=i) for i in range(40)}
    write_images(tmp_path, images)
    for name in ("notes.txt", "0/a.GIF", "0/b.GIF", "LICENSE", "._0.png"):
        (tmp_path / name).write_text("not an image")
    write_images(tmp_path / ".ipynb_checkpoints", {"0-checkpoint.png": images["0/0.png"]})
    train, test = (load_dataset("folder", split, tmp_path) for split in SPLITS)
    assert (train.image_channels, *train.image_size) == (1, 8, 12)
    assert train.source == f"{tmp_path} ({len(train)} images)"
    assert len(test) < 12
    # Each image is in one split, in the class of its folder's number.
    folders = {image.tobytes(): int(name.split("/")[0]) for name, image in images.items()}
    assert sorted(rows(train) + rows(test)) == sorted(folders)
    assert sorted(rows(load_dataset("folder", "all", tmp_path))) == sorted(folders)
    for split in (train, test):
        assert split.labels.tolist() == [folders[image] for image in rows(split)]
    assert set(train.labels[:20].tolist()) == {0, 1, 2, 3}  # whatever the subfolders' order

    # New images move no old one.
    write_images(tmp_path / "more", {f"{i}.png": random_bytes((8, 12), i) for i in range(100, 140)})
    more = rows(load_dataset("folder", "train", tmp_path))
    assert [image for image in more if image in folders] == rows(train)


def test_names_do_not_matter_and_copies_stay_together(tmp_path: Path) -> None:
    pixels = [random_bytes((8, 12), seed=i % 30) for i in range(60)]
    colours = [np.stack([grey] * 3, 2) if i > 40 else grey for i, grey in enumerate(pixels)]
    for name, order in (("first", range(60)), ("again", range(59, -1, -1))):
        write_images(tmp_path / name, {f"{i}.png": colours[j] for i, j in enumerate(order)})
    first, again = (
        load_splits("folder", SPLITS, tmp_path / n, False, None) for n in ("first", "again")
    )
    assert [part.digest for part in first] == [part.digest for part in again]
    assert not {*rows(first[0])} & {*rows(first[1])}
    write_images(tmp_path / "same", {f"{i}.png": pixels[0] for i in range(9)})
    refuses("at least 2 different images", load_dataset, "folder", "train", tmp_path / "same")


def test_content_decides_and_what_is_left_out_is_counted(tmp_path: Path, caplog) -> None:
    write_images(tmp_path, {f"{i}.jpg": random_bytes((8, 8), i) for i in range(9)})
    for i in range(9):
        (tmp_path / f"{i}.jpg").rename(tmp_path / f"{i}.{('jfif', 'tif', 'x')[i % 3]}")
    for name in ("a.GIF", "b.gif", "README", "c.txt"):
        (tmp_path / name).write_text("BM is how a BMP begins")
    assert len(load_dataset("folder", "all", tmp_path)) == 9
    words = f"{tmp_path}: left out, since they are not PNG, JPEG, BMP, WEBP: "
    assert [record.getMessage().partition(": 2 .gif, ")[0] + ": " for record in caplog.records] == [
        words
    ]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.heic").write_text("x")
    refuses(r"no image is in .*1 \.heic$", load, tmp_path / "only", error=FileNotFoundError)


def test_all_that_cannot_be_used_is_named_at_once(tmp_path: Path) -> None:
    write_images(
        tmp_path, {f"{i:02}.png": random_bytes((8, 8 + 4 * (i > 27)), i) for i in range(30)}
    )
    for i in range(12):
        (tmp_path / f"{i:02}.png").write_bytes(b"damaged")
    *lines, more, size = refuses("cannot be", load, tmp_path).splitlines()
    assert [line.split(" cannot be read")[0] for line in lines] == [
        f"{tmp_path}/{i:02}.png" for i in range(10)
    ]
    assert more == "and 2 other images cannot be used"
    assert size == (
        f"the images must have one size, got 8 x 8 in {tmp_path}/12.png and 15 others and "
        f"8 x 12 in {tmp_path}/28.png and 1 others: crop them, or of a folder set `image_size`"
    )


@pytest.mark.parametrize(
    "names", [["a/0.png", "1.png"], ["a/0.png", "a/1.png"], ["0.png", "1.png"]]
)
def test_images_outside_of_subfolders_have_no_class(tmp_path: Path, names: list[str]) -> None:
    write_images(tmp_path, {name: random_bytes((8, 12)) for name in names})
    assert load_dataset("folder", "all", tmp_path).labels is None


def test_one_coloured_image_makes_the_folder_rgb_in_both_splits(tmp_path: Path) -> None:
    images = {f"{i:02}.png": random_bytes((4, 8), seed=i) for i in range(19)}
    colour = random_bytes((4, 8, 3))
    write_images(tmp_path, {**images, "19.png": colour})
    loaded = [load_dataset("folder", split, tmp_path) for split in SPLITS]
    assert [part.images.shape[1:] for part in loaded] == [(3, 4, 8)] * 2
    expected = [np.stack([grey] * 3) for grey in images.values()] + [colour.transpose(2, 0, 1)]
    assert sorted(rows(loaded[0]) + rows(loaded[1])) == sorted(map(np.ndarray.tobytes, expected))


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_exif_orientation_is_followed(tmp_path: Path, name: str) -> None:
    pixels, exif = random_bytes((8, 12)), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / name, exif=exif, lossless=True)
    image = folder.read_pictures([tmp_path / name])
    assert np.array_equal(image[0, 0].numpy(), np.rot90(pixels, -1))


def test_image_size_crops_the_centre(tmp_path: Path, monkeypatch, capsys) -> None:
    wide, tall = random_bytes((8, 20), seed=1), random_bytes((16, 8), seed=2)
    write_images(tmp_path, {"a.png": wide, "b.png": tall})
    parts = [load_dataset("folder", split, tmp_path, image_size=8) for split in SPLITS]
    assert {*rows(parts[0]), *rows(parts[1])} == {wide[:, 6:14].tobytes(), tall[4:12].tobytes()}
    config = TrainConfig(data="folder", data_dir=str(tmp_path), image_size=8)
    opened, open_file = [], folder.open_regular
    monkeypatch.setattr(folder, "open_regular", lambda p: (opened.append(p.name), open_file(p))[1])
    assert [*map(rows, load_data(config))] == [*map(rows, parts)]
    assert sorted(opened) == ["a.png", "b.png"]  # once
    assert capsys.readouterr().out == ""
    with lines_shown():
        load_data(config)
    assert "reading images: 2 images\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sizes", "image_size", "message"),
    [
        ({}, None, "no image is in FOLDER or the folders inside it$"),
        ({"a": (8, 8)}, None, "FOLDER must hold at least 2 different images, one to test with"),
        (
            {"a": (6, 8), "b": (6, 8)},
            None,
            r"[ab]\.png must .* multiples of 4, got 6 x 8; .* `imag",
        ),
        ({"a": (30, 31), "b": (11, 12)}, None, r"one size, got (30 x 31|11 x 12) in FOLDER/[ab]\."),
        ({"a": (8, 8), "b": (8, 8)}, 30, "`image_size` must be a .* multiple of 4, for .* got 30"),
    ],
)
def test_folder_errors_name_the_file(tmp_path: Path, sizes, image_size, message: str) -> None:
    write_images(tmp_path, {f"{name}.png": random_bytes(size) for name, size in sizes.items()})
    words, errors = message.replace("FOLDER", str(tmp_path)), (ValueError, FileNotFoundError)
    refuses(words, load_splits, "folder", SPLITS, tmp_path, False, image_size, error=errors)


def test_a_jpeg_is_decoded_small_and_looks_the_same(tmp_path: Path) -> None:
    place = np.arange(512)
    smooth = np.stack(np.broadcast_arrays(place[:, None] // 2, place // 2, 0), 2).astype(np.uint8)
    paths = [tmp_path / name for name in ("a.png", "a.jpg")]
    for path in paths:
        Image.fromarray(smooth).save(path)
    with patch.object(JpegImageFile, "draft", autospec=True, side_effect=DRAFT) as draft:
        png, jpg = (folder.read_pictures([path], 32).int() for path in paths)
    assert draft.call_args.args[0].size == (64, 64)
    assert (png - jpg).abs().max() <= 4


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("train", "test"), ("Train", "Test"), ("training", "testing"), ("train", "validation")],
)
def test_folders_train_and_test_are_splits_each_with_its_classes(tmp_path, train, held_out):
    pixels = random_bytes((11, 8, 8))
    folders = [f"{train}/cat"] * 4 + [f"{train}/dog"] * 3 + [f"{held_out}/dog"] * 3 + ["__MACOSX/x"]
    write_images(tmp_path, {f"{name}/{i}.png": pixels[i] for i, name in enumerate(folders)})
    train_set, test_set = (load_dataset("folder", split, tmp_path) for split in ("train", "test"))
    assert train_set.class_names == test_set.class_names == ("cat", "dog")
    assert (len(train_set), len(test_set)) == (7, 3)
    assert test_set.source == f"{tmp_path} (3 images; {held_out} is held out)"
    whole = load_dataset("folder", "all", tmp_path)
    assert (len(whole), whole.class_names) == (10, ("cat", "dog"))
    assert sorted(train_set.known_labels().tolist()) == [0] * 4 + [1] * 3
    assert test_set.known_labels().tolist() == [1] * 3
    write_images(tmp_path, {"bird/0.png": pixels[0]})
    with pytest.raises(ValueError, match=f"holds {train} and {held_out}, so it must hold no other"):
        load_dataset("folder", "train", tmp_path)


def test_of_test_and_val_the_first_is_held_out_and_says_so(tmp_path: Path) -> None:
    names = ["train/0", "train/1", "val/2", "test/3"]
    write_images(tmp_path, {f"{name}.png": random_bytes((8, 8), i) for i, name in enumerate(names)})
    train, test = load_splits("folder", SPLITS, tmp_path, False, None)
    assert (len(train), len(test)) == (2, 1)
    assert test.source == f"{tmp_path} (1 images; test is held out, val left out)"
    assert rows(test) == [random_bytes((8, 8), 3).tobytes()]


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    """But not round and round."""
    write_images(tmp_path / "elsewhere", {f"{i}.png": random_bytes((8, 8), i) for i in range(6)})
    folder = tmp_path / "images"
    for name in ("train/cat", "train/dog", "test/cat"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(folder / "train")
    train, test = load_splits("folder", SPLITS, folder, False, None)
    assert (len(train), len(test), train.class_names) == (12, 6, ("cat", "dog"))


def test_one_in_ten_is_held_out_but_of_each_class_an_image_is_for_training() -> None:
    tenth = int(0.1 * 2**64)
    assert held_out([tenth, tenth + 1, 2**63], [None] * 3) == [True, False, False]
    keys, classes = [3, 2**63, 1, 2, 2**62], ["a", "b", "c", "c", "b"]
    assert held_out(keys, classes) == [False, False, True, False, False]
    assert held_out([2**63, 2**62], [None, None]) == [False, True]
    assert held_out([5, 3, 3, 5, 9], ["a", "a", "b", "b", "b"]) == [False, True, True, False, False]
