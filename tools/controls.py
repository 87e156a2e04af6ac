"""Measure the control probes of `dsmooth reproduce`: python tools/controls.py

Probes of the pixels and of the untrained network on the embedded images, in float32. They are
constants of the packaged models and are written to dsmooth/pretrained/mnist/controls.json.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from dsmooth.commands.options import Reproduce
from dsmooth.commands.reproduce import load_requested_models, make_stages
from dsmooth.evaluate.probe import PIXELS
from dsmooth.files import write_json
from dsmooth.record import record_of
from dsmooth.reproduce import CONTROLS


def measure() -> dict[str, object]:
    """The record of both controls."""
    options = Reproduce()
    probing = make_stages(options, *load_requested_models(options, torch.device("cpu"))).probing()
    subjects = {name: probing.subjects[name] for name in (PIXELS, "untrained-noisy")}
    with tempfile.TemporaryDirectory() as folder:
        own = replace(probing, subjects=subjects, folder=Path(folder), precision="float32")
        scores = own.result(Path(folder, "probes.json")).accuracy
    return dict(record_of(probing.controls_request(), None, scores))


if __name__ == "__main__":
    write_json(CONTROLS, measure())
