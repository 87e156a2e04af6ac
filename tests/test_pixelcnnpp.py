"""PixelCNN++: golden values, causality, conditioning, features and data-dependent init."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import dsmooth
from dsmooth.functional import concat_elu
from dsmooth.nn.layers import GatedResnet, WeightNormConv
from tests.helpers.class_networks import conditional
from tests.helpers.class_networks import inputs as class_inputs

GOLDEN = Path(__file__).parent / "golden"
CONDITIONINGS = ("none", "stack", "concat")


tiny = partial(conditional, n_classes=0)


def inputs(
    conditioning: str, channels: int, height: int, width: int, batch: int = 2
) -> tuple[Tensor, Tensor | None]:
    x, context, _ = class_inputs(conditioning, batch=batch, size=(height, width), channels=channels)
    return x, context


@pytest.mark.quick
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_golden_network(dtype: torch.dtype, channels: int) -> None:
    path = GOLDEN / f"network_c{channels}_8x8_f4_r1_k2"
    io = load_file(f"{path}.io.safetensors")
    y = dsmooth.load_pixelcnnpp(f"{path}.safetensors", dtype=dtype)(io["x"].to(dtype))
    atol = 1e-4 if dtype == torch.float32 else 1e-9 * io["y"].abs().max().item()
    torch.testing.assert_close(y.double(), io["y"], atol=atol, rtol=0)


def test_parameter_counts() -> None:
    with torch.device("meta"):
        grey = dsmooth.PixelCNNpp(dsmooth.ModelConfig())
        rgb = dsmooth.PixelCNNpp(dsmooth.ModelConfig(image_channels=3, n_filters=160))
    assert sum(p.numel() for p in grey.parameters()) == 3_369_500
    assert sum(p.numel() for p in rgb.parameters()) == 53_659_080


@pytest.mark.quick
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@torch.no_grad()
def test_causality_is_exact(conditioning: str, channels: int) -> None:
    """With a pixel and all later ones set to NaN, its parameters are finite and unchanged."""
    height, width = 8, 12
    n = height * width
    model = tiny(conditioning, channels=channels)
    x, context = inputs(conditioning, channels, height, width, batch=1)
    # Copy i of the image loses its pixels from i on.
    x = x.repeat(n, 1, 1, 1)
    context = None if context is None else context.repeat(n, 1, 1, 1)
    poisoned = x.clone()
    lost = torch.arange(n)[None, :] >= torch.arange(n)[:, None]
    poisoned.flatten(2).masked_fill_(lost[:, None, :], torch.nan)
    here = torch.arange(n)
    expected = model(x, context).flatten(2)[here, :, here]
    got = model(poisoned, context).flatten(2)[here, :, here]
    assert got.isfinite().all()
    assert torch.equal(got, expected)


@pytest.mark.quick
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_context_is_seen_where_the_design_says(conditioning: str) -> None:
    """The last pixel of x sees early pixels; a denoiser's first pixel sees its context."""
    model = tiny(conditioning).double()
    x, context = (None if t is None else t.double() for t in inputs(conditioning, 1, 8, 8))
    x.requires_grad_(True)
    params = model(x, context if context is None else context.requires_grad_(True))
    (gradient,) = torch.autograd.grad(params[0, :, 7, 7].sum(), x, retain_graph=True)
    assert (gradient[0, 0].flatten()[:-1] != 0).sum() > 32
    assert gradient[0, 0, 7, 7] == 0
    assert (gradient[1] == 0).all()
    if context is not None:
        (gradient,) = torch.autograd.grad(params[0, :, 0, 0].sum(), context)
        seen = gradient[0, 0] != 0
        assert seen[0, 0]
        # Stacked, the first pixel has the whole upper half above it; the encoder has a radius:
        # one for its stem and two for its single gated resnet.
        assert seen[3, 3]
        assert seen[6, 6] == (conditioning == "stack")


