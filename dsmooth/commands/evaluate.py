"""`dsmooth evaluate ...`: a measure's numbers onto the screen and into a record."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

from ..files import json_text, printable, write_json
from ..machine import use_threads
from ..progress import silence
from ..work import record_of
from .evaluate_bits import evaluate_bits
from .evaluate_frechet import evaluate_frechet
from .options import BitsOptions, FrechetOptions
from .shared import check_output

STDOUT = Path("-")


def evaluate(options: BitsOptions | FrechetOptions) -> None:
    """Run a command. Raises ValueError, OSError or ImportError for what does not fit."""
    use_threads(options.execution.threads)
    screen, to_screen = sys.stdout, options.out == STDOUT
    if not to_screen:
        check_output(options.out, ".json")
    with silence() if to_screen else nullcontext():
        if isinstance(options, BitsOptions):
            record = record_of(*evaluate_bits(options))
        else:
            record = record_of(*evaluate_frechet(options))
    if to_screen:
        print(json_text(record), end="", file=screen)
    else:
        write_json(options.out, record)
        print(f"wrote {printable(options.out)}")
