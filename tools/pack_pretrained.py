"""Make packaged models of finished runs: float16 weights, thinned logs, no paths.

    python tools/pack_pretrained.py RUNS dsmooth/pretrained/mnist [BEFORE]

RUNS is a folder with the runs `noisy` and `denoiser` in it, and `plain` if it is to be packed.
BEFORE is a copy of the packaged models that some began with (`dsmooth train ROLE --init mnist`):
their logs and settings then are those of one run, which was prolonged.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsmooth.config import TrainConfig
from dsmooth.files import read_tensors, write_atomically, write_tensors
from dsmooth.runs import RunFolder
from dsmooth.training.checkpoint import differences
from dsmooth.training.step import total_images

ROLES = ("noisy", "denoiser", "plain")
STEPS = 300  # entries of a run's training steps that are kept, evenly spread
UNTOLD = ("kernel_rate", "cooldown")  # they belong to Muon, or have no effect


def pack(source: RunFolder, target: RunFolder, before: RunFolder | None = None) -> None:
    """Write what a reader of the run needs.

    Raises ValueError for a run that is not finished, or began with weights that are not named.
    """
    if not source.is_finished():
        raise ValueError(f"{source.path} is not the folder of a finished run")
    config, size = source.read_config()
    config = replace(config, data_dir=None, download=False)
    if config.init is not None and before is None:
        raise ValueError(f"{source.path} began with the weights {config.init}: name BEFORE")
    entries = source.history()
    steps = [entry for entry in entries if entry["event"] == "step"]
    kept = steps[:: max(1, len(steps) // STEPS)]
    entries = [entry for entry in entries if entry["event"] != "step" or entry in kept]
    if config.init is not None and before is not None:
        config, entries = prolonged(before, config, entries)
    target.path.mkdir(parents=True, exist_ok=True)
    target.write_config(config, size)
    tensors, metadata = read_tensors(source.weights)
    write_tensors(target.weights, {name: t.half() for name, t in tensors.items()}, metadata)
    write_atomically(target.log, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def prolonged(
    before: RunFolder, config: TrainConfig, entries: Sequence[Mapping[str, Any]]
) -> tuple[TrainConfig, list[dict[str, Any]]]:
    """Settings and log of a run that began with the weights of `before`, after its own."""
    old = before.read_config()[0]
    seen = total_images(old)
    new = replace(config, init=None, images=seen + total_images(config), schedule_from=seen)
    changed = differences(old, new).items()
    settings = [f"{name} {value}" for name, (value, _) in changed if name not in UNTOLD]
    text = f"up to {seen:,} images {', '.join(settings)}; then the optimizer began again"
    note = {"event": "note", "images": seen, "seconds": 0.0, "text": text}
    log = [entry for entry in before.history() if entry["event"] != "end"]
    for entry in entries:
        shifted = {**entry, "images": seen + entry["images"]}
        if entry["event"] == "start":
            shifted["total"] = new.images
        elif entry["event"] == "note":
            shifted["text"] = f"{entry['text']}, counted from {seen:,} on"
        log += [shifted, note] if entry is entries[0] else [shifted]
    return new, log


def main() -> None:
    source, target, *before = map(Path, sys.argv[1:])
    for role in ROLES if (source / "plain").exists() else ROLES[:2]:
        began = RunFolder(before[0] / role) if before else None
        pack(RunFolder(source / role), RunFolder(target / role), began)


if __name__ == "__main__":
    main()
