"""Philox: known answers; words, and noise of the smoothing, as functions of their counter."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dsmooth
from dsmooth import _extension
from dsmooth.philox import Stream, image_words, philox4x32, to_uniform
from dsmooth.smoothing import SMOOTHINGS
from tests.helpers.data_makers import refuses
from tests.helpers.gated_cases import needs_extension
from tests.helpers.networks import tiny_pair

pytestmark = pytest.mark.quick

word = st.integers(0, 2**32 - 1)
KNOWN = json.loads((Path(__file__).parent / "golden" / "logistic_mixture.json").read_text())


@pytest.mark.parametrize("case", KNOWN["philox4x32_10"])
def test_known_answers(case: dict[str, list[str]]) -> None:
    counter = torch.tensor([int(word, 16) for word in case["counter"]])
    key = (int(case["key"][0], 16), int(case["key"][1], 16))
    assert philox4x32(counter, key).tolist() == [int(word, 16) for word in case["output"]]


def test_counter_is_position_index_stream_and_repeat() -> None:
    """Whatever the other images are."""
    seed, first = 0x0123456789ABCDEF, 0x1_0000_0000
    words = image_words(3, 8, seed=seed, first_index=first, stream=Stream.CLEAN_NOISE, repeat=9)
    for image, position in itertools.product(range(3), range(8)):
        counter = torch.tensor([position, image, 1, int(Stream.CLEAN_NOISE) | 9 << 8])
        expected = philox4x32(counter, (0x89ABCDEF, 0x01234567))
        assert torch.equal(words[image, position], expected)


def test_uniforms_are_inside_the_unit_interval_and_exact_in_float32() -> None:
    u = to_uniform(torch.tensor([0, 2**32 - 1, 2**31]))
    assert u.tolist() == [2.0**-24, 1 - 2.0**-24, 0.5 + 2.0**-24]
    assert torch.equal(u.float().double(), u)


def test_streams_have_numbers_of_their_own() -> None:
    assert len(Stream) == len(Stream.__members__)


def test_numbers_out_of_range() -> None:
    ends = {"seed": 2**64, "first_index": 2**63, "repeat": 2**24}
    mistakes = [(name, x, "must lie in 0") for name, end in ends.items() for x in (-1, end)]
    for name in ("seed", "first_index"):
        mistakes += [(name, x, f"must be a whole number, got {x}") for x in (1.5, None, True)]
    for name, wrong, words in mistakes:
        given = {"seed": 0, "stream": Stream.SAMPLE, name: wrong}
        refuses(f"`{name}` {words}", image_words, 1, 1, **given)


@needs_extension
@given(counter=st.lists(word, min_size=4, max_size=4), key=st.lists(word, min_size=2, max_size=2))
def test_same_words_as_python(counter: list[int], key: list[int]) -> None:
    words = philox4x32(torch.tensor(counter), (key[0], key[1])).tolist()
    assert _extension.extension().philox4x32_10(counter, key) == words


KINDS = sorted(SMOOTHINGS)


@pytest.mark.parametrize("scale", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_density_integrates_to_one_and_entropy_is_its_mean(kind: str, scale: float) -> None:
    q = SMOOTHINGS[kind](scale)
    wide = SMOOTHINGS[kind](1e308 * scale if scale < 1 else 1e-308 * scale)
    assert wide.entropy(2) == pytest.approx(q.entropy(2) + 2 * math.log(wide.scale / scale))
    edge = scale if kind == "uniform" else 40 * scale
    t = torch.linspace(-edge, edge, 400_001, dtype=torch.float64)
    log_p = q.log_density(t)
    assert float(torch.trapezoid(log_p.exp(), t)) == pytest.approx(1, abs=1e-6)
    entropy = -float(torch.trapezoid(log_p.exp() * log_p, t))
    assert q.entropy(1) == pytest.approx(entropy, abs=1e-6)
    assert q.entropy(784) == pytest.approx(784 * entropy, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_quantile_inverts_the_distribution_function(kind: str) -> None:
    q = SMOOTHINGS[kind](0.7)
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    noise = q.quantile(u)
    assert (noise.diff() > 0).all()
    # d quantile / du = 1 / density, by differences in u
    step = 1e-6
    slope = (q.quantile(u + step) - q.quantile(u - step)) / (2 * step)
    torch.testing.assert_close(slope, 1 / q.log_density(noise).exp(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(noise, -noise.flip(0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_a_function_of_seed_index_and_repeat(kind: str) -> None:
    q = SMOOTHINGS[kind](0.3)
    x = torch.rand(5, 3, 3, 5)  # 45 pixels: not a multiple of Philox's four words
    whole = q.sample(x, seed=9, first_index=100, repeat=2)
    assert whole.shape == x.shape
    assert whole.dtype == x.dtype
    for i in range(5):
        one = q.sample(x[i : i + 1], seed=9, first_index=100 + i, repeat=2)
        assert torch.equal(one[0], whole[i])
    assert q.sample(x[:0]).shape == (0, 3, 3, 5)
    assert q.log_prob(x[:0], x[:0]).shape == (0,)
    for other in ({"seed": 8}, {"first_index": 101}, {"repeat": 1}):
        arguments = {"seed": 9, "first_index": 100, "repeat": 2, **other}
        assert not torch.equal(q.sample(x, **arguments), whole)
    assert torch.equal(q.sample(x, seed=0), q.sample(x, first_index=0))
    torch.manual_seed(3)
    fresh = q.sample(x)
    assert not torch.equal(q.sample(x), fresh)
    torch.manual_seed(3)
    assert torch.equal(q.sample(x), fresh)


def test_uniform_density_is_zero_outside() -> None:
    q = dsmooth.UniformSmoothing(0.5)
    assert q.log_density(torch.tensor([-0.6, 0.6])).tolist() == [-math.inf, -math.inf]
    x = torch.rand(4, 1, 32, 32) * 2 - 1
    for scale in (1e-6, 1e-3, 0.5, 7.0, 1e5):  # a sum is rounded
        q = dsmooth.UniformSmoothing(scale)
        assert q.log_prob(q.sample(x), x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_density_is_summed_in_float32_at_least(kind: str, dtype: torch.dtype) -> None:
    q = SMOOTHINGS[kind](0.3)
    x = (torch.rand(4, 1, 32, 32) * 2 - 1).to(dtype)
    x_tilde = q.sample(x)
    found, expected = q.log_prob(x_tilde, x), q.log_density(x_tilde.double() - x.double(), dtype)
    torch.testing.assert_close(found, expected.sum((1, 2, 3)).float(), rtol=1e-5, atol=1e-3)


def test_bad_scales_and_shapes() -> None:
    x, q = torch.zeros(1, 1, 4, 4), dsmooth.LaplaceSmoothing(0.5)
    for other, kind in ((x.byte(), "torch.uint8"), (x.numpy(), "ndarray")):
        refuses(f"x must be a floating-point tensor .*got {kind}", q.sample, other, error=TypeError)
    refuses(r"x_tilde must have shape \(1, 1, 4, 4\)", q.log_prob, torch.cat([x, x]), x)
    for scale in (0.0, -1.0, math.inf, math.nan):
        refuses("scale must be positive and finite", dsmooth.GaussianSmoothing, scale)


def test_a_subclass_is_not_taken_for_its_base(tmp_path: Path) -> None:
    """Its noise may be other noise: saved as its base it would change."""
    wide = type("Wide", (dsmooth.GaussianSmoothing,), {})
    pair = tiny_pair()
    pair = dsmooth.SmoothedPair(pair.noisy, pair.denoiser, wide(0.5), (8, 8))
    refuses("needs gaussian smoothing, got Wide", pair.single_step, torch.zeros(1, 1, 8, 8))
    refuses("smoothing of the library, not with a Wide", pair.save_pretrained, tmp_path / "x")
