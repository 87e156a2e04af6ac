"""When a run looks up from its steps, at its losses, the clock and signals."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..config import TrainConfig
from ..distributed import agree, rank_and_size
from .log import RECORD_SECONDS
from .readings import READ_STEPS


class Watch:
    """About once a second, at the latest after READ_STEPS steps; several processes at one step.

    stop: returns the number of a signal that asks to end early, or None.
    """

    def __init__(self, config: TrainConfig, steps: int, stop: Callable[[], int | None]) -> None:
        self.stop = stop
        self.checkpoint_seconds = 60 * config.checkpoint_minutes
        self.rank, self.size = rank_and_size()
        self.looked = self.saved = time.monotonic()
        self.steps, self.next = steps, steps + 1

    def is_due(self, steps: int) -> bool:
        """Whether to look after so many steps. Processes have agreed on that at the last look."""
        if self.size > 1:
            return steps >= self.next
        now = time.monotonic()
        late = now - self.looked > RECORD_SECONDS or now - self.saved > self.checkpoint_seconds
        return late or steps - self.steps >= READ_STEPS or self.stop() is not None

    def look(self, steps: int) -> tuple[int | None, bool]:
        """The signal that some process has got, and whether rank 0 finds a checkpoint due."""
        now = time.monotonic()
        due = now - self.saved > self.checkpoint_seconds
        seconds = min(RECORD_SECONDS, self.checkpoint_seconds)
        made = seconds * (steps - self.steps) / max(now - self.looked, 1e-9)
        pace = max(1, min(READ_STEPS, int(made)))
        mine = (int(due), pace) if self.rank == 0 else (0, 0)
        signal, due_there, pace = agree(self.stop() or 0, *mine)
        self.looked, self.steps, self.next = now, steps, steps + pace
        return signal or None, bool(due_there)

    def has_saved(self) -> None:
        """A checkpoint was written."""
        self.saved = time.monotonic()
