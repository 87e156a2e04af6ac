"""Atoms and Gaussian components on their way through the package."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

import dsmooth
from dsmooth.config import ModelConfig, TrainConfig
from dsmooth.data import ImageDataset
from dsmooth.evaluate.likelihood import score_pair, score_plain
from dsmooth.functional import concat_elu
from tests.helpers.data_makers import refuses
from tests.helpers.networks import network


def test_a_gaussian_model_takes_the_scale_of_its_run() -> None:
    model = ModelConfig(likelihood="gaussian")
    config = TrainConfig(model=model, scale=0.3, images=8)
    assert config.model.smoothing_scale == 0.3
    assert TrainConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config
    refuses('is for role "noisy" with gaussian smoothing', replace, config, smoothing="laplace")


def gaussian_pair() -> dsmooth.SmoothedPair:
    noisy = network(likelihood="gaussian", smoothing_scale=0.5)
    denoiser = network("concat", likelihood="discretized", atoms=(0, 252, 253, 254, 255))
    return dsmooth.SmoothedPair(noisy, denoiser, dsmooth.GaussianSmoothing(0.5), (8, 8))


def test_a_pair_refuses_a_gaussian_model_of_another_scale() -> None:
    pair = gaussian_pair()
    for smoothing in (dsmooth.GaussianSmoothing(0.3), dsmooth.LaplaceSmoothing(0.5)):
        words, models = f"noise of scale 0.5, got {smoothing.kind} smoothing ", pair.children()
        refuses(words, dsmooth.SmoothedPair, *models, smoothing, (8, 8))


@torch.no_grad()
def test_scores_are_those_of_the_models_own_mixtures() -> None:
    pair = gaussian_pair()
    images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    images[3:, :, ::2] = 253
    data = ImageDataset(images, None, "made", "test", "made for a test")
    scores = score_pair(pair, data, n_noise=2, seed=1)
    x = data.batch(torch.arange(6))
    expected = pair.elbo(x, n_noise=2, seed=1)
    torch.testing.assert_close(
        scores.log_weights("discretized").mean(0).float(), expected, rtol=1e-5, atol=1e-3
    )
    plain = dsmooth.PixelCNNpp(replace(pair.denoiser.config, conditioning="none")).eval()
    exact = score_plain(plain, data)
    torch.testing.assert_close(
        exact.discretized[0].float(), plain.log_prob(x), rtol=1e-5, atol=1e-3
    )


@torch.no_grad()
@pytest.mark.parametrize(("conditioning", "hidden"), [("none", 0), ("concat", 0), ("none", 5)])
def test_the_head_computes_in_float32_under_autocast(conditioning: str, hidden: int) -> None:
    """It does so from a hidden layer in bfloat16, too."""
    model = network(conditioning, head_filters=hidden)
    x = torch.randn(2, 1, 8, 8)
    context = torch.randn(2, 1, 8, 8) if conditioning == "concat" else None
    outputs: list[torch.Tensor] = []
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
