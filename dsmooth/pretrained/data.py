"""The images that models are for: those of their trainings, or others that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os.path import realpath
from pathlib import Path

from ..config import RESIZED
from ..data import ImageDataset, load_splits
from ..fields import SettingError
from .load import Loaded
from .log import Start
from .runs import RunFolder


def data_of(
    models: Loaded, data: str | None = None, data_dir: str | Path | None = None
) -> tuple[str, str | Path | None, int | None, list[RunFolder]]:
    """The name, folder and image size, as `load_dataset` takes them, of images for models; and the
    runs that were trained on them.

    By default those that the models were trained on; a run knows its folder too. Raises
    SettingError where runs of different data leave the choice open.
    """
    trained = [(run, run.read_config()[0]) for run in models.runs.values()]
    trained = [(run, settings) for run, settings in trained if data in (None, settings.data)]
    places = {(s.data, realpath(data_dir or s.data_dir or "")): s for _, s in trained}
    if len(places) > 1:
        first, other = (f"{s.data} {s.data_dir or ''}".strip() for s in [*places.values()][:2])
        differ = "data" if len({name for name, _ in places}) > 1 else "data_dir"
        raise SettingError(
            (),
            f"the models were trained on different data, {first} and {other}: to say which images "
            "to take, set",
            **{differ: None},
        )
    for (name, place), settings in places.items():
        runs = [run for run, s in trained if realpath(s.data_dir or "") == place]
        return name, data_dir or settings.data_dir, settings.image_size, runs
    records = (network.record for network in models.networks.values())
    name = data or next((record.data for record in records if record is not None), "mnist")
    if name not in RESIZED:
        return name, data_dir, None, []
    height, width = models.image_shape[1:]
    return name, data_dir, height if height == width else None, []


def images_for(
    models: Loaded,
    splits: Sequence[str] = (),
    data: str | None = None,
    data_dir: str | Path | None = None,
) -> list[ImageDataset]:
    """The images of `data_of` that splits have: train, test, or all of a folder.

    By default test, or all of a folder that no model was trained on. Raises ValueError for held-out
    images that are not those of the training.
    """
    name, place, size, runs = data_of(models, data, data_dir)
    splits = splits or ("all" if name == "folder" and not runs else "test",)
    datasets = load_splits(name, splits, place, False, size)
    if name == "folder" and splits[-1] == "test":
        starts = (entry for run in runs for entry in run.read_log() if isinstance(entry, Start))
        held_out = next((entry.held_out_sha256 for entry in starts), None)
        if held_out not in (None, replace(datasets[-1], labels=None).digest):
            raise ValueError(
                f"the held-out images of {place} are not those of the training: files were added, "
                "removed or changed, or an earlier version split them by their names, and some of "
                "these may have been trained on. To measure all images, copy them to another "
                "folder and name that"
            )
    return datasets
