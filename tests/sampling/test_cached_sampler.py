"""The cached sampler: its network teacher-forced, the same bits in any division, packed weights."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import threading
import time
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth._extension import extension, instruction_sets
from dsmooth.config import Precision
from dsmooth.functional import concat_elu
from dsmooth.functional.logistic_mixture import Mixture
from dsmooth.nn import PixelCNNpp
from dsmooth.nn.layers import WeightNormConv
from dsmooth.sampling import CachedSampler, cached, sample_images
from dsmooth.sampling.cached import PackedNetwork
from dsmooth.sampling.program import Program
from dsmooth.sampling.resolve import resolve
from tests.helpers.data_makers import refuses
from tests.helpers.networks import BYTES, GAUSSIAN, MIXTURES, network
from tests.helpers.sampler_checks import (
    BF16_INSTRUCTION_SETS,
    FIRST,
    INSTRUCTION_SETS,
    SEED,
    context_for,
    labels_of,
    make_sampler,
    teacher_forced,
)

# A CUDA device runs the same tests as an instruction set.
DTYPES = [torch.float32, torch.bfloat16]
CUDA = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []


def check_teacher_forced(
    sampler: CachedSampler, model, size, *, temperature=1.0, n=3, label=None, guidance=0.0
) -> None:
    context = context_for(model, n, *size)
    given = {"context": None if context is None else context.to(sampler.device), "label": label}
    where: dict[str, Any] = {"seed": SEED, "first_index": FIRST, "temperature": temperature}
    x = sampler.sample(n, *size, guidance=guidance, **where, **given).cpu()
    model = copy.deepcopy(model).cpu()
    assert x.isfinite().all()
    exact, distance = teacher_forced(model, x, context, torch.float64, temperature, label, guidance)
    eager, _ = teacher_forced(model, x, context, torch.float32, temperature, label, guidance)
    # Rounding may take a discretized value to the next level; a component only at a boundary.
    discretized = model.config.likelihood == "discretized"
    flipped = ((x - exact).abs() > (1.5 / 127.5 if discretized else 1e-3)).any(1, keepdim=True)
    assert (distance[flipped] < 1e-5).all()
    assert flipped.sum() <= 1
    kept = ~(flipped | ((eager - exact).abs() > 1e-3).any(1, keepdim=True)).expand_as(x)
    error, eager_error = ((y - exact)[kept].abs().max() for y in (x, eager))
    # Guidance w adds 1 + w and w times the roundings of two passes.
    rounding = 4 * (1 + 2 * guidance) * torch.finfo(torch.float32).eps
    rounding *= exact[kept].abs().max().clamp(min=1)
    if discretized:
        assert ((x - exact).abs()[kept] > 0.5 / 127.5).sum() <= 1  # a level changed
    else:
        assert error <= 2 * eager_error + rounding


@pytest.mark.grid
@pytest.mark.parametrize("code", [*INSTRUCTION_SETS, "sequential", *CUDA])
@pytest.mark.parametrize("conditioning", ["none", "stack", "concat"])
@pytest.mark.parametrize(("channels", "temperature"), [(1, 0.7), (3, 1.0)])
@pytest.mark.parametrize("classes", ["none", "hard", "guided", "hidden"])
@pytest.mark.parametrize(
    "mixture", [*MIXTURES.values(), {"head_filters": 3}], ids=[*MIXTURES, "hidden"]
)
def test_equals_the_network_teacher_forced(
    mixture, classes, channels, temperature, conditioning, code
) -> None:
    n_classes = 0 if classes == "none" else 3
    model = network(conditioning, channels=channels, n_classes=n_classes, **mixture)
    sampler = make_sampler(model, torch.float32, code)
    label = labels_of(3, n_classes, hidden=classes == "hidden")
    how = {"temperature": temperature, "guidance": 0.7 if classes == "guided" else 0.0}
    check_teacher_forced(sampler, model, (8, 8), label=label, **how)


@pytest.mark.grid
@pytest.mark.parametrize("code", ["auto", *CUDA])
@pytest.mark.parametrize("conditioning", ["none", "stack", "concat"])
@pytest.mark.parametrize(
    ("numbers", "encoder", "size", "temperature"),
    [
        ((1, 1, 1, 1), (0, None), (4, 4), 1.0),
        ((5, 2, 2, 0), (1, 10), (4, 16), 0.5),
        ((8, 3, 10, 2), (0, None), (12, 8), 1.5),
        ((40, 1, 5, 10), (3, None), (8, 4), 1.0),
        ((65, 1, 3, 100), (2, 10), (4, 8), 1.0),
        ((4, 2, 2, 0), (1, 3), (32, 32), 1.0),
    ],
)
def test_every_shape(numbers, encoder, size, temperature, conditioning, code) -> None:
    """numbers: of filters, resnets, components and classes; encoder: its depth and width."""
    names = ("n_filters", "n_resnet", "n_mix", "n_classes", "context_layers", "context_filters")
    shape = dict(zip(names, (*numbers, *encoder), strict=True))
    model = network(conditioning, **shape)
    sampler = make_sampler(model, torch.float32, code)
    label = labels_of(2, model.config.n_classes)
    check_teacher_forced(sampler, model, size, temperature=temperature, n=2, label=label)


@pytest.mark.quick
@pytest.mark.parametrize("code", ["auto", *CUDA])
@pytest.mark.parametrize("conditioning", ["none", "stack", "concat"])
def test_bfloat16_stays_near_the_network(conditioning: str, code: str) -> None:
    """And far from that of other classes."""
    model, label = network(conditioning, n_filters=40, n_classes=3), labels_of(16, 3)
    context = context_for(model, 16, 8, 8)
    sampler = make_sampler(model, torch.bfloat16, code)
    given = {"context": None if context is None else context.to(sampler.device), "label": label}
    x = sampler.sample(16, 8, 8, seed=SEED, first_index=FIRST, **given).cpu()
    exact, other = (
        teacher_forced(model, x, context, torch.float64, 1.0, label + shift)[0]
        for shift in (0, label.roll(1) - label)
    )
    error, swapped = ((x - y).abs().median() for y in (exact, other))
    assert error < 0.02
    assert swapped > 4 * error


@pytest.mark.grid
@pytest.mark.parametrize(("n_filters", "head_filters"), [(7, 0), (16, 0), (40, 0), (16, 9)])
@pytest.mark.parametrize("code", [*BF16_INSTRUCTION_SETS, *CUDA])
@torch.no_grad()
def test_head_of_bfloat16_is_in_float32(code: str, n_filters: int, head_filters: int) -> None:
    """But for the hidden layer's rounding. Layers are what their biases make, at all pixels but the
    first, and near temperature 0 the means are the pixels."""
    model = network(n_filters=n_filters, n_mix=1, head_filters=head_filters)
    for name, layer in model.named_modules():
        if isinstance(layer, WeightNormConv) and layer is not model.head:
            layer.weight_g.zero_()
            layer.bias.normal_(std=0.0 if name.startswith("stem") else 0.5)
            layer.bias.copy_(layer.bias.bfloat16())  # some are weights of a channel of ones
    x = make_sampler(model, torch.bfloat16, code).sample(1, 4, 4, temperature=1e-7).cpu()
    model.double()
    seen = model._seen(torch.zeros(x.shape, dtype=torch.float64))
    operands = torch.nn.functional.elu(model._streams(seen, None, {})[-1][1])
    weight, hidden = model.head.affine()[0][1].view(1, -1, 1, 1), operands[:, :0]
    if head_filters:
        hidden = concat_elu(model.hidden(seen, operands)).bfloat16().double()
        operands = torch.cat([hidden, operands], 1)
    mean = model.head(operands)[:, 1:2]
    rounding = 4 * torch.finfo(torch.float32).eps * ((weight * operands).abs().sum(1, True) + 1)
    in_half = (weight[:, : hidden.shape[1]] * hidden).abs().sum(1, True)
    rounding += (torch.finfo(torch.bfloat16).eps / 2) ** 2 * in_half  # weights of two addends
    assert ((x - mean).abs() <= rounding).all()
    if not head_filters:  # operands in bfloat16 would show
        rounded = (operands.bfloat16().double() * weight.bfloat16().double()).sum(1, True)
        assert (rounded + model.head.bias[1] - mean).abs().max() > 10 * rounding.max()


@pytest.mark.grid
@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        *((torch.float32, name) for name in INSTRUCTION_SETS),
        *((torch.bfloat16, name) for name in BF16_INSTRUCTION_SETS),
        *(pytest.param(dtype, "cuda", marks=pytest.mark.gpu) for dtype in DTYPES if CUDA),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("conditioning", "channels", "fields"),
    [
        ("none", 1, {}),
        ("stack", 1, {"n_classes": 3}),
        ("concat", 1, {}),
        ("none", 1, {"n_classes": 3}),
        ("concat", 1, {"n_classes": 3}),
        ("stack", 3, GAUSSIAN),
        ("stack", 1, BYTES),
    ],
)
@pytest.mark.parametrize("completes", [False, True])
@pytest.mark.parametrize("guidance", [0.0, 0.4])
def test_the_division_of_the_work_changes_no_bit(
    guidance, completes, conditioning, channels, fields, dtype, code
) -> None:
    """And whatever labels the other images have; a row known in all is computed at once."""
    model = network(conditioning, channels=channels, n_filters=9, **fields)
    sampler = make_sampler(model, dtype, code)
    n, size = 600 if code == "cuda" else 64, (4, 8)
    if guidance and not model.config.n_classes:
        return
    context = context_for(model, n, *size)
    classes = labels_of(n, model.config.n_classes, hidden=conditioning == "concat")
    known = mask = None
    if completes:
        random = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(4))
        known, mask = (random * 255).round() / 127.5 - 1, random[:, 0] < 0.5
        mask[:, 1], mask[5], mask[7:9, 2:] = True, True, False

    def draw(first: int = 0, count: int = n, label: Tensor | None = classes, **how: Any) -> Tensor:
        part = slice(first, first + count)
        given = {"context": context, "label": label, "known": known, "mask": mask}
        given = {k: None if t is None else t[part].to(sampler.device) for k, t in given.items()}
        how |= {"seed": SEED, "first_index": FIRST + first, "guidance": guidance}
        return sampler.sample(count, *size, **given, **how)

    expected = draw(threads=1)
    assert len(expected.flatten(1).unique(dim=0)) == n
    for first, count, threads, max_slice in [
        (0, n, 2, None), (0, n, 3, 5), (0, n, 1, n), (0, 1, 1, None), (n - 1, 1, 2, None),
        (5, 1, 4, None), (2, 2, 3, None), (2, 2, 4, None), (30, 7, 2, 2), (57, 7, 1, 1),
        (0, n, 1, 1), (20, 33, 2, 32),
    ]:  # fmt: skip
        part = draw(first, count, threads=threads, max_slice=max_slice)
        assert torch.equal(part, expected[first : first + count]), (first, count, threads)
    if classes is not None:
        others = classes.roll(1, 0)
        others[7] = classes[7]
        mixed = draw(label=others, threads=1)
        assert torch.equal(mixed[7], expected[7])
        assert not torch.equal(mixed[8], expected[8])


@pytest.mark.quick
@pytest.mark.parametrize("shift", [5, 40])
@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_sees_log_scales_below_the_least(channels: int, shift: float) -> None:
    """shift: so that they lie on both sides of it, in the two passes of guidance, or all below."""
    model = network(channels=channels, n_classes=3)
    with torch.no_grad():
        Mixture.of(model.head.bias.view(1, -1, 1, 1), channels).log_scales.sub_(shift)
    sampler = CachedSampler(model)
    for guidance in (0.0, 3.0):
        check_teacher_forced(sampler, model, (8, 8), label=labels_of(3, 3), guidance=guidance)


def test_context_may_be_strided_a_negative_view_or_of_a_graph() -> None:
    model = network("stack", channels=3)
    sampler = CachedSampler(model)
    context = torch.randn(2, 3, 8, 4)
    x = sampler.sample(2, 8, 4, context=context)
    strided, graphed = context.to(memory_format=torch.channels_last), context.clone()
    for same in (strided, torch._neg_view(-context), graphed.requires_grad_()):
        assert torch.equal(sampler.sample(2, 8, 4, context=same), x)
    refuses("context must be finite", sampler.sample, 2, 8, 4, context=context * torch.inf)


@pytest.mark.parametrize(
    ("n", "size", "conditioning", "fields"),
    [
        (8, (512, 512), "none", {"n_filters": 40, "n_resnet": 3}),
        (1, (4, 4096), "none", {"n_filters": 80, "n_resnet": 2}),  # seconds a row
        (1, (128, 128), "concat", {"context_layers": 3, "context_filters": 80}),  # and an encoder
    ],
)
def test_ctrl_c_or_an_error_in_its_progress_ends_a_call(
    n, size, conditioning, fields, monkeypatch
) -> None:
    """Within a second of the CPU, whatever else a machine does."""
    model = network(conditioning, **fields)
    context = context_for(model, n, *size)
    draw = partial(make_sampler(model, torch.float32, "generic").sample, n, *size, context=context)
    started, sent = time.process_time(), []

    def interrupt() -> None:
        while time.process_time() < started + 0.2:
            time.sleep(0.01)
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        draw(threads=2)
    assert time.process_time() - sent[0] < 1
    thread.join()
    monkeypatch.setattr(cached, "advance_to", Mock(side_effect=RuntimeError("enough")))
    if n > 1:
        refuses("enough", draw, error=RuntimeError)


@pytest.mark.gpu
def test_runs_on_the_current_stream_without_waiting() -> None:
    """Behind a long kernel on a side stream the call must come back at once, and use its result."""
    model = network("stack").cuda()
    sampler = CachedSampler(model)
    context = torch.randn(4, 1, 8, 8, device="cuda")
    expected = sampler.sample(4, 8, 8, context=context)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(2_000_000_000)  # cycles: about a second
        late = torch.zeros_like(context)
        late.copy_(context, non_blocking=True)
        x = sampler.sample(4, 8, 8, context=late)
        done = stream.record_event()
        del late  # the stream still reads it
        torch.empty_like(context).fill_(float("nan"))
        assert not done.query()
    done.synchronize()
    assert torch.equal(x, expected)


@pytest.mark.gpu
def test_weights_outlive_the_sampler() -> None:
    model = network().cuda()
    expected = CachedSampler(model).sample(2, 8, 8)
    sampler = CachedSampler(model)  # before the sleep, which its upload would wait for
    torch.cuda._sleep(500_000_000)
    x = sampler.sample(2, 8, 8)
    assert not torch.cuda.current_stream().query()
    del sampler  # before its kernel runs
    junk = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(8)]
    torch.cuda.synchronize()
    assert len(junk) == 8
    assert torch.equal(x, expected)


@pytest.mark.gpu
def test_a_graph_draws_the_same_images() -> None:
    sampler = CachedSampler(network().cuda())
    expected = sampler.sample(2, 8, 8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x = sampler.sample(2, 8, 8)
    x.zero_()
    graph.replay()
    assert torch.equal(x, expected)


@pytest.mark.gpu
def test_images_are_drawn_in_bfloat16_where_the_model_lies() -> None:
    model = network().cuda()
    x = sample_images(model, 3, height=8, width=8, seed=4)
    assert torch.equal(x, CachedSampler(model, torch.bfloat16).sample(3, 8, 8, seed=4))


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

    def packed(model: PixelCNNpp, precision: Precision = "float32") -> PackedNetwork:
        sample_images(model, 1, height=4, width=4, precision=precision)
        return cached._PACKED[model][getattr(torch, precision)][1]

    def drawn(network: PackedNetwork) -> Tensor:
        return network.run(resolve(network, 2, size=(4, 4)))

    first = packed(model)
    assert packed(model) is first
    assert packed(other) is not first
    pair = dsmooth.SmoothedPair(model, network("stack"), dsmooth.GaussianSmoothing(1), (4, 4))
    pair.sample(3, precision="float32")
    assert packed(model) is first  # not packed again by a pair
    model.stem_u.weight_v.data.mul_(-1)  # which no version counter of a tensor shows
    changed = packed(model)
    assert torch.equal(drawn(changed), CachedSampler(model).sample(2, 4, 4))
    assert not torch.equal(drawn(changed), drawn(first))
    assert packed(model, "bfloat16").dtype == torch.bfloat16
    assert packed(model) is changed  # both stay
    other.config = dataclasses.replace(other.config, **GAUSSIAN)
    assert torch.equal(drawn(packed(other)), CachedSampler(other).sample(2, 4, 4))
    half = packed(model.bfloat16())
    assert torch.equal(drawn(half), CachedSampler(model).sample(2, 4, 4))


def test_weights_that_change_while_they_are_packed_and_change_back(monkeypatch) -> None:
    """As where another thread swaps averaged weights in and out again."""
    model, others = network(), network()
    draw = partial(sample_images, n=2, height=4, width=4, precision="float32")
    before = draw(network())

    class Swapped(PackedNetwork):
        def __init__(self, packed: PixelCNNpp, *args: Any) -> None:
            model.stem_u.weight_v.data.mul_(-1)
            super().__init__(packed, *args)
            model.stem_u.weight_v.data.mul_(-1)

    monkeypatch.setattr(cached, "PackedNetwork", Swapped)
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
