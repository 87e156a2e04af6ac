"""The log of a training run: one JSON object a line, each of a type of its own here."""

from __future__ import annotations

import json

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
    """An evaluation of held-out images."""

    bits_per_dim: float


class Interrupted(LogEntry, frozen=True):
    """A signal stopped the run."""


class End(LogEntry, frozen=True):
    """The run has finished."""


AnyEntry = Start | Step | HeldOut | Interrupted | End


def read_entry(line: bytes) -> LogEntry | None:
    """Parse a line; None if it is not an entry, as some of earlier versions are not."""
    try:
        return msgspec.convert(json.loads(line), AnyEntry)
    except (ValueError, RecursionError):
        return None


def entry_line(entry: LogEntry) -> str:
    """An entry as a line."""
    return json.dumps(msgspec.to_builtins(entry)) + "\n"
