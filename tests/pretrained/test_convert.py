"""Old checkpoints: what cannot be read says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dsmooth
from tests.helpers.data_makers import refuses
from tests.helpers.networks import with_classes

pytestmark = pytest.mark.quick

GOLDEN = Path(__file__).parents[1] / "golden" / "network_c1_8x8_f4_r1_k2.safetensors"
STATE, BIAS = load_file(GOLDEN), "module.downsize_u_stream.1.conv.bias"
LABELLED, PROJECTION = with_classes(STATE), "module.down_layers.0.u_stream.0.hw"
NO_PROJECTIONS = torch.ones(2, 8), torch.full((3, 8), torch.nan), torch.ones(3, 8).long()


@pytest.mark.parametrize("listed", [False, True])
def test_a_pickle_is_refused_with_the_conversion(tmp_path: Path, listed: bool) -> None:
    """The smoothing authors save a list of state dict, optimizer, scheduler and epoch."""
    path = tmp_path / "old.pth"
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    saved = [STATE, optimizer.state_dict(), {"last_epoch": 3}, 3] if listed else STATE
    torch.save(saved, path)
    with pytest.raises(ValueError, match="is a pickle") as error:
        dsmooth.load_pixelcnnpp(path)
    exec(compile(str(error.value).split('"')[1], "conversion", "exec"), {})
    expected = dsmooth.load_pixelcnnpp(STATE).state_dict()
    for source in (path.with_suffix(".safetensors"), saved):
        found = dsmooth.load_pixelcnnpp(source).state_dict()
        assert all(torch.equal(found[name], t) for name, t in expected.items())


@pytest.mark.parametrize("names", ["model.", "module.module.", "", "parametrizations", "folded"])
def test_other_names_of_the_same_weights(names: str) -> None:
    prefix = names if "." in names else ""
    renamed = {prefix + key.removeprefix("module."): t for key, t in STATE.items()}
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
    for name, expected in dsmooth.load_pixelcnnpp(STATE, torch.float64).state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-15)


def test_a_folded_float32_weight_is_exact() -> None:
    layer = "module.u_init.conv.weight"
    weight = torch._weight_norm(STATE[f"{layer}_v"].float(), STATE[f"{layer}_g"].float(), 0)
    rest = {key: t for key, t in STATE.items() if not key.startswith(layer)}
    model = dsmooth.load_pixelcnnpp({**rest, layer: weight}, torch.float64)
    torch.testing.assert_close(model.stem_u.affine()[0], weight.double(), rtol=1e-14, atol=0)


def test_a_denoiser_and_a_likelihood_are_named() -> None:
    denoiser = dsmooth.load_pixelcnnpp(STATE, conditioning="stack", likelihood="discretized")
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    # The authors' own way: x~ on top of x in one image, and the lower half of what comes out.
    whole = dsmooth.load_pixelcnnpp(STATE)(torch.cat([x.flip(0), x], 2))
    torch.testing.assert_close(denoiser(x, context=x.flip(0)), whole[:, :, 8:])
    noisy = dsmooth.load_pixelcnnpp(STATE)
    dsmooth.SmoothedPair(noisy, denoiser, dsmooth.GaussianSmoothing(0.5), (8, 8))
    assert (denoiser.config.likelihood, noisy.config.likelihood) == ("discretized", "continuous")


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (STATE, {"conditioning": "concat"}, "`conditioning` must be one of none, stack, got 'con"),
        (STATE, {"likelihood": "gaussian"}, "`likelihood` must be one of"),
        (STATE, {"dtype": torch.int32}, r"only accepts floating point .* dtype=torch\.int32"),
        ({"weight": torch.zeros(3)}, {}, "not a PixelCNN"),
        ({**STATE, "module.u_init.conv.weight_v": torch.zeros(())}, {}, "not a PixelCNN"),
        ({**STATE, "module.u_init.conv.weight_v": torch.zeros(4, 3, 2, 3)}, {}, "not a PixelCNN"),
        ({**STATE, "module.nin_out.lin_a.bias": torch.zeros(7)}, {}, r"shape \(6,\)"),
        ({**STATE, "module.extra": torch.zeros(1)}, {}, "keys that are not"),
        (
            {k: v for k, v in LABELLED.items() if k != PROJECTION},
            {},
            r"down_layers\.0\.u_stream\.0\.hw: finite",
        ),
        *(({**LABELLED, PROJECTION: wrong}, {}, "hw: finite floating") for wrong in NO_PROJECTIONS),
        ({**LABELLED, "module.up_layers.0.u_stream.0.hw": torch.ones(8)}, {}, r"2F\)"),
        # A file of 200 kB promised a network of 30 GB, another one a thousand million layers.
        ({**STATE, "module.u_init.conv.weight_v": torch.ones(4096, 2, 2, 3)}, {}, r"\(4096, "),
        *(
            (
                {**STATE, f"up_layers.0.u_stream.{layer}.hw": torch.zeros(4)},
                {},
                "n_resnet|ha(s|ve) ",
            )
            for layer in (9, 4000, 10**9 - 1, 10**30)
        ),
    ],
)
def test_other_sources_are_refused(source, options, words: str) -> None:
    refuses(words, dsmooth.load_pixelcnnpp, source, error=(ValueError, TypeError), **options)
