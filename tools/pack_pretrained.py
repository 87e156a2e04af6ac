"""Make packaged models of three finished runs: float16 weights, thinned logs, no paths.

    python tools/pack_pretrained.py RUNS dsmooth/pretrained/mnist

RUNS is a folder with the runs `noisy`, `denoiser` and `plain` in it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from dsmooth.files import read_tensors, write_atomically, write_tensors
from dsmooth.runs import RunFolder

ROLES = ("noisy", "denoiser", "plain")
STEPS = 300  # entries of training steps that are kept, evenly spread


def pack(source: RunFolder, target: RunFolder) -> None:
    """Write what a reader of the run needs. Raises ValueError for a run that is not finished."""
    if not source.is_finished():
        raise ValueError(f"{source.path} is not the folder of a finished run")
    target.path.mkdir(parents=True, exist_ok=True)
    config, size = source.read_config()
    target.write_config(replace(config, data_dir=None, download=False), size)
    tensors, metadata = read_tensors(source.weights)
    write_tensors(target.weights, {name: t.half() for name, t in tensors.items()}, metadata)
    entries = source.history()
    steps = [i for i, entry in enumerate(entries) if entry["event"] == "step"]
    kept = set(steps[:: max(1, len(steps) // STEPS)])
    lines = [
        json.dumps(entry)
        for i, entry in enumerate(entries)
        if entry["event"] != "step" or i in kept
    ]
    write_atomically(target.log, ("\n".join(lines) + "\n").encode())


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    for role in ROLES:
        pack(RunFolder(source / role), RunFolder(target / role))


if __name__ == "__main__":
    main()
