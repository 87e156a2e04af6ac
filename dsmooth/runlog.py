"""The log of a training run: one JSON object a line, each of a type of its own here."""

from __future__ import annotations

import json

import msgspec

# Of a change: not a setting, but the training images themselves.
DATASET = "dataset"


class LogEntry(msgspec.Struct, frozen=True, tag_field="event", tag=str.lower, omit_defaults=True):
    """An event after `images` training images, `seconds` after the call that trains began."""

    images: int
    seconds: float

    def sentence(self) -> str | None:
        """What changed during the run, in words; None for the other events."""
        return None


class Start(LogEntry, frozen=True):
    """A call begins. total: images of the whole run; loss: its meaning."""

    total: int
    loss: str


class Step(LogEntry, frozen=True):
    """Updates since the last such entry: mean loss; norm and rate of the last one; speed."""

    bits_per_dim: float
    images_per_second: float
    gradient_norm: float | None = None
    learning_rate: float | None = None


class HeldOut(LogEntry, frozen=True, tag="evaluation"):
    """An evaluation of held-out images."""

    bits_per_dim: float


class Restart(LogEntry, frozen=True):
    """The schedule or the optimiser restarts; before, after: images of the whole run."""

    what: str
    before: int
    after: int
    text: str | None = None  # in place of the sentence

    def sentence(self) -> str:
        lengths = f"{self.before:,} to {self.after:,}"
        return self.text or f"extended from {lengths} images, its {self.what} restarted"


class Change(LogEntry, frozen=True):
    """A setting has another value from here on, or the images are others."""

    setting: str
    before: object = None
    after: object = None

    def sentence(self) -> str:
        seen = f"{self.images:,} images"
        if self.setting == DATASET:
            return f"other images, another order or another transform, from {seen} on"
        return f"{self.setting} {self.before} up to {seen}, {self.after} from then on"


class Unchecked(LogEntry, frozen=True):
    """An argument that is not compared with the one of before."""

    what: str

    def sentence(self) -> str:
        return f"the {self.what} is assumed to be the one of before: nothing compares it"


class Note(LogEntry, frozen=True):
    """A sentence of an older version."""

    text: str

    def sentence(self) -> str:
        return self.text


class Interrupted(LogEntry, frozen=True):
    """A signal stopped the run."""


class End(LogEntry, frozen=True):
    """The run has finished."""


AnyEntry = Start | Step | HeldOut | Restart | Change | Unchecked | Note | Interrupted | End


def read_entry(line: bytes) -> LogEntry | None:
    """Parse a line; None if it is not an entry."""
    try:
        return msgspec.convert(json.loads(line), AnyEntry)
    except (ValueError, RecursionError):
        return None


def entry_line(entry: LogEntry) -> str:
    """An entry as a line."""
    return json.dumps(msgspec.to_builtins(entry)) + "\n"
