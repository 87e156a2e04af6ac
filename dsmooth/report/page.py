"""report.html: one file, with pictures inline, without script or network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..files import write_atomically
from ..text import escape_control, render
from .contents import Report
from .plots import Curve
from .sections import data_name, sections
from .words import bound_sentence

TEMPLATE = Path(__file__).with_name("page.html")


def write_report(
    path: Path,
    report: Report,
    curves: Mapping[str, Curve],
    pictures: Mapping[str, Tensor],
    commands: Sequence[str] = (),
) -> None:
    """Write the page of `report` to `path`.

    curves: of each role's run. pictures: (N, C, H, W) images by name. commands: for longer
    training.
    """
    settings = report.models["noisy"].settings
    noise = {"gaussian": "Gaussian", "laplace": "Laplace"}[str(settings["smoothing"])]
    text = render(
        TEMPLATE,
        title=f"Distribution smoothing on {data_name(report)}",
        lead=bound_sentence(report),
        noise=f"{noise} noise of scale {settings['scale']:g}",
        sections=sections(report, curves, pictures, commands),
        version=report.machine.dsmooth,
    )
    # p(x | x~) must not break at the bar: after one, only a word joiner forbids it.
    text = text.replace(" | ", "\u00a0|\u2060\u00a0")
    text = re.sub(r"(?<![\w-])-(?=\d)", "\u2212", text)  # the minus sign of a number
    write_atomically(path, escape_control(text).encode())
