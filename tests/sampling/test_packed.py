"""The weights that a cached sampler keeps: packed once, of the model as it was, and checked."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from typing import Any

import pytest
import torch

import dsmooth
from dsmooth._extension import extension, instruction_sets
from dsmooth.config import Precision
from dsmooth.nn import PixelCNNpp
from dsmooth.sampling import CachedSampler, cached
from dsmooth.sampling.cached import sample_images
from dsmooth.sampling.program import Program
from tests.helpers.data_makers import refuses
from tests.helpers.networks import BYTES, GAUSSIAN, network
from tests.helpers.sampler_checks import BF16_INSTRUCTION_SETS, INSTRUCTION_SETS


def test_the_seed_and_the_weights_it_was_made_of_decide() -> None:
    """In training mode without dropout; weights in float64 are cast."""
    model = network()
    sampler = CachedSampler(model)
    x = sampler.sample(2, 4, 4, seed=0)
    assert torch.equal(x, sampler.sample(2, 4, 4, seed=0))
    for seed in (1, 2**32):
        assert not torch.equal(x, sampler.sample(2, 4, 4, seed=seed))
    assert torch.equal(CachedSampler(model.train()).sample(2, 4, 4), x)
    double = CachedSampler(copy.deepcopy(model).double()).sample(2, 4, 4)
    assert double.dtype == torch.float32
    torch.testing.assert_close(double, x)
    for value in (1e-42, 3e38):  # float32, that of the network, does not hold the norm
        other = copy.deepcopy(model)
        other.stem_u.weight_v.data.fill_(value)
        refuses("a filter has a norm .* cannot represent", CachedSampler, other)
    with torch.no_grad():
        model.stem_u.weight_g.fill_(float("nan"))
    assert torch.equal(sampler.sample(2, 4, 4), x)


def test_a_model_is_packed_again_only_where_a_weight_or_the_type_changed() -> None:
    model, other = network(), copy.deepcopy(network())

    def packed(model: PixelCNNpp, precision: Precision = "float32") -> CachedSampler:
        sample_images(model, 1, height=4, width=4, precision=precision)
        return cached._PACKED[model][getattr(torch, precision)][1]

    first = packed(model)
    assert packed(model) is first
    assert packed(other) is not first
    pair = dsmooth.SmoothedPair(model, network("stack"), dsmooth.GaussianSmoothing(1), (4, 4))
    pair.sample(3, precision="float32")
    assert packed(model) is first  # not packed again by a pair
    model.stem_u.weight_v.data.mul_(-1)  # which no version counter of a tensor shows
    changed = packed(model)
    assert torch.equal(changed.sample(2, 4, 4), CachedSampler(model).sample(2, 4, 4))
    assert not torch.equal(changed.sample(2, 4, 4), first.sample(2, 4, 4))
    assert packed(model, "bfloat16").dtype == torch.bfloat16
    assert packed(model) is changed  # both stay
    other.config = dataclasses.replace(other.config, **GAUSSIAN)
    assert torch.equal(packed(other).sample(2, 4, 4), CachedSampler(other).sample(2, 4, 4))
    half = packed(model.bfloat16())
    assert torch.equal(half.sample(2, 4, 4), CachedSampler(model).sample(2, 4, 4))


def test_weights_that_change_while_they_are_packed_and_change_back(monkeypatch) -> None:
    """As where another thread swaps averaged weights in and out again."""
    model, others = network(), network()
    draw = partial(sample_images, n=2, height=4, width=4, precision="float32")
    before = draw(network())

    class Swapped(CachedSampler):
        def __init__(self, packed: PixelCNNpp, *args: Any) -> None:
            model.stem_u.weight_v.data.mul_(-1)
            super().__init__(packed, *args)
            model.stem_u.weight_v.data.mul_(-1)

    monkeypatch.setattr(cached, "CachedSampler", Swapped)
    for _ in range(2):
        assert torch.equal(draw(model), before)
    model.config = others.config = dataclasses.replace(model.config, **GAUSSIAN)
    x = draw(model)
    assert not torch.equal(x, before)
    assert torch.equal(x, CachedSampler(others).sample(2, 4, 4))


def test_bad_models() -> None:
    linear: Any = torch.nn.Linear(1, 1)
    words, model = "the model is a Linear, not the library's own", network()
    refuses(words, CachedSampler, linear, error=TypeError)
    refuses("`device` must be one of cpu, cuda, got .meta", CachedSampler, network().to("meta"))
    words = r"torch.float32, torch.bfloat16, got torch.float16"
    refuses(words, CachedSampler, model, torch.float16)
    words = r"must be auto or one of generic, .*got mmx"
    refuses(words, CachedSampler, model, instruction_set="mmx")
    model.down[1].ul[0].conv_in.bias.data[2] = float("inf")
    refuses(r"finite.*down\.1\.ul\.0\.conv_in\.bias", CachedSampler, model)


@pytest.mark.parametrize("instruction_set", instruction_sets())
def test_every_instruction_set_has_code_of_its_own_or_of_one_below(instruction_set: str) -> None:
    here = instruction_sets()
    model = network()
    own = INSTRUCTION_SETS[: here.index(instruction_set) + 1][-1]
    assert CachedSampler(model, instruction_set=instruction_set)._native.instruction_set == own
    # AVX-512 multiplies bfloat16 only in its BF16 extension, where the CPU has it.
    own = "avx512bf16" if instruction_set == "avx512" else instruction_set
    own = own if own in here else BF16_INSTRUCTION_SETS[-1]
    sampler = CachedSampler(model, torch.bfloat16, instruction_set=instruction_set)
    assert sampler._native.instruction_set == own


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (lambda p: p.ops[3], {"act_out": 1000}, "operation 3: no such cache"),
        (lambda p: p.ops[3], {"terms": []}, "operation 3: number of terms"),
        (lambda p: p.ops[3].terms[0], {"drow": -3}, "operation 3: a row beyond the padding"),
        (lambda p: p.ops[3].terms[0], {"dcol": 1}, "a tap beyond the padding"),
        (lambda p: p, {"n_atoms": 257}, "number of atoms"),
        (lambda p: p, {"n_atoms": 1}, "must have 10 channels for n_mix 3 and 1 atoms, got 265"),
        (lambda p: p, {"n_mix": 0}, "n_mix must lie in 1 .. 65535, got 0"),
    ],
)
def test_native_code_checks_programs(part, changes, message) -> None:
    program = Program(network(**BYTES))
    for name, value in changes.items():
        object.__setattr__(part(program), name, value)
    refuses(message, extension().CpuSampler, program, False, "auto")
