"""SmoothedPair: the bound against an exact likelihood, single-step denoising, files."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dsmooth
from dsmooth.nn.layers import WeightNormConv
from dsmooth.pair import score_of


def tiny_config(conditioning: str, likelihood: str, channels: int = 1) -> dsmooth.ModelConfig:
    return dsmooth.ModelConfig(
        image_channels=channels,
        n_filters=6,
        n_resnet=1,
        n_mix=3,
        dropout=0.0,
        conditioning=conditioning,
        likelihood=likelihood,
        context_layers=1,
    )


def tiny_pair(
    likelihood: str = "discretized", conditioning: str = "concat"
) -> dsmooth.SmoothedPair:
    torch.manual_seed(0)
    noisy = dsmooth.PixelCNNpp(tiny_config("none", "continuous"))
    denoiser = dsmooth.PixelCNNpp(tiny_config(conditioning, likelihood))
    with torch.no_grad():
        noisy.head.weight_g.mul_(0.3)
        denoiser.head.weight_g.mul_(0.3)
    smoothing = dsmooth.GaussianSmoothing(0.5)
    return dsmooth.SmoothedPair(noisy, denoiser, smoothing, (8, 8)).eval()


def make_pixelwise(model: dsmooth.PixelCNNpp) -> None:
    """Cut every connection between pixels: parameters become a function of the context there.

    Of each kernel only the tap on the pixel itself stays; what reads x and what comes from lower
    resolutions has gain zero.
    """
    with torch.no_grad():
        for name, layer in model.named_modules():
            if not isinstance(layer, WeightNormConv):
                continue
            if name.startswith(("stem_", "downsize", "upsize")):
                layer.weight_g.zero_()
                continue
            rows, columns = layer.weight_v.shape[-2:]
            row = rows // 2 if name.startswith("encoder") else rows - 1
            column = columns - 1 if columns == 2 else columns // 2
            tap = layer.weight_v[..., row, column].clone()
            layer.weight_v.zero_()
            layer.weight_v[..., row, column] = tap


def log_likelihood_by_quadrature(pair: dsmooth.SmoothedPair, levels: Tensor) -> Tensor:
    """log p(x) of one pixel, the integral over x~ of p(x~) p(x | x~), for pixelwise models."""
    nodes = torch.linspace(-60, 60, 24_001, dtype=torch.float64)
    grid = nn.functional.pad(nodes, (0, -len(nodes) % 16)).view(-1, 1, 4, 4)
    zeros = torch.zeros_like(grid)
    from dsmooth.functional import logistic_mixture_log_prob as log_prob

    noisy_params = pair.noisy(zeros)
    prior = log_prob(grid, noisy_params, **pair.noisy.config.mixture).flatten()[: len(nodes)]
    params = pair.denoiser(zeros, context=grid)
    result = []
    for level in levels.tolist():
        x = torch.full_like(grid, level)
        log_p = log_prob(x, params, **pair.denoiser.config.mixture)
        joint = prior + log_p.flatten()[: len(nodes)]
        result.append(torch.logsumexp(joint, 0) + math.log(nodes[1] - nodes[0]))
    return torch.stack(result)


@torch.no_grad()
@pytest.mark.parametrize(("likelihood", "atoms"), [("continuous", ()), ("gaussian", (0, 191))])
def test_bound_is_below_the_exact_likelihood(likelihood: str, atoms: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    noisy = dsmooth.PixelCNNpp(tiny_config("none", likelihood)).double()
    denoiser = dsmooth.PixelCNNpp(
        replace(tiny_config("concat", "discretized"), atoms=atoms)
    ).double()
    make_pixelwise(noisy)
    make_pixelwise(denoiser)
    pair = dsmooth.SmoothedPair(noisy, denoiser, dsmooth.GaussianSmoothing(0.5), (4, 4)).eval()
    levels = torch.tensor([-1.0, -0.2 / 127.5, 0.5, 1.0], dtype=torch.float64)
    levels = ((levels + 1) * 127.5).round() / 127.5 - 1

    # The denoiser must use its context, or the law below would be empty.
    contexts = torch.linspace(-2, 2, 16, dtype=torch.float64).view(1, 1, 4, 4)
    assert denoiser(torch.zeros_like(contexts), context=contexts).flatten(2).std(-1).max() > 0.05

    exact = log_likelihood_by_quadrature(pair, levels)
    masses = log_likelihood_by_quadrature(pair, torch.arange(256).double() / 127.5 - 1)
    assert float(masses.exp().sum()) == pytest.approx(1, abs=1e-5)

    for level, log_p in zip(levels, exact, strict=True):
        x = torch.full((512, 1, 4, 4), float(level), dtype=torch.float64)
        bounds = pair.elbo(x) / 16  # sixteen independent pixels
        tighter = pair.elbo(x, n_noise=8, importance_weighted=True) / 16
        error = 4 * float(bounds.std()) / 512**0.5
        assert float(bounds.mean()) < float(log_p) + error
        assert float(tighter.mean()) < float(log_p) + error
        assert float(bounds.mean()) < float(tighter.mean())


@torch.no_grad()
def test_importance_weighting_is_tighter_over_all_subsets() -> None:
    """Averaged over the subsets of the drawn noises, more draws give a larger bound, exactly."""
    pair = tiny_pair().double()
    x = (torch.randint(0, 256, (3, 1, 8, 8)) / 127.5 - 1).double()
    weights = torch.stack([sum(pair.elbo_terms(x, 4, 0, k).values()) for k in range(5)])
    torch.testing.assert_close(pair.elbo(x, n_noise=5, seed=4), weights.mean(0))
    bounds = []
    for size in range(1, 6):
        subsets = [list(s) for s in itertools.combinations(range(5), size)]
        values = [torch.logsumexp(weights[s], 0) - math.log(size) for s in subsets]
        bounds.append(torch.stack(values).mean(0))
    torch.testing.assert_close(bounds[0], weights.mean(0))
    assert (torch.stack(bounds).diff(dim=0) > 0).all()
    iw = pair.elbo(x, n_noise=5, seed=4, importance_weighted=True)
    torch.testing.assert_close(iw, bounds[-1])


@torch.no_grad()
def test_bound_does_not_depend_on_the_batch() -> None:
    pair = tiny_pair().double()
    x = (torch.randint(0, 256, (4, 1, 8, 8)) / 127.5 - 1).double()
    whole = pair.elbo(x, n_noise=2, first_index=20)
    parts = [pair.elbo(x[i : i + 1], n_noise=2, first_index=20 + i) for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(parts))


class GaussianModel(dsmooth.PixelCNNpp):
    """N(0, covariance) over the first two pixels, standard normal elsewhere, as if learned."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__(tiny_config("none", "continuous"))
        self.precision = torch.linalg.inv(covariance)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        quadratic = torch.einsum("bi,ij,bj->b", flat[:, :2], self.precision, flat[:, :2])
        return -0.5 * (quadratic + flat[:, 2:].square().sum(1))


