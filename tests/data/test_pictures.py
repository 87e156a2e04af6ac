"""Pictures of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dsmooth
from tests.helpers.data_makers import refuses


@pytest.mark.quick
def test_show_gives_a_picture_that_displays_itself() -> None:
    x = torch.linspace(-1, 1, 5 * 3 * 8 * 12).view(5, 3, 8, 12)
    x[4] = torch.inf  # diverged: grey
    picture = dsmooth.show(x, columns=2, zoom=1)
    assert picture.size == (2 * 13 + 1, 3 * 9 + 1)
    assert picture._repr_png_().startswith(b"\x89PNG")
    pixels = np.asarray(picture)
    assert pixels.shape == (28, 27, 3)
    expected = ((x[3] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels[10:18, 14:26], expected)
    assert (pixels[19:27, 1:13] == 128).all()
    assert dsmooth.show(x[:1, :1]).mode == "L"
    for images in (bytes_ := dsmooth.to_bytes(x[:4]), bytes_.numpy()):
        assert dsmooth.show(images).tobytes() == dsmooth.show(x[:4]).tobytes()
    with pytest.raises(TypeError, match=r"x must be uint8 or floating point, got torch\.int32"):
        dsmooth.show(bytes_.int())
    for name in ("columns", "zoom"):
        refuses(f"`{name}` must be at least 1, got 0", dsmooth.show, x, **{name: 0})
    for image in (x[0], x[0, 0], x[:1, :1].numpy()):
        assert dsmooth.show(image).size == (2 * 12 + 4, 2 * 8 + 4)
    assert dsmooth.show([*x[:3, 0]]).tobytes() == dsmooth.show(x[:3, :1]).tobytes()
    for wrong in (x[:0], x[:, :2], x[:, 0]):
        refuses("x must have shape", dsmooth.show, wrong)
    refuses(r"show\(2 \* x - 1\) shows images in \[0, 1\]", dsmooth.show, (x[:4] + 1) / 2)
    refuses(r"show\(x\.byte\(\)\) shows images in \[0, 255\]", dsmooth.show, (x[:4] + 1) * 127.5)