@pytest.mark.quick
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize(("height", "width", "batch"), [(4, 4, 1), (4, 12, 2), (16, 8, 3)])
@torch.no_grad()
def test_shapes_of_output_and_features(
    conditioning: str, height: int, width: int, batch: int
) -> None:
    model = tiny(conditioning, channels=3)
    x, context = inputs(conditioning, 3, height, width, batch)
    assert model(x, context).shape == (batch, 30, height, width)
    assert model.log_prob(x, context).shape == (batch,)
    features = model.features(x, context)
    scales = {"up0": 1, "up1": 2, "up2": 4, "down0": 4, "down1": 2, "down2": 1}
    assert list(features) == list(scales)
    for name, streams in features.items():
        for stream in streams:
            assert stream.shape == (batch, 6, height // scales[name], width // scales[name])
    head = model.head(torch.nn.functional.elu(features["down2"][1]))
    torch.testing.assert_close(head, model(x, context))
    exact = model.head.as_matmul(torch.nn.functional.elu(features["down2"][1]))
    torch.testing.assert_close(exact, head)


@pytest.mark.quick
@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch() -> None:
    model = tiny("concat")
    x, context = inputs("concat", 1, 8, 8, batch=5)
    whole = model.log_prob(x, context)
    single = torch.cat([model.log_prob(x[i : i + 1], context[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, single)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@torch.no_grad()
def test_data_dependent_init_normalises_every_layer(conditioning: str) -> None:
    model = tiny(conditioning, channels=3, n_resnet=2)
    x, context = inputs(conditioning, 3, 16, 16, batch=8)
    model.initialize(x, context)

    seen: dict[str, Tensor] = {}

    def convolve(layer: GatedResnet, args: tuple[Any, ...], output: Tensor) -> None:
        """By the modules: the op has computed it from their weights."""
        x, *skip = args
        h = layer.conv_in(concat_elu(x))
        if skip:
            joined = torch.cat(skip[0], dim=1) if isinstance(skip[0], tuple) else skip[0]
            h = h + layer.nin_skip(concat_elu(joined))
        layer.conv_out(concat_elu(h))

    for name, layer in model.named_modules():
        if isinstance(layer, GatedResnet):
            layer.register_forward_hook(convolve)
        elif isinstance(layer, WeightNormConv):
            layer.register_forward_hook(lambda *args, name=name: seen.update({name: args[2]}))
    model(x, context)

    assert len(seen) > 60
    for name, output in seen.items():
        scale = 0.1 if name.endswith("conv_out") else 1.0
        mean, std = output.mean((0, 2, 3)), output.std((0, 2, 3), correction=0)
        assert mean.abs().max() < 1e-3, name
        assert (std / scale - 1).abs().max() < 1e-2, name


def test_weight_norm_is_per_output_filter_and_can_be_copied() -> None:
    model = tiny()
    clone = copy.deepcopy(model)
    with torch.no_grad():
        for p in clone.parameters():
            p.add_(1.0)
    conv, deconv = model.stem_u, model.upsize_u[0]
    norm = torch.linalg.vector_norm
    torch.testing.assert_close(norm(conv.weight(), dim=(1, 2, 3)), conv.weight_g)
    torch.testing.assert_close(norm(deconv.weight(), dim=(0, 2, 3)), deconv.weight_g)
    assert not torch.equal(clone.stem_u.weight_g, conv.weight_g)


def test_dropout_is_elementwise_and_only_in_training() -> None:
    model = tiny(dropout=0.5)
    x, _ = inputs("none", 1, 8, 8)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    torch.manual_seed(3)
    first = model(x)
    torch.manual_seed(3)
    assert torch.equal(first, model(x))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_one_seed_a_forward_and_a_number_for_every_gated_resnet(conditioning: str) -> None:
    """The seed is drawn once, or given; the numbers follow the order of the blocks."""
    model = tiny(conditioning, n_resnet=2, dropout=0.5).train()
    x, context = inputs(conditioning, 1, 4, 4)
    seen: list[tuple[int, Tensor]] = []

    def record(layer: GatedResnet, args: Any, named: dict[str, Any]) -> None:
        seen.append((named["layer"], named["seed"]))

    blocks = {name: m for name, m in model.named_modules() if isinstance(m, GatedResnet)}
    for block in blocks.values():
        block.register_forward_pre_hook(record, with_kwargs=True)
    drawn = model(x, context)
    assert sorted(layer for layer, _ in seen) == list(range(len(blocks)))
    assert len({id(seed) for _, seed in seen}) == 1
    order = sorted(blocks, key=lambda name: blocks[name].layer)
    assert order[:4] == ["up.0.u.0", "up.0.ul.0", "up.0.u.1", "up.0.ul.1"]
    parts = [name.split(".")[0] for name in order]
    assert parts == sorted(parts, key=["up", "down", "encoder"].index)

    seed = seen[0][1]
    again = model.decode(x, model.encode_context(x, context, seed=seed))
    assert torch.equal(again, drawn)
    before = torch.get_rng_state()
    model.eval()(x, context)
    assert torch.equal(torch.get_rng_state(), before)


def test_likelihood_is_float32_under_autocast() -> None:
    model = tiny()
    x, _ = inputs("none", 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        log_p = model.log_prob(x)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p, model.log_prob(x), rtol=0.02, atol=0.5)


ZEROS = torch.zeros


@pytest.mark.quick
@pytest.mark.parametrize(
    ("conditioning", "x", "context", "error", "message"),
    [
        ("none", ZEROS(2, 3, 8, 8), None, ValueError, r"shape \(B, 1, H, W\), got \(2, 3, 8, 8\)"),
        ("none", ZEROS(2, 1, 6, 8), None, ValueError, "multiples of 4, got 6 x 8"),
        ("none", ZEROS(2, 1, 8, 8), ZEROS(2, 1, 8, 8), ValueError, "context was given, but"),
        ("stack", ZEROS(2, 1, 8, 8), None, ValueError, "context is missing"),
        ("concat", ZEROS(2, 1, 8, 8), ZEROS(2, 1, 8, 4), ValueError, r"context must have shape"),
        ("none", ZEROS(1, 1, 8, 8).byte(), None, TypeError, r"in \[-1, 1\], got torch.uint8"),
        ("none", ZEROS(1, 1, 8, 8).double(), None, TypeError, r"torch.float32, got torch.float64"),
    ],
)
def test_bad_images_are_named(conditioning, x, context, error, message) -> None:
    with pytest.raises(error, match=message):
        tiny(conditioning)(x, context)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_channels", 2),
        ("n_filters", 0),
        ("n_resnet", 0),
        ("n_mix", 0),
        ("dropout", 1.0),
        ("conditioning", "both"),
        ("likelihood", "exact"),
    ],
)
def test_bad_model_configs_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        dsmooth.ModelConfig(**{field: value})
