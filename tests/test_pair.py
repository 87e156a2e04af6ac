"""SmoothedPair: the bound against an exact likelihood, single-step denoising, refusals."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import dsmooth
from dsmooth._extension import warn_once
from dsmooth.evaluate import classify, score_pair, score_plain
from dsmooth.nn.gradients import input_gradient
from dsmooth.progress import progress
from dsmooth.sampling import CachedSampler, keep_top, sample_images, sequential_sample
from tests.helpers.data_makers import random_dataset, refuses
from tests.helpers.networks import GAUSSIAN, images, log_weight, network, tiny_config, tiny_pair
from tests.helpers.tiny_runs import tiny


@torch.no_grad()
def test_importance_weighting_is_tighter_over_all_subsets() -> None:
    """Averaged over subsets of the drawn noises, exactly; a bound does not depend on its batch."""
    pair = tiny_pair().double()
    x = images().double()
    weights = torch.stack([sum(log_weight(pair, x, seed=4, repeat=k).values()) for k in range(5)])
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
    singles = [pair.elbo(x[i : i + 1], n_noise=5, seed=4, first_index=i) for i in range(3)]
    torch.testing.assert_close(torch.cat(singles), bounds[0])


class GaussianModel(dsmooth.PixelCNNpp):
    """N(0, covariance) over the first two pixels, standard normal elsewhere, as if learned."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__(tiny_config())
        self.precision = torch.linalg.inv(covariance)

    def nats(self, x: Tensor, *condition: Tensor | None) -> Tensor:
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


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")  # torch's own
def test_the_gradient_is_that_of_the_whole_network() -> None:
    model = tiny_pair().noisy.double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    gradient, step = input_gradient(model, x), 1e-6
    for i in (0, 13, 40):
        moved = step * torch.eye(64)[i].view(8, 8)
        with torch.no_grad():
            slope = (model.log_prob(x + moved) - model.log_prob(x - moved)) / (2 * step)
        torch.testing.assert_close(gradient.view(2, -1)[:, i], slope, rtol=1e-5, atol=1e-6)
    cast = tiny_pair().single_step(x.float().requires_grad_())
    assert not cast.requires_grad
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        input_gradient(model, x)


def test_draws_as_people_write_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_pair().save_pretrained(tmp_path)
    pair = dsmooth.SmoothedPair.from_pretrained(tmp_path, device="cpu", dtype=torch.float32)
    assert (pair.device, pair.dtype) == (torch.device("cpu"), torch.float32)
    for method in ("two-step", "noisy", "single-step"):
        x = pair.sample(5, method=method)
        again = pair.sample(5, method=method, batch_size=2)
        rounding = 1e-5 if method == "single-step" else 0.0
        torch.testing.assert_close(again, x, rtol=rounding, atol=rounding)
    assert not capsys.readouterr().out
    with progress("drawing", 2):
        pair.sample(2)
    assert capsys.readouterr().out.startswith("drawing: 2 images\ndrawing: done in ")
    read = partial(dsmooth.SmoothedPair.from_pretrained, tmp_path)
    assert read(dtype=torch.bfloat16).dtype == torch.bfloat16
    picture, _ = dsmooth.to_pil([*X])
    assert torch.equal(torch.from_numpy(np.array(picture)), dsmooth.to_bytes(X)[0, 0])


def test_a_seed_that_was_drawn_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    pair = tiny_pair()
    draws = [
        lambda seed: pair.sample(1, seed=seed, method="noisy"),
        lambda seed: pair.denoise(torch.zeros(1, 1, 8, 8), seed=seed),
        lambda seed: pair.elbo(torch.ones(1, 1, 8, 8), seed=seed),
        lambda seed: CachedSampler(pair.noisy).sample(1, 8, 8, seed=seed),
        lambda seed: sequential_sample(pair.noisy, 1, height=8, width=8, seed=seed),
        lambda seed: sample_images(pair.noisy, 1, height=8, width=8, seed=seed),
    ]
    seeds = set()
    for draw in draws:
        x = draw(None)
        said = caplog.messages.pop()
        seed = int(said.split("seed=")[1].split()[0])
        assert said == f"drew seed {seed}; seed={seed} gives the same images again"
        assert torch.equal(draw(seed), x)
        seeds.add(seed)
    assert len(seeds) == len(draws)


