"""PixelCNN++: golden values, causality, conditioning, features, init, kinds of mixtures."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import dsmooth
from dsmooth._extension import warn_once
from dsmooth.config import TrainConfig, settled
from dsmooth.files import structured
from dsmooth.functional import concat_elu, use_impl
from dsmooth.nn.images import check_scale, fourier_features
from dsmooth.nn.layers import GatedResnet, WeightNormConv, change_of
from dsmooth.nn.weights import changed_layer
from tests.helpers.data_makers import refuses
from tests.helpers.gated_cases import NATIVE
from tests.helpers.networks import BYTES, images, inputs, network, tiny_pair

GOLDEN = Path(__file__).parents[1] / "golden"
CONDITIONINGS = ("none", "stack", "concat")


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
@pytest.mark.parametrize(("channels", "kind"), [(1, {}), (3, {}), (1, BYTES), (3, BYTES)])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@torch.no_grad()
def test_causality_is_exact(conditioning: str, channels: int, kind: dict[str, Any]) -> None:
    """With a pixel and all later ones set to NaN, its parameters are finite and unchanged."""
    height, width = 8, 12
    here = torch.arange(height * width)
    model = network(conditioning, channels=channels, **kind)
    x, context, _ = inputs(conditioning, batch=1, size=(height, width), channels=channels)
    x, context = (None if t is None else t.repeat(len(here), 1, 1, 1) for t in (x, context))
    poisoned, lost = x.clone(), here[None, :] >= here[:, None]  # copy i: its pixels from i on
    poisoned.flatten(2).masked_fill_(lost[:, None, :], torch.nan)
    expected = model(x, context).flatten(2)[here, :, here]
    got = model(poisoned, context).flatten(2)[here, :, here]
    assert torch.equal(got, expected)  # so it is finite


@pytest.mark.parametrize("conditioning", ["stack", "concat"])
def test_context_is_seen_where_the_design_says(conditioning: str) -> None:
    """By the first pixel too, of its own image."""
    x, context, _ = inputs(conditioning)
    params = network(conditioning)(x, context.requires_grad_(True))
    (gradient,) = torch.autograd.grad(params[0, :, 0, 0].sum(), context)
    assert not gradient[1].any()
    seen = gradient[0, 0] != 0
    # Stacked, the first pixel has the whole upper half above it; the encoder has a radius: one for
    # its stem and two for its single gated resnet.
    assert seen[0, 0]
    assert seen[3, 3]
    assert seen[6, 6] == (conditioning == "stack")


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@torch.no_grad()
def test_features_are_the_streams_of_x_after_each_block(conditioning) -> None:
    model, (x, context, _) = network(conditioning), inputs(conditioning, size=(4, 12))
    features = model.features(x, context)
    for (u, ul), scale in zip(features.values(), (1, 2, 4, 4, 2, 1), strict=True):
        assert u.shape == ul.shape == (3, 6, 4 // scale, 12 // scale)
        assert not torch.equal(u, ul)
    elu_ul = torch.nn.functional.elu(features["down2"][1])
    torch.testing.assert_close(model.head(elu_ul), model(x, context))


@pytest.mark.parametrize(
    ("conditioning", "kind"), [*((c, {}) for c in CONDITIONINGS), ("none", BYTES)]
)
@torch.no_grad()
def test_data_dependent_init_normalises_every_layer(conditioning, kind) -> None:
    model = network(conditioning, channels=3, n_resnet=2, **kind)
    x, context, _ = inputs(conditioning, batch=8, size=(16, 16), channels=3)
    model.initialize(x, context)

    seen: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, WeightNormConv):
            layer.register_forward_hook(lambda *args, name=name: seen.update({name: args[2]}))
    model(x, context)
    assert len(seen) > 60
    for name, output in seen.items():
        scale = 0.1 if name.endswith("conv_out") else 1.0
        mean, std = output.mean((0, 2, 3)), output.std((0, 2, 3), correction=0)
        assert mean.abs().max() < 1e-3, name
        assert (std / scale - 1).abs().max() < 1e-2, name


@pytest.mark.parametrize("name", ["conv_in", "nin_skip", "conv_out"])
def test_a_changed_convolution_inside_a_gated_resnet_is_called(name: str) -> None:
    """One that changes nothing gives the same, with the same dropout."""
    model, (x, *_), seed = network(dropout=0.5).train(), inputs("none"), torch.tensor(3)
    layer = model.down[0].ul[0]
    conv, expected = getattr(layer, name), model(x, seed=seed)
    for factor in (1, 0.5):
        hook = conv.register_forward_hook(lambda *args, f=factor: f * args[2])
        hooked = model(x, seed=seed)
        hook.remove()
        setattr(layer, name, torch.nn.Sequential(conv, torch.nn.LeakyReLU(factor)))
        replaced = model(x, seed=seed)
        setattr(layer, name, conv)
        for got in (hooked, replaced):
            assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5) == (factor == 1)
    assert torch.equal(model(x, seed=seed), expected)


def test_a_hook_of_the_backward_pass_is_called_and_changes_no_image() -> None:
    model, (x, *_) = network(), inputs("none")
    conv, seen = model.down[0].ul[0].conv_in, []
    conv.register_full_backward_hook(lambda *_: seen.append(change_of(conv)))
    model(x).sum().backward()
    assert seen == [None]  # no gradient of a gradient is computed
    assert change_of(conv) == "has backward hooks"
    assert changed_layer(model) is None


def test_fourier_features_are_those_of_the_byte() -> None:
    """The equation of docs/math.md, section 1, and its derivative; eight octaves tell all bytes."""
    byte = torch.arange(256, dtype=torch.float64)
    x = (byte / 127.5 - 1).view(1, 1, 16, 16).requires_grad_(True)
    features = fourier_features(x, 8)
    assert features.shape == (1, 16, 16, 16)
    for octave in range(8):
        angle = 2 * math.pi * 2**octave * byte / 256
        cos, sin = features[0, 2 * octave : 2 * octave + 2].flatten(1)
        torch.testing.assert_close(cos, angle.cos(), atol=1e-9, rtol=0)
        torch.testing.assert_close(sin, angle.sin(), atol=1e-9, rtol=0)
        (slope,) = torch.autograd.grad(sin.sum(), x, retain_graph=True)
        torch.testing.assert_close(slope.flatten(), 127.5 * 2 * math.pi * 2**octave / 256 * cos)
    apart = torch.pdist(features[0].detach().flatten(1).T)
    assert apart.min() > 2 - 1e-9
    # float32, as it enters a network of bfloat16: the angle keeps its digits at the last octave.
    torch.testing.assert_close(fourier_features(x.float(), 8).double(), features, atol=1e-4, rtol=0)
    rgb = torch.cat([x, -x, x], dim=1)  # colour by colour
    torch.testing.assert_close(fourier_features(rgb, 8)[:, 16:32], fourier_features(-x, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bytes_in_half_precision_are_those_bytes(dtype: torch.dtype) -> None:
    byte = torch.arange(256).view(1, 1, 16, 16)
    x, between = byte / 127.5 - 1, (byte[..., :15] + 0.5) / 127.5 - 1
    half, model = x.to(dtype), network(**BYTES)
    assert torch.equal(fourier_features(half, 8), fourier_features(x, 8).to(dtype))
    params = torch.randn(1, model.config.n_params, 16, 16)
    assert torch.equal(model.log_prob_given(half, params), model.log_prob_given(x, params))
    check_scale("x", half, as_bytes=True)
    for wrong in between.to(dtype).flatten():
        refuses("x must have values of bytes", check_scale, "x", wrong, as_bytes=True)


def test_images_between_0_and_1_are_warned_of_once(caplog) -> None:
    """A continuous likelihood takes any numbers in [-1, 1]; bytes on another scale are refused."""
    pair, x = tiny_pair("continuous"), images()
    pair.elbo(x)
    assert not caplog.messages
    warn_once.cache_clear()
    for _ in range(2):
        pair.elbo((x + 1) / 2)
    (message,) = caplog.messages
    assert "no value of x is below 0: images must be in [-1, 1], 2 * x - 1 if" in message


def test_the_hidden_layer_sees_the_four_pixels_around() -> None:
    """With the streams cut off, the parameters of a pixel are a function of those pixels only."""
    model = network(**BYTES).double()
    with torch.no_grad():
        model.hidden.ul.weight_g.zero_()
        model.head.weight_v[:, 2 * model.config.head_filters :] = 0
    x = (torch.rand(1, 1, 8, 8, dtype=torch.float64) * 2 - 1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(x)[0, :, 4, 4].square().sum(), x)
    around = {(3, 3), (3, 4), (3, 5), (4, 3)}
    assert {tuple(place) for place in gradient[0, 0].nonzero().tolist()} == around


@torch.no_grad()
def test_a_stacked_context_has_no_features() -> None:
    """A context moved by one byte hardly moves the parameters; x does, by its parity."""
    model = network("stack", likelihood="discretized", fourier_features=8).double()
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    step = torch.full_like(x, 1 / 127.5)
    before = model(x, x)
    moved = [(model(*images) - before).abs().max() for images in ((x, x + step), (x + step, x))]
    assert 0 < moved[0] < moved[1] / 10


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_one_seed_a_forward_and_a_number_for_every_gated_resnet(conditioning: str) -> None:
    """The seed is drawn once, or given; the numbers follow the order of the blocks."""
    model = network(conditioning, n_resnet=2, dropout=0.5).train()
    x, context, _ = inputs(conditioning, size=(4, 4))
    seeds: list[Tensor] = []
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, GatedResnet)}
    for block in blocks.values():
        block.register_forward_pre_hook(lambda *args: seeds.append(args[2]["seed"]), with_kwargs=1)
    drawn = model(x, context)
    assert len({id(seed) for seed in seeds}) == 1
    order = sorted(blocks, key=lambda name: blocks[name].index)
    assert [blocks[name].index for name in order] == [*range(len(seeds))]
    assert order[:4] == ["up.0.u.0", "up.0.ul.0", "up.0.u.1", "up.0.ul.1"]
    parts = [name.split(".")[0] for name in order]
    assert parts == sorted(parts, key=["up", "down", "encoder"].index)
    assert torch.equal(model(x, context, seed=seeds[0]), drawn)
    before = torch.get_rng_state()
    model.eval()(x, context)
    assert torch.equal(torch.get_rng_state(), before)


def test_init_leaves_the_mode_and_the_gain_of_a_constant_filter() -> None:
    layer, model, x = WeightNormConv(1, 2, (1, 1)), network(), torch.zeros(2, 1, 8, 8)
    gains = layer.weight_g.clone()
    layer.initialize(x, scale=0.1)
    assert torch.equal(layer.weight_g, gains)
    for training in (False, True):
        model.train(training).initialize(x)
        assert model.training is training


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")  # torch's own
def test_forward_mode_derivatives_are_those_of_reverse_mode() -> None:
    model = network().double().eval().requires_grad_(False)
    x, v = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64).requires_grad_()

    def log_p(x: Tensor) -> Tensor:
        return model.log_prob(x).sum()

    def slope(x: Tensor) -> Tensor:
        return torch.func.jvp(log_p, (x,), (v.detach(),))[1]

    (grad,) = torch.autograd.grad(log_p(x), x)
    torch.testing.assert_close(slope(x.detach()), (grad * v).sum().detach())
    with use_impl("native"), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        slope(x.detach())
    one_by_one = torch.func.vmap(torch.func.grad(lambda x: log_p(x[None])))(x.detach())
    torch.testing.assert_close(one_by_one, grad)
    with use_impl("native"), pytest.raises(RuntimeError, match="func cannot transform it"):
        torch.func.grad(log_p)(x.detach())


ZEROS = torch.zeros


@pytest.mark.parametrize(
    ("conditioning", "x", "context", "error", "message"),
    [
        ("none", ZEROS(2, 3, 8, 8), None, ValueError, r"shape \(B, 1, H, W\), got \(2, 3, 8, 8\)"),
        ("none", ZEROS(2, 1, 6, 8), None, ValueError, r"multiples of 4, got .*\[6, 8\]"),
        ("none", ZEROS(2, 1, 8, 6), None, ValueError, r"multiples of 4, got .*\[8, 6\]"),
        ("none", ZEROS(2, 1, 8, 8), ZEROS(2, 1, 8, 8), ValueError, "context was given, but"),
        ("stack", ZEROS(2, 1, 8, 8), None, ValueError, "context is missing"),
        ("concat", ZEROS(2, 1, 8, 8), ZEROS(2, 1, 8, 4), ValueError, r"context must have shape"),
        ("none", ZEROS(1, 1, 8, 8).byte(), None, TypeError, r"in \[-1, 1\], got torch.uint8"),
        ("none", ZEROS(1, 1, 8, 8).double(), None, ValueError, "x must be float32, got float64"),
    ],
)
def test_bad_images_are_named(conditioning, x, context, error, message) -> None:
    refuses(message, network(conditioning), x, context, error=error)


def test_bad_seeds_of_dropout_are_named() -> None:
    model, x = network(), ZEROS(1, 1, 8, 8)
    refuses("seed must be int64, got float32", model, x, seed=torch.zeros(()))
    refuses("`first_image` must lie in 0 .. 2147483647, got -1", model, x, first_image=-1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_channels": 2}, "`image_channels` must be one of 1, 3, got 2"),
        ({"n_filters": 0}, "`n_filters` must be a whole number >= 1 and <= 4096, got 0"),
        ({"fourier_features": 9}, "`fourier_features` must be a whole number >= 0 and <= 8, got 9"),
        ({"atoms": "each"}, "`atoms` must be .*, got 'each'"),
        ({"likelihood": "discretized", "atoms": (0, 255)}, r"got \(0, 255\)"),
        ({"likelihood": "gaussian", "smoothing_scale": 0.0}, "`smoothing_scale` must be positive"),
        ({"fourier_features": 1}, '`fourier_features` need .*discretized".*, got "continuous"'),
        ({"atoms": "all"}, '`atoms` need likelihood "discretized", got .continuous'),
        (
            {"atoms": "all", "image_channels": 3, "likelihood": "discretized"},
            "for grey images only",
        ),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    refuses(message, dsmooth.ModelConfig, **settings)


def test_a_gaussian_model_takes_the_scale_of_its_run() -> None:
    model = dsmooth.ModelConfig(likelihood="gaussian")
    config = settled(TrainConfig(model=model, scale=0.3, images=8))
    assert config.model.smoothing_scale == 0.3
    assert structured(json.loads(json.dumps(asdict(config))), TrainConfig, "") == config
    refuses("must be one of continuous, got .gau", replace, config, smoothing="laplace")


@torch.no_grad()
@pytest.mark.parametrize(("conditioning", "hidden"), [("none", 0), ("concat", 0), ("none", 5)])
def test_the_head_computes_in_float32_under_autocast(conditioning: str, hidden: int) -> None:
    """It does so from a hidden layer in bfloat16, too."""
    model, outputs = network(conditioning, head_filters=hidden), list[Tensor]()
    x, context, _ = inputs(conditioning)
    if hidden:
        model.hidden.register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.autocast("cpu", torch.bfloat16):
        params = model(x, context)
        ul = model.features(x, context)["down2"][1]
    assert params.dtype == torch.float32
    weight, bias = model.head.affine()
    activations = torch.nn.functional.elu(ul.double())
    for output in outputs:
        assert output.dtype == torch.bfloat16
        activations = torch.cat([concat_elu(output.double()), activations], dim=1)
    exact = torch.nn.functional.conv2d(activations, weight.double(), bias.double())
    torch.testing.assert_close(params.double(), exact, rtol=1e-5, atol=1e-5)


full = partial(pytest.param, marks=pytest.mark.full)
each_impl = pytest.mark.parametrize("impl", [full("reference"), NATIVE])


@each_impl
@pytest.mark.parametrize("conditioning", [full("none"), full("stack"), "concat"])
def test_exports_for_any_batch(conditioning: str, impl: Any) -> None:
    model = network(conditioning, dropout=0.5)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    count = 1 if conditioning == "none" else 2
    arguments, other = (inputs(conditioning, batch=n)[:count] for n in (3, 5))
    dynamic = dict.fromkeys(("x", "context")[:count], batch)
    with use_impl(impl):
        program = torch.export.export(model, arguments, dynamic_shapes=dynamic)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(*other), model(*other))


@each_impl
def test_a_training_step_compiles_as_one_graph(impl: Any) -> None:
    """Loss and every gradient of a block with all that it can have, dropout too."""
    sizes = {"skip_channels": 8, "condition_size": 3}
    block = GatedResnet(4, (2, 3), shift="down", dropout=0.5, **sizes).train()
    condition, (x, a, b) = torch.randn(2, 3), torch.randn(3, 2, 4, 5, 6)

    def loss(block: GatedResnet) -> Tensor:
        return block(x, (a, b), condition=condition).square().mean()

    results = []
    with use_impl(impl):
        for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
            torch.manual_seed(2)
            value = function(block)
            results.append([value, *torch.autograd.grad(value, [*block.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