def test_single_step_is_the_posterior_mean_of_a_gaussian() -> None:
    path = Path(__file__).parent / "golden" / "logistic_mixture.json"
    case = json.loads(path.read_text())["tweedie_gaussian"]
    clean = torch.tensor(case["covariance"], dtype=torch.float64)
    smoothing = dsmooth.GaussianSmoothing(case["sigma"])
    noisy = GaussianModel(clean + smoothing.scale**2 * torch.eye(2)).double()
    pair = tiny_pair().double()
    pair.noisy, pair.smoothing = noisy, smoothing
    x_tilde = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x_tilde.view(-1)[:2] = torch.tensor(case["x_tilde"])
    mean = pair.denoise(x_tilde, method="single-step").flatten()[:2]
    torch.testing.assert_close(mean, torch.tensor(case["posterior_mean"], dtype=torch.float64))


def test_full_score_is_the_gradient_and_conditional_is_not() -> None:
    model = tiny_pair().noisy.double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    full = score_of(model, x, "full")
    step = 1e-6
    for i in (0, 13, 40):
        moved = x.clone()
        moved.view(2, -1)[:, i] += step
        back = x.clone()
        back.view(2, -1)[:, i] -= step
        with torch.no_grad():
            slope = (model.log_prob(moved) - model.log_prob(back)) / (2 * step)
        torch.testing.assert_close(full.view(2, -1)[:, i], slope, rtol=1e-5, atol=1e-6)
    conditional = score_of(model, x, "conditional")
    # No later pixel follows the last one, so there both agree; elsewhere they do not.
    torch.testing.assert_close(conditional[..., -1, -1], full[..., -1, -1])
    assert (conditional - full).abs().max() > 1e-3


