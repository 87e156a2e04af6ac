"""`dsmooth complete`: images of which a part is given, and draws of the rest."""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor

from ..data import to_float
from ..data.dataset import as_grey
from ..data.pictures import is_diverged
from ..data.sources import read_images, read_mask
from ..fields import SettingError
from ..files import printable
from ..pretrained import DEFAULT, Loaded, find, images_for, load, runs_in
from ..progress import progress
from ..sampling.output import draw_all, write_completions
from ..sampling.resolve import drawing_device, keep_top, resolve
from ..work import once
from .options import Complete
from .sample import check_outputs, choices_of, say_drawn


def complete(options: Complete) -> None:
    """Run `dsmooth complete`. Raises ValueError or FileNotFoundError before any work."""
    if options.mask is not None and options.keep_top is not None:
        words = "both say which pixels are given: leave one out"
        raise SettingError(("keep_top", "mask"), words)
    check_outputs(options.out, folder=False)
    choices = choices_of(options)
    names, source = [*options.models], options.images
    if source is None and names and names[-1].exists() and not runs_in(find(names[-1])):
        source = names.pop()
    device = drawing_device(options.execution.device)
    models = load(*(names or [Path(DEFAULT)]), device=device)
    if [*models.networks] == ["noisy"]:
        raise ValueError(f"{names[0]} is a noisy model: name the pair that it is of")
    x, labels = read_originals(source, options.count, models)
    if options.mask is None:
        fraction = 0.5 if options.keep_top is None else options.keep_top
        mask = keep_top(fraction, models.image_shape[1:])
    else:
        mask = read_mask(options.mask)
    if choices["label"] == "own" and labels is not None:
        choices["label"] = labels
    choices |= {"x": x.to(device), "mask": mask.to(device), "draws": options.draws}
    whole = resolve(models.model, **choices)
    started = time.monotonic()
    with progress("completing", len(whole.indices)):
        completed = draw_all(whole)
    for path in options.out:
        once(write_completions, path, x, mask, completed, whole.seed)
        print(f"wrote {printable(path)}")
    say_drawn(len(completed), int(is_diverged(completed).sum()), started)


def read_originals(source: Path | None, count: int, models: Loaded) -> tuple[Tensor, Tensor | None]:
    """The originals (N, C, H, W) in [-1, 1], and their labels (N,) of the models' classes.

    Raises ValueError for images of another shape.
    """
    shape, labels = models.image_shape, None
    if source is None:
        try:
            (data,) = images_for(models, ("test",))
        except (ValueError, FileNotFoundError):
            words = "the models do not say where their images are: to name some, set"
            raise SettingError((), words, images=None) from None
        images, words = data.images[:count], data.source
        if data.has_classes(models.classes):
            labels = data.first(count).labels_for(models.classes)
    else:
        originals = read_images(source, count)
        if originals.diverged:
            words = "so that rows keep their numbers"
            raise ValueError(f"{source} holds images that are not finite: leave them out, {words}")
        images, words = originals.images, originals.source
    if shape[0] == 1:
        images = as_grey(images)
    if tuple(images.shape[1:]) != shape or len(images) == 0:
        found = f"{len(images)} of {tuple(images.shape[1:])} from {words}"
        raise ValueError(f"the models draw images of (C, H, W) = {shape}, got {found}")
    return to_float(images), labels
