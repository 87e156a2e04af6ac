"""Old checkpoints: what cannot be read says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dsmooth

pytestmark = pytest.mark.quick

GOLDEN = Path(__file__).parent / "golden" / "network_c1_8x8_f4_r1_k2.safetensors"


def test_pickle_is_refused_with_the_conversion(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    state = load_file(GOLDEN)
    torch.save(state, path)
    with pytest.raises(ValueError, match="is a pickle") as error:
        dsmooth.load_pixelcnnpp(path)
    code = str(error.value).split('"')[1]
    exec(compile(code, "conversion", "exec"), {})
    assert load_file(path.with_suffix(".safetensors")).keys() == state.keys()
    dsmooth.load_pixelcnnpp(path.with_suffix(".safetensors"))


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        dsmooth.load_pixelcnnpp(tmp_path / "missing.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(GOLDEN.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"damaged\.safetensors is not a safetensors file"):
        dsmooth.load_pixelcnnpp(damaged)


def test_wrong_keys_and_shapes_are_named() -> None:
    state = load_file(GOLDEN)
    with pytest.raises(ValueError, match="not a PixelCNN"):
        dsmooth.load_pixelcnnpp({"weight": torch.zeros(3)})
    lacking = {k: v for k, v in state.items() if "downsize_u_stream.1.conv.bias" not in k}
    with pytest.raises(ValueError, match=r"lacks 'downsize_u_stream\.1\.conv\.bias'"):
        dsmooth.load_pixelcnnpp(lacking)
    with pytest.raises(ValueError, match="keys that are not"):
        dsmooth.load_pixelcnnpp({**state, "module.extra": torch.zeros(1)})
    wrong = {**state, "module.nin_out.lin_a.weight_v": torch.ones(6, 5)}
    with pytest.raises(ValueError, match=r"nin_out\.lin_a must have weights of shape"):
        dsmooth.load_pixelcnnpp(wrong)
