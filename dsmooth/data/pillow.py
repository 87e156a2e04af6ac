"""Whether a picture of Pillow's can be used, and in which colours: for files and for Python."""

from __future__ import annotations

import re
from typing import Any

GREY_MODES = ("1", "L", "LA")
# The lines that convert a picture in memory, for the errors about one.
TO_8_BITS = 'Image.fromarray((numpy.asarray(image) // 257).astype("uint8"))'
FLATTENED = (
    'Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))'
    '.convert("RGB")'
)


def obstacle(image: Any, *, in_memory: bool = False) -> str | None:
    """Why a picture cannot be used; None for one opaque picture of 8 bits a channel.

    in_memory: add the line that converts a picture in Python.
    """
    # Phones put a second, smaller picture after a JPEG's own: Pillow calls that MPO.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return "must hold one image, got several (an animation or pages)"
    # Pillow decodes RGB of 16 bits, "RGB;16B", or of a PPM's 65535 shades, to 8 bits.
    arguments = [tile.args or () for tile in getattr(image, "tile", ())]
    deep = any(re.search(";16[BLN]", str(args)) for args in arguments)
    if getattr(image, "format", None) == "PPM":
        deep |= any(type(a) is int and a > 255 for args in arguments for a in args)
    if deep or image.mode[0] in "IF":
        hint = f"; if its values go to 65535, this converts it: {TO_8_BITS}" if in_memory else ""
        bits = " of 16 bits" * deep
        return f"must have 8 bits a channel, got Pillow's mode {image.mode}{bits}{hint}"
    # How a transparent pixel looks depends on a background.
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if alpha is not None and alpha.getextrema() != (255, 255):
        hint = f"this flattens it: {FLATTENED}" if in_memory else "flatten it first"
        return f"must be opaque, got transparent pixels; {hint}"
    return None


def channels_of(image: Any) -> int:
    """1 for a grey picture, 3 for one that is RGB or becomes it."""
    return 1 if image.mode in GREY_MODES else 3


def upright(image: Any, channels: int) -> Any:
    """The picture turned as its EXIF data says, in mode L or RGB."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
