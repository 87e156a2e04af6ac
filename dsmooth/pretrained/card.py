"""The model card of saved weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..config import OWN, Role
from ..data import DATASETS
from ..fields import Json
from ..nn import PixelCNNpp
from ..tables import COMPARABLE, bits_table, plain_text, shown
from .folders import SavedSettings

CARD_FILE = "README.md"
# A card with this line is overwritten with the weights; one without it was written by a person.
MARK = "<!-- Written by dsmooth. Without this line the file is yours, and stays. -->"


def render_card(
    settings: SavedSettings,
    networks: Mapping[Role, PixelCNNpp],
    digests: Mapping[Role, str],
    name: str,
    scores: Json | None,
    license: str | None,
) -> str:
    """The model card of saved weights, Markdown with the Hub's front matter.

    digests: of the weights. Those that differ from the record's were changed after the training.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # JSON is YAML, and quotes what would mean more than itself.
    pages.filters |= {"json": json.dumps, "plain": plain_text, "shown": shown}
    pages.globals |= {"MARK": MARK, "COMPARABLE": COMPARABLE, "DATASETS": DATASETS, "OWN": OWN}

    def bits(rows: Sequence[Json]) -> str:
        plain = [{**row, "name": plain_text(row["name"])} for row in rows]
        key = "pair" if settings.smoothing else "plain"
        return bits_table({key: {"conventions": plain}}).markdown()

    counts = {role: sum(p.numel() for p in one.parameters()) for role, one in networks.items()}
    changed = [
        role
        for role, record in settings.origin.items()
        if record.weights_sha256 not in (None, digests[role])
    ]
    numbers = {"scores": scores, "bits": bits, "parameters": counts, "changed": changed}
    try:
        return pages.get_template("model_card.md").render(
            asdict(settings) | numbers, name=name, license=license
        )
    except (AttributeError, KeyError, TypeError, ValueError, TemplateError) as error:
        if scores is None:
            raise
        raise ValueError(
            f"scores must be what `dsmooth evaluate bpd` writes of these weights: {error!r}"
        ) from None
