"""The log of a training run: what happened, one entry a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec


class LogEntry(msgspec.Struct, frozen=True, tag_field="event", tag=str.lower, omit_defaults=True):
    """An event after `images` training images, `seconds` after the call that trains began."""

    images: int
    seconds: float


class Start(LogEntry, frozen=True):
    """A call begins. total: images of the whole run; loss: its meaning.

    held_out_sha256: digest of the held-out images without labels, None in older logs.
    """

    total: int
    loss: str
    held_out_sha256: str | None = None


class Step(LogEntry, frozen=True):
    """Updates since the last such entry: mean loss; norm and rate of the last one; speed."""

    bits_per_dim: float
    images_per_second: float
    gradient_norm: float | None = None
    learning_rate: float | None = None


class HeldOut(LogEntry, frozen=True, tag="evaluation"):
    """An evaluation of held-out images. components: their effective number in a pixel's mixture."""

    bits_per_dim: float
    components: float | None = None


class Interrupted(LogEntry, frozen=True):
    """A signal stopped the run."""


class End(LogEntry, frozen=True):
    """The run has finished."""


AnyEntry = Start | Step | HeldOut | Interrupted | End


def entry_line(entry: LogEntry) -> str:
    """An entry as a line."""
    return json.dumps(msgspec.to_builtins(entry)) + "\n"


def read_log(path: Path) -> list[LogEntry]:
    """The entries of a log, in order, without lines that were cut by a crash or damaged."""
    entries: list[LogEntry] = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(ValueError, RecursionError):
            entries.append(msgspec.convert(json.loads(line), AnyEntry))
    return entries


def history(entries: Iterable[LogEntry]) -> list[LogEntry]:
    """The entries without those that a later start took back, which are after its checkpoint."""
    kept: list[LogEntry] = []
    for entry in entries:
        if isinstance(entry, Start):
            kept = [earlier for earlier in kept if earlier.images <= entry.images]
        kept.append(entry)
    return kept


def seconds_of(entries: Iterable[LogEntry]) -> float:
    """Seconds of training, over all starts, each of which counts its own from 0."""
    total = last = 0.0
    for entry in entries:
        if isinstance(entry, Start):
            total, last = total + last, 0.0
        last = max(last, entry.seconds)
    return round(total + last, 1)
