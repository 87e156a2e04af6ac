"""The model card of a saved pair, as Markdown with the Hub's front matter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import OWN, Role
from ..data import DATASETS
from ..nn import PixelCNNpp
from ..tables import COMPARABLE, Table, bits_table, plain_text

# A card with this line is written anew with the pair; one without is a person's.
MARK = "<!-- Written by dsmooth. Without this line the file is yours, and stays. -->"
NAMES = {"noisy": "noisy model, p(x~)", "denoiser": "denoiser, p(x given x~)"}


def render_card(
    config: Mapping[str, Any],
    networks: Mapping[Role, PixelCNNpp],
    name: str,
    scores: Mapping[str, Any] | None,
    license: str | None,
) -> str:
    """README.md of a saved pair, whose config.json is `config`."""
    origin = config["origin"]
    sections = [
        _front_matter(sorted({each["data"] for each in origin.values()}), license),
        MARK,
        _head(config, networks["noisy"].config.image_channels, name),
        "## Networks\n\n" + _networks(networks),
        "## Training\n\n" + _training(origin),
        "## Bits per dimension\n\n" + _bits(scores, origin),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(data: Sequence[str], license: str | None) -> str:
    # JSON is YAML, and quotes what would mean more than itself.
    lines = [f"license: {json.dumps(license)}"] if license else []
    lines += ["library_name: dsmooth", "pipeline_tag: unconditional-image-generation", "tags:"]
    lines += [f"- {tag}" for tag in ("pixelcnn", "autoregressive", "distribution-smoothing")]
    known = [name for name in data if name not in ("folder", OWN)]
    quoted = [name if name in DATASETS else json.dumps(name) for name in known]
    lines += ["datasets:", *(f"- {name}" for name in quoted)] if known else []
    return "\n".join(["---", *lines, "---"])


def _head(config: Mapping[str, Any], channels: int, name: str) -> str:
    height, width = config["image_size"]
    kind, scale = (config["smoothing"][key] for key in ("kind", "scale"))
    colours = "grey" if channels == 1 else "RGB"
    return f"""# A smoothed pair for images of {height} x {width}, {colours}

The noisy model learned images with {kind} noise of scale {scale}, p(x~).
The denoiser learned to take the noise away, p(x given x~). An image is drawn in two steps. The
method is that of Meng, Song, Song, Zhao and Ermon (ICLR 2021).

```python
import dsmooth

pair = dsmooth.SmoothedPair.from_pretrained({json.dumps(name)})
x = pair.sample(64, seed=0)  # (64, {channels}, {height}, {width}) in [-1, 1]
```"""


def _networks(networks: Mapping[Role, PixelCNNpp]) -> str:
    rows = []
    for role, network in networks.items():
        c = network.config
        sizes = sum(p.numel() for p in network.parameters()), c.n_filters, c.n_resnet, c.n_mix
        rows.append([NAMES[role], *(f"{n:,}" for n in sizes), c.conditioning, c.likelihood])
    head = ["", "parameters", "F", "R", "K", "conditioning", "likelihood"]
    return Table(head, rows).markdown()


def _training(origin: Mapping[str, Mapping[str, Any]]) -> str:
    if not origin:
        return "Not recorded: the pair was not made of run folders."
    rows = []
    for role, run in origin.items():
        images = "–" if run["images"] is None else f"{run['images']:,}"
        hours = "–" if run["seconds"] is None else f"{run['seconds'] / 3600:.2f}"
        rows.append([NAMES[role], plain_text(run["data"]), images, hours, str(run["seed"])])
    # A line that begins with backquotes would end the block.
    commands = "\n".join(" ".join(run["command"].split()).lstrip("`~") for run in origin.values())
    table = Table(["", "data", "images seen", "hours", "seed"], rows).markdown()
    notes = [
        f"\n\n{NAMES[role]}: {plain_text(text)}."
        for role, run in origin.items()
        for text in run["notes"]
    ]
    return f"{table}\n\n```\n{commands}\n```" + "".join(notes)


def _bits(scores: Mapping[str, Any] | None, origin: Mapping[str, Mapping[str, Any]]) -> str:
    if scores is not None:
        return _scored(scores)
    rows = [
        [NAMES[role], plain_text(run["loss"] or "–"), f"{run['bits_per_dim']:.4f}"]
        for role, run in origin.items()
        if run["bits_per_dim"] is not None
    ]
    if not rows:
        return "Not measured. `dsmooth evaluate bpd` measures them in every convention."
    text = "Of held-out images, at the end of each training; by themselves neither is the pair's."
    return f"{text}\n\n{Table(['', 'loss', 'bits/dim'], rows).markdown()}"


def _scored(scores: Mapping[str, Any]) -> str:
    try:
        data, pair = scores["data"], scores["pair"]
        rows = [{**row, "name": plain_text(row["name"])} for row in pair["conventions"]]
        table = bits_table({"pair": rows}).markdown()
        text = (
            f"{data['n_images']:,} images of {plain_text(data['name'])} "
            f"({plain_text(data['split'])}), {pair['n_noise']:d} draws of noise per image, "
            f"seed {scores['seed']:d}:"
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"scores must be what `dsmooth evaluate bpd` writes of a pair: {error!r}"
        ) from None
    return f"{text}\n\n{table}\n\n\\{COMPARABLE}"
