"""Old checkpoints: what cannot be read says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dsmooth
from tests.helpers.data_makers import refuses

pytestmark = pytest.mark.quick

GOLDEN = Path(__file__).parent / "golden" / "network_c1_8x8_f4_r1_k2.safetensors"


@pytest.mark.parametrize("listed", [False, True])
def test_a_pickle_is_refused_with_the_conversion(tmp_path: Path, listed: bool) -> None:
    """The smoothing authors save a list of state dict, optimizer, scheduler and epoch."""
    state, path = load_file(GOLDEN), tmp_path / "old.pth"
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    saved = [state, optimizer.state_dict(), {"last_epoch": 3}, 3] if listed else state
    torch.save(saved, path)
    with pytest.raises(ValueError, match="is a pickle") as error:
        dsmooth.load_pixelcnnpp(path)
    exec(compile(str(error.value).split('"')[1], "conversion", "exec"), {})
    expected = dsmooth.load_pixelcnnpp(state).state_dict()
    for source in (path.with_suffix(".safetensors"), saved):
        found = dsmooth.load_pixelcnnpp(source).state_dict()
        assert all(torch.equal(found[name], t) for name, t in expected.items())


@pytest.mark.parametrize("names", ["model.", "module.module.", "", "parametrizations", "folded"])
def test_other_names_of_the_same_weights(names: str) -> None:
    state = load_file(GOLDEN)
    prefix = names if "." in names else ""
    renamed = {prefix + key.removeprefix("module."): t for key, t in state.items()}
    if names == "parametrizations":
        new = {"weight_g": "original0", "weight_v": "original1"}
        renamed = {
            key if last == "bias" else f"{layer}.parametrizations.weight.{new[last]}": t
            for key, t in renamed.items()
            for layer, _, last in [key.rpartition(".")]
        }
    if names == "folded":
        layers = [key.removesuffix(".weight_v") for key in renamed if key.endswith("_v")]
        for layer in layers:
            g, v = (renamed.pop(f"{layer}.weight_{part}").double() for part in "gv")
            renamed[f"{layer}.weight"] = torch._weight_norm(v, g, 0)
    found = dsmooth.load_pixelcnnpp(renamed, torch.float64).state_dict()
    for name, expected in dsmooth.load_pixelcnnpp(state, torch.float64).state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-15)


def test_a_denoiser_and_a_likelihood_are_named() -> None:
    state = load_file(GOLDEN)
    denoiser = dsmooth.load_pixelcnnpp(state, conditioning="stack", likelihood="discretized")
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    # The authors' own way: x~ on top of x in one image, and the lower half of what comes out.
    whole = dsmooth.load_pixelcnnpp(state)(torch.cat([x.flip(0), x], 2))
    torch.testing.assert_close(denoiser(x, context=x.flip(0)), whole[:, :, 8:])
    noisy = dsmooth.load_pixelcnnpp(state)
    dsmooth.SmoothedPair(noisy, denoiser, dsmooth.GaussianSmoothing(0.5), (8, 8))
    assert (denoiser.config.likelihood, noisy.config.likelihood) == ("discretized", "continuous")
    with pytest.raises(ValueError, match="`conditioning` must be one of none, stack, got 'concat'"):
        dsmooth.load_pixelcnnpp(state, conditioning="concat")
    refuses("`likelihood` must be one of", dsmooth.load_pixelcnnpp, state, likelihood="gaussian")
    for source in ([], [3, state], {"epoch": 3}):
        refuses("must be a state dict of tensors, or a list that", dsmooth.load_pixelcnnpp, source)


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*missing\.safetensors"):
        dsmooth.load_pixelcnnpp(tmp_path / "missing.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(GOLDEN.read_bytes()[:1000])
    refuses(r"damaged\.safetensors is not a readable safetensors", dsmooth.load_pixelcnnpp, damaged)


def test_wrong_keys_and_shapes_are_named() -> None:
    state = load_file(GOLDEN)
    with pytest.raises(ValueError, match=r"dsmooth's own: .*load_model\(\) reads it"):
        dsmooth.load_pixelcnnpp(dsmooth.PixelCNNpp(dsmooth.ModelConfig(n_filters=4)).state_dict())
    refuses("not a PixelCNN", dsmooth.load_pixelcnnpp, {"weight": torch.zeros(3)})
    lacking = {k: v for k, v in state.items() if "downsize_u_stream.1.conv.bias" not in k}
    refuses(r"lacks 'downsize_u_stream\.1\.conv\.bias'", dsmooth.load_pixelcnnpp, lacking)
    refuses("keys that are not", dsmooth.load_pixelcnnpp, {**state, "module.extra": torch.zeros(1)})
    with pytest.raises(TypeError, match=r"only accepts floating point .* dtype=torch\.int32"):
        dsmooth.load_pixelcnnpp(state, torch.int32)


@pytest.mark.parametrize("layer", [9, 4000, 10**9 - 1, 10**30])
def test_a_key_brings_no_layers(layer: int) -> None:
    """A network of a thousand million layers was built, layer by layer."""
    key = f"up_layers.0.u_stream.{layer}.conv_input.conv.bias"
    with pytest.raises(ValueError, match=r"n_resnet|keys that are not"):
        dsmooth.load_pixelcnnpp({**load_file(GOLDEN), key: torch.zeros(4)})


def test_a_wide_stem_brings_no_wide_network() -> None:
    """A file of 200 kB promised a network of 30 GB."""
    state = load_file(GOLDEN)
    state["module.u_init.conv.weight_v"] = torch.ones(4096, 2, 2, 3)
    refuses(r"must have weights of shape \(4096, ", dsmooth.load_pixelcnnpp, state)


@pytest.mark.grid
@pytest.mark.parametrize("part", ["weight_v", "weight_g", "bias"])
@pytest.mark.parametrize(
    "change",
    [
        lambda t: torch.zeros(()),
        lambda t: torch.zeros(2, 3, 4, 5, 6),
        lambda t: t[:0],
        lambda t: torch.cat([t, t]),
        lambda t: t.to(torch.int64),
        lambda t: t.to(torch.complex64),
        lambda t: torch.full_like(t, torch.nan),
    ],
)
@pytest.mark.parametrize("name", ["u_init.conv", "nin_out.lin_a", "upsize_u_stream.0.deconv"])
def test_a_tensor_of_another_kind_is_refused(name: str, part: str, change) -> None:
    state = load_file(GOLDEN)
    key = f"module.{name}.{part}"
    with pytest.raises(ValueError, match=r"PixelCNN|must (be|have|hold|lie)|does not fit"):
        dsmooth.load_pixelcnnpp({**state, key: change(state[key])})