def test_precision_is_that_of_the_cached_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the faster one is used."""
    pair, drawn = tiny_pair("continuous"), []
    for fast, precision in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr("dsmooth.sampling.resolve.has_fast_bfloat16", lambda _, is_=fast: is_)
        drawn.append(CachedSampler(pair.noisy, getattr(torch, precision)).sample(2, 8, 8))
        for choice in ("auto", precision):
            assert torch.equal(pair.sample(2, precision=choice, method="noisy"), drawn[-1])
    assert not torch.equal(*drawn)
    monkeypatch.setattr("dsmooth.cuda.unavailable_reason", lambda: "no compiler")
    refuses("precision bfloat16 needs the cached sampler: ", pair.sample, 2, precision="bfloat16")


def test_training_mode_and_inference_mode_change_no_number() -> None:
    """A model in training mode stays in it, as another thread may be training it, yet no dropout
    enters what is drawn or scored."""
    pair, data, modes = tiny_pair(), random_dataset(2), set[tuple[bool, bool]]()
    assert pair.noisy.config.dropout > 0
    x = data.batch(torch.arange(2))
    pair.noisy.head.register_forward_pre_hook(
        lambda layer, _: modes.add((pair.noisy.training, layer.training))
    )

    def numbers(pair: dsmooth.SmoothedPair) -> list[Tensor]:
        single = pair.denoise(x, method="single-step")
        exact = score_plain(pair.noisy, data).log_weights("continuous")
        drawn = sequential_sample(pair.noisy, 1, height=4, width=4)
        return [pair.elbo(x), single, exact, drawn]

    expected = numbers(pair)
    with torch.inference_mode():
        made = copy.deepcopy(pair)
        assert all(map(torch.equal, expected, numbers(pair)))
    assert all(map(torch.equal, expected, numbers(made)))
    for model in (pair.noisy, pair.denoiser):
        model.train()
        assert all(map(torch.equal, expected, numbers(pair)))
        assert model.training
        model.eval()
    assert modes == {(False, False), (True, False)}


X, UPPER, SIZE = images(2), keep_top(0.5, (8, 8)), (8, 8)
OFF_GRID, UNIT, WIDE = (X + 0.3 / 127.5).clamp(-1, 1), (X + 1) / 2, X * 1.2
LARGE, BROKEN = X.repeat(1, 1, 2, 2), torch.stack([X[0] * torch.nan, X[1] * 1.2])
STEPS = {"method": "single-step"}
ValueOrType = (ValueError, TypeError)
DENSITY, PAIR = cache(partial(tiny_pair, "continuous")), cache(tiny_pair)
FITS = dsmooth.GaussianSmoothing(0.5)


def make(noisy: Any, denoiser: Any, smoothing: Any = FITS, size: Any = SIZE) -> None:
    dsmooth.SmoothedPair(network(**noisy), network(**denoiser), smoothing, size)


STACKED = {"conditioning": "stack"}
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: make(STACKED, STACKED), "the noisy model must have"),
    (lambda: make({}, {}), "the denoiser conditioning="),
    (lambda: make(GAUSSIAN, STACKED, dsmooth.GaussianSmoothing(0.2)), "contains gaussian noise"),
    (lambda: make(GAUSSIAN, STACKED, dsmooth.LaplaceSmoothing(0.3)), "contains gaussian noise"),
    (lambda: make({}, {**STACKED, "channels": 3}), "same image_channels, got 1 and 3"),
    (lambda: make({}, STACKED, size=(8, 10)), "image_size. must be a height .*multiples of 4"),
    (lambda: make({}, STACKED, size=(8, 8, 1)), "image_size. must be a height and a width"),
    (lambda: PAIR().elbo(LARGE), r"x must have shape \(B, 1, 8, 8\), got \(2, 1, 16, 16\)"),
    (lambda: PAIR().elbo(X[0]), r"got \(1, 8, 8\)$"),
    (lambda: PAIR().elbo(WIDE), r"x must lie in \[-1, 1\], got -1.* to .*clamp"),
    (lambda: PAIR().elbo(OFF_GRID), r"values of bytes.* 0.30 of a step off: .*to_bytes\(x\)$"),
    (lambda: PAIR().elbo(UNIT), r"values of bytes.* or 2 \* x - 1 if these are images in \[0, 1\]"),
    (lambda: PAIR().elbo(X, n_noise=0), "^`n_noise` must be at least 1, got 0"),
    (lambda: PAIR().complete(X, draws=0), "^`draws` must be at least 1, got 0"),
    (lambda: PAIR().sample(2, batch_size=1.5), "^`batch_size` must be a whole"),
    (lambda: dsmooth.train(tiny(), "no-run", threads=0), "^`threads` must be at least 1, got 0"),
    (lambda: PAIR().denoiser.log_prob(OFF_GRID, X), "values of bytes"),
    (lambda: PAIR().denoise(LARGE, **STEPS), r"x_tilde must have shape \(B, 1, 8, 8\)"),
    (lambda: DENSITY().elbo(BROKEN), "x must lie in"),
    (lambda: PAIR().sample(2, known=UNIT, mask=UPPER), "^known must have values of bytes"),
    (lambda: PAIR().complete(UNIT), "^x must have values of bytes"),
    (lambda: PAIR().complete(X, known=X), "`complete` takes x in place of known"),
    (lambda: PAIR().complete(X, UPPER.numpy()), "mask must be a tensor, got ndarray"),
    (lambda: PAIR().complete(X, UPPER.expand(6, -1, -1), draws=3), r"\(2, 8, 8\), got \(6, 8"),
    (lambda: PAIR().sample(2, precision="float16"), "must be one of auto, float32, bfloat16, got"),
    (lambda: PAIR().single_step(X, label=3), "^`label` was given, but the model has no classes"),
    (lambda: PAIR().sample(1, seed=1, generator=torch.Generator()), "seed and generator both"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_wrong_arguments_are_refused(call: Any, words: str) -> None:
    refuses(words, call, error=ValueOrType)


def test_bytes_arrays_and_other_devices_are_refused() -> None:
    """With the line that converts. A number near a byte is rounded only by the user."""
    pair, density = PAIR(), DENSITY()
    for wrong, hint in (
        (X.numpy(), "from_numpy"),
        (dsmooth.to_bytes(X), r"to_float\((x|x_tilde).byte\(\)\)"),
        (dsmooth.to_bytes(X).long(), r"to_float\((x|x_tilde).byte\(\)\)"),
    ):
        networks = pair.noisy.log_prob, pair.denoiser.log_prob
        for score in (pair.elbo, pair.complete, pair.single_step, *networks):
            refuses(hint, score, wrong, error=TypeError)
    for score in (pair.elbo, pair.complete, pair.denoise):
        refuses(r"^x\w* must be on cpu, got meta", score, X.to("meta"))
    rounded = dsmooth.round_to_bytes(X + 0.3 / 127.5)
    torch.testing.assert_close(pair.elbo(rounded), pair.elbo(X))
    assert density.elbo(OFF_GRID).isfinite().all()


def test_half_weights_are_packed_as_float32(caplog: pytest.LogCaptureFixture) -> None:
    pair = tiny_pair()
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(pair).to(dtype)
        rounded = copy.deepcopy(half).float()
        assert torch.equal(half.sample(2), rounded.sample(2))
    x, upper = torch.full((1, 1, 8, 8), 200 / 127.5 - 1), keep_top(0.9, (8, 8))
    completed = half.complete(x, upper, method="single-step")
    by_pixel = sequential_sample(half.noisy, 1, height=8, width=8, known=x, mask=upper)
    for kept in (completed, by_pixel):
        assert torch.equal(kept[:, :, :7], x[:, :, :7].to(dtype))
    assert torch.equal(half.complete(x.to(dtype), upper), half.complete(x, upper))
    assert not caplog.messages
    warn_once.cache_clear()
    pair.double().sample(1)
    words = "one forward pass per pixel: the weights are float64: .float() rounds"
    assert caplog.messages.count(words) == 1


def test_a_completion_is_a_sample_with_known_pixels() -> None:
    """Every draw of it has the label of its image."""
    pair, x, label = tiny_pair(classes=(3, 3)), images(2), torch.tensor([2, 1])
    known, whole = x.repeat_interleave(3, 0), torch.zeros(2, 8, 8, dtype=torch.bool)
    whole[0, :4] = True
    expected = pair.sample(6, seed=5, known=known, mask=UPPER, label=label.repeat_interleave(3))
    completed = pair.complete(x, draws=3, seed=5, label=label.tolist())
    assert torch.equal(completed, expected)
    assert torch.equal(completed[:, :, :4], known[:, :, :4])
    by_mask = pair.complete(x, whole, draws=3, seed=5, label=label)
    assert torch.equal(by_mask[:3], expected[:3])
    assert torch.equal(pair.complete(x, label=2), pair.complete(x, label=torch.tensor([2, 2])))
    assert pair.double().complete(x, label=1).dtype == torch.float64
    refuses("`label` must have 2 classes, got 1", pair.complete, x, draws=3, label=label[:1])


def test_a_training_loop_sees_fresh_noise_in_each_step() -> None:
    """As torch.manual_seed decides; with a seed or an index the bound is that of `elbo`."""
    pair, x = tiny_pair(), images()

    def bounds(**arguments: int) -> list[float]:
        torch.manual_seed(3)
        return [pair(x, n_noise=2, **arguments).mean().item() for _ in range(3)]

    assert len(set(bounds())) == 3
    assert bounds() == bounds()
    for arguments in ({"seed": 0}, {"first_index": 0}, {"seed": 1, "first_index": 0}):
        expected = pair.elbo(x, n_noise=2, seed=arguments.get("seed", 0)).mean().item()
        assert bounds(**arguments) == [expected] * 3


@pytest.mark.parametrize("training", [False, True])
def test_the_bound_has_the_gradients_of_its_terms(training: bool) -> None:
    """Without dropout, in training mode too: a pair can be tuned as a whole."""
    pair, x = tiny_pair(classes=(3, 0)), images()
    weights = [*pair.parameters()]
    terms = log_weight(pair, x, torch.tensor([2, 1, 0]))
    expected = torch.autograd.grad(-sum(terms.values()).mean(), weights)
    loss = -pair.train(training)(x, label=torch.tensor([2, 1, 0]), seed=0).mean()
    loss.backward()
    torch.testing.assert_close([w.grad for w in weights], [*expected])
    slope = torch.autograd.grad(pair(x.requires_grad_()).sum(), x)[0]
    assert slope.abs().max() > 0
    assert not pair.elbo(x).requires_grad
    assert torch.equal(pair.elbo(x, n_noise=2), pair(x, n_noise=2, first_index=0).detach())
    data = random_dataset(3, labels=torch.tensor([2, 1, 0]))
    assert not score_pair(pair, data).discretized.requires_grad
    assert not classify(pair, data).log_likelihoods.requires_grad
    assert not pair.sample(1).requires_grad


@pytest.mark.parametrize("training", [False, True])
def test_the_bound_runs_the_hooks_of_the_pair_itself(training: bool) -> None:
    """Also in training mode, where a copy without dropout computes the bound."""

    class Adapter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def hook(self, layer: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
            return output * self.scale

    pair, adapter = tiny_pair().train(training), Adapter()
    pair.noisy.head.register_forward_hook(adapter.hook)
    pair(images()).sum().backward()
    assert adapter.scale.grad is not None
