"""The model card of saved weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from ..config import OWN, Role
from ..data import DATASETS
from ..nn import PixelCNNpp
from ..results import COMPARABLE, BitsResult, bits_table
from ..text import plain_text, render
from .runs import WeightsSettings

CARD_FILE = "README.md"
# A card with this line is overwritten with the weights; one without it was written by a person.
MARK = "<!-- Written by dsmooth. Without this line the file is yours, and stays. -->"


def render_card(
    settings: WeightsSettings,
    networks: Mapping[Role, PixelCNNpp],
    name: str,
    scores: BitsResult | None,
    license: str | None,
) -> str:
    """The model card of saved weights, Markdown with the Hub's front matter.

    scores: of these weights only.
    """
    counts = {role: sum(p.numel() for p in model.parameters()) for role, model in networks.items()}
    table = ""
    if scores is not None:  # their names are those of a file
        models = {
            model: replace(
                bits,
                conventions=tuple(
                    replace(row, name=plain_text(row.name)) for row in bits.conventions
                ),
            )
            for model, bits in scores.models.items()
        }
        table = bits_table(replace(scores, models=models)).markdown()
    return render(
        Path(__file__).with_name("model_card.md"),
        **asdict(settings),
        name=name,
        license=license,
        parameters=counts,
        scores=scores,
        table=table,
        MARK=MARK,
        COMPARABLE=COMPARABLE,
        DATASETS=DATASETS,
        OWN=OWN,
    )
