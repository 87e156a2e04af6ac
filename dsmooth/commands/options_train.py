"""The options of `dsmooth train`, most of which are fields of its settings; without torch."""

from __future__ import annotations

import ast
import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast, get_args, get_type_hints

from tyro.conf import OmitArgPrefixes, Positional, arg

from ..config import FILE_ONLY, Classes, ModelConfig, Role, TrainConfig
from ..presets import PRESETS
from .options import DEFAULT_PRESET, PRESET_HELP, Flag, OnDevice

RGB_PRESET = "photos"
TRAIN_PRESET_HELP = (
    f"{PRESET_HELP}. RGB images are trained by {RGB_PRESET} unless a preset is given; the channels "
    "and classes of a network are those of the images"
)


def _options(kind: type[ModelConfig | TrainConfig]) -> Any:
    """A dictionary type of the options that a command line gives: fields of a dataclass.

    tyro leaves out an option that is not given, and shows the docstring under a field as its help.
    """
    sources = (inspect.getsource(base) for base in reversed(kind.__mro__[:-1]))
    classes = (cast(ast.ClassDef, ast.parse(source).body[0]) for source in sources)
    lines = [line for body in classes for line in body.body]
    docs = {
        ast.unparse(line.target): " ".join(ast.literal_eval(text.value).split())
        for line, text in pairwise(lines)
        if isinstance(line, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    starts = [getattr(*pair) for pair in product(PRESETS.values(), get_args(Role))]
    configs = [start.model if kind is ModelConfig else start for start in starts]
    options = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if name in FILE_ONLY or hint in (ModelConfig, Classes | None):
            continue
        values = {getattr(config, name) for config in configs}
        default = "by preset" if len(values) > 1 else f"default: {values.pop()}"
        options[name] = Annotated[hint, arg(help=docs[name], help_behavior_hint=f"({default})")]
    return cast(Any, TypedDict)(kind.__name__, options, total=False)


_TRAIN, _MODEL = _options(TrainConfig), _options(ModelConfig)


@dataclass(frozen=True)
class Train:
    """Train one model: noisy p(x~), denoiser p(x | x~), or plain p(x); or a pair.

    A pair is a noisy model and its denoiser, trained one after the other into the folders noisy and
    denoiser of --out, each for half of --budget. FOLDER means --data folder --data-dir FOLDER.
    Writes config.json, log.jsonl, checkpoint.safetensors, model.safetensors and samples-*.png into
    the folder --out. Ctrl-C saves and exits; --resume continues, bit for bit as without the stop.
    Under torchrun several processes (and GPUs) train together.
    """

    role: Positional[Literal[Role, "pair"]]
    """Which model."""
    settings: OmitArgPrefixes[Annotated[Mapping[str, Any], arg(constructor=_TRAIN), _TRAIN]]
    """The settings that determine the weights, and how they are computed."""
    model: OmitArgPrefixes[Annotated[Mapping[str, Any], arg(constructor=_MODEL), _MODEL]]
    """The network."""
    folder: Annotated[Positional[Path | None], arg(metavar="FOLDER")] = None
    """Folder of images to train on."""
    preset: Annotated[
        str | None,
        arg(
            help=TRAIN_PRESET_HELP,
            metavar="|".join(PRESETS),
            help_behavior_hint=f"(default: {DEFAULT_PRESET})",
        ),
    ] = None
    out: Path | None = None
    """Folder of the run; by default runs/ROLE, of a pair runs/pair."""
    resume: Flag = False
    """Continue the run in --out, with its settings as the defaults, or start it if there is none.
    More --images extend a finished run: its schedule restarts over the added images."""
    force: Flag = False
    """With --resume: take settings that differ from the run's, from here on."""
    tensorboard: Flag = False
    """Also write event files of the evaluations (needs the extra "tensorboard")."""
    config: Path | None = None
    """JSON file with the settings to start from, instead of a preset: the config.json of a run, or
    what --print-config prints. It may have settings that are not options of the command."""
    print_config: Flag = False
    """Print the settings for grey images as JSON and stop; no image is read."""
    execution: OmitArgPrefixes[OnDevice] = field(default_factory=OnDevice)
    # Before torch is imported, which takes seconds of a budget.
    started: float = field(init=False, compare=False, default_factory=lambda: time.monotonic())
