"""Going on with a run: which settings may change, and how its schedule then goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from ..config import TrainConfig, flatten
from ..runs import RunFolder
from .checkpoint import stored_progress

# How a step runs may change at any time.
FREE = ("graph",)
# The length of a run may change as `with_length` says.
LENGTH = ("images", "evaluations", "schedule_from")


def merge_with_run(config: TrainConfig, run: RunFolder, *, force: bool = False) -> TrainConfig:
    """The settings to go on with: those of the run that is there, and a changed length.

    force: take other settings of `config` too, from here on.
    Raises FileNotFoundError without a checkpoint; ValueError, naming the setting, for one that
    differs without `force`, or that cannot change in a run.
    """
    stored, _ = run.read_config()
    if not run.can_resume():
        raise FileNotFoundError(f"{run.path} holds no checkpoint to resume from")
    if config.images is not None and config.images <= stored.schedule_from:
        raise ValueError(
            f"images must be more than {stored.schedule_from:,}, to which {run.path} was prolonged"
        )
    config = replace(config, schedule_from=stored.schedule_from)
    if config.images is None:  # a budget has become a number of images
        config = replace(
            config, images=stored.images, budget=stored.budget, evaluations=stored.evaluations
        )
    if config.precision == "auto":
        config = replace(config, precision=stored.precision)
    if config.keep_gates == "auto":
        config = replace(config, keep_gates=stored.keep_gates)
    if config.model.n_classes == "auto":
        model = replace(config.model, n_classes=stored.model.n_classes)
        config = replace(config, model=model)
    mine, theirs = flatten(asdict(config)), flatten(asdict(stored))
    different = [name for name in mine if mine[name] != theirs[name] and name not in FREE + LENGTH]
    for name in different:
        change = f"{run.path} holds another run: its {name} is {theirs[name]}, not {mine[name]}"
        if not can_change(name, theirs, mine):
            raise ValueError(
                f"{change}; a new run can begin with its weights, by --init {run.path}"
            )
        if not force:
            raise ValueError(f"{change}; --force goes on with that from here")
    return with_length(config, run, force=force)


def can_change(name: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether a setting can change in a run: its network, its average and its task stay."""
    if name == "ema":
        return bool(before[name]) == bool(after[name])
    if name.startswith("model."):
        return name == "model.dropout"
    return name not in ("role", "init", "optimizer")


def with_length(config: TrainConfig, run: RunFolder, *, force: bool) -> TrainConfig:
    """`config`, its schedule fitted to a number of images that differs from the run's.

    An exponential schedule and the constant part of a cooldown do not depend on the number, where
    Muon's angle does not either: the run goes on as one of this length. A finished run of another
    kind begins its schedule again, over the images that are added. Raises ValueError in between,
    unless `force`d.
    """
    seen, before = stored_progress(run)
    images = config.images
    if images is None or before is None or images == before:
        return config
    if images < seen:
        raise ValueError(f"images must be at least {seen:,}, which {run.path} has seen")
    angle_follows = config.optimizer == "muon" and config.kernel_rate is None
    if config.schedule == "exponential" and not angle_follows:
        return config
    latest = None
    if config.schedule == "cooldown" and not angle_follows:
        begun = config.schedule_from
        latest = begun + (1 - config.cooldown) * (min(images, before) - begun)
        if seen <= latest:
            return config
    if seen >= before:
        return replace(config, schedule_from=seen)
    if force:
        return config
    until = f", or until {latest:,.0f} images, where the learning rate falls" if latest else ""
    raise ValueError(
        f"images can be {images:,} instead of {before:,} once the run has finished{until}; "
        f"{run.path} has seen {seen:,}; --force bends its schedule here"
    )


def changes(before: TrainConfig, after: TrainConfig, seen: int) -> Iterator[str]:
    """What changes in a run after so many images, in words for its log."""
    old, new = flatten(asdict(before)), flatten(asdict(after))
    if old["schedule_from"] != new["schedule_from"]:
        yield f"prolonged from {seen:,} to {new['images']:,} images, its schedule begun again"
    for name in new:
        if old[name] != new[name] and name not in FREE + LENGTH:
            yield f"{name} {old[name]} up to {seen:,} images, {new[name]} from then on"