def test_methods_share_the_noisy_image() -> None:
    pair = tiny_pair()
    noisy = pair.sample(2, seed=5, first_index=3, method="noisy")
    two_step = pair.sample(2, seed=5, first_index=3)
    assert torch.equal(two_step, pair.denoise(noisy, seed=5, first_index=3))
    single = pair.sample(2, seed=5, first_index=3, method="single-step")
    assert torch.equal(single, pair.denoise(noisy, method="single-step"))
    torch.testing.assert_close(pair.sample(1, seed=5, first_index=4), two_step[1:])
    assert not torch.equal(pair.sample(2, seed=6, first_index=3), two_step)


@pytest.mark.parametrize("conditioning", ["stack", "concat"])
def test_saved_pair_is_the_same_pair(tmp_path: Path, conditioning: str) -> None:
    pair = tiny_pair("continuous", conditioning)
    pair.smoothing = dsmooth.LaplaceSmoothing(0.25)
    pair.save_pretrained(tmp_path / "pair")
    again = dsmooth.SmoothedPair.from_pretrained(tmp_path / "pair")
    assert again.smoothing == pair.smoothing
    assert again.image_size == (8, 8)
    assert again.denoiser.config == pair.denoiser.config
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pair.state_dict().items())
    assert torch.equal(again.sample(2), pair.sample(2))


def test_folders_that_are_not_pairs_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        dsmooth.SmoothedPair.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a pair's: Object missing required field `noisy`"):
        dsmooth.SmoothedPair.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        dsmooth.SmoothedPair.from_pretrained(tmp_path)
    tiny_pair().save_pretrained(tmp_path)
    other = tmp_path / "noisy.safetensors"
    other.write_bytes((tmp_path / "denoiser.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"noisy\.safetensors holds a model of another shape"):
        dsmooth.SmoothedPair.from_pretrained(tmp_path)
    other.write_bytes(other.read_bytes()[:500])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        dsmooth.SmoothedPair.from_pretrained(tmp_path)


def test_models_that_do_not_fit_are_refused() -> None:
    noisy = dsmooth.PixelCNNpp(tiny_config("none", "continuous"))
    denoiser = dsmooth.PixelCNNpp(tiny_config("concat", "discretized"))
    smoothing = dsmooth.GaussianSmoothing(0.5)
    with pytest.raises(ValueError, match="the noisy model must have"):
        dsmooth.SmoothedPair(denoiser, denoiser, smoothing, (8, 8))
    with pytest.raises(ValueError, match="the denoiser must have"):
        dsmooth.SmoothedPair(noisy, noisy, smoothing, (8, 8))
    rgb = dsmooth.PixelCNNpp(tiny_config("stack", "continuous", channels=3))
    with pytest.raises(ValueError, match="same image_channels, got 1 and 3"):
        dsmooth.SmoothedPair(noisy, rgb, smoothing, (8, 8))
    with pytest.raises(ValueError, match="multiples of 4"):
        dsmooth.SmoothedPair(noisy, denoiser, smoothing, (8, 10))
    pair = dsmooth.SmoothedPair(noisy, denoiser, dsmooth.UniformSmoothing(0.5), (8, 8))
    with pytest.raises(ValueError, match="single-step denoising needs gaussian smoothing"):
        pair.denoise(torch.zeros(1, 1, 8, 8), method="single-step")
    with pytest.raises(ValueError, match="method must be one of"):
        pair.sample(1, method="three-step")
    with pytest.raises(ValueError, match="n_noise"):
        pair.elbo(torch.zeros(1, 1, 8, 8), n_noise=0)
