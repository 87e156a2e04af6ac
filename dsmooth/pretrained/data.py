"""The images that models are for: those of their trainings, or others that a user names."""

from __future__ import annotations

from dataclasses import replace
from os.path import realpath
from pathlib import Path

from ..config import RESIZED
from ..data import ImageDataset, load_dataset
from ..fields import SettingError
from .load import Loaded
from .runs import Start


def data_of(
    models: Loaded, data: str | None = None, data_dir: str | Path | None = None
) -> tuple[str, str | Path | None, int | None]:
    """The name, folder and image size, as `load_dataset` takes them, of images for models.

    By default those that the models were trained on; a run knows its folder too. Raises
    SettingError where runs of different data leave the choice open.
    """
    folder = None if data_dir is None else realpath(data_dir)
    runs = [run.read_config()[0] for run in models.runs.values()]
    runs = [settings for settings in runs if data in (None, settings.data)]
    places = {(s.data, folder or realpath(s.data_dir or "")): s for s in runs}
    if len(places) > 1:
        first, other = (f"{s.data} {s.data_dir or ''}".strip() for s in [*places.values()][:2])
        differ = "data" if len({settings.data for settings in runs}) > 1 else "data_dir"
        raise SettingError(
            (),
            f"the models were trained on different data, {first} and {other}: to say which images "
            "to take, set",
            **{differ: None},
        )
    for settings in places.values():
        return settings.data, data_dir or settings.data_dir, settings.image_size
    records = (network.record for network in models.networks.values())
    name = data or next((record.data for record in records if record is not None), "mnist")
    if name not in RESIZED:
        return name, data_dir, None
    height, width = models.image_shape[1:]
    return name, data_dir, height if height == width else None


def images_for(
    models: Loaded,
    split: str | None = None,
    data: str | None = None,
    data_dir: str | Path | None = None,
) -> ImageDataset:
    """The images of `data_of` that a split has: train, test, or all of a folder.

    By default test, or all of a folder that no model was trained on. Raises ValueError for held-out
    images that are not those of the training.
    """
    name, place, size = data_of(models, data, data_dir)
    if name != "folder":
        return load_dataset(name, split or "test", place, image_size=size)
    runs = [(run, run.read_config()[0]) for run in models.runs.values()]
    here = realpath(place or "")
    known = [run for run, s in runs if s.data == name and realpath(s.data_dir or "") == here]
    images = load_dataset(name, split or ("test" if known else "all"), place, image_size=size)
    starts = (entry for run in known for entry in run.read_log() if isinstance(entry, Start))
    held_out = next((entry.held_out_sha256 for entry in starts), None)
    digest = replace(images, labels=None).digest
    if images.split == "test" and held_out not in (None, digest):
        raise ValueError(
            f"the held-out images of {place} are not those of the training: files were renamed, "
            "added or removed, and some of these may have been trained on. To measure all images, "
            "copy them to another folder and name that"
        )
    return images
