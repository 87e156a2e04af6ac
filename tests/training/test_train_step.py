"""A step stays on the device, and can be replayed; one buffer of parameters; Muon's kernels."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, get_args
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dsmooth
from dsmooth import machine
from dsmooth.cli import explain
from dsmooth.config import OptimizerName
from dsmooth.data import load_dataset
from dsmooth.functional import use_impl
from dsmooth.functional.device_words import device_words
from dsmooth.nn.layers import WeightNormConv
from dsmooth.philox import Stream, image_words
from dsmooth.pretrained.runs import RunFolder
from dsmooth.training import NonFiniteLoss, loop, plan, step, train
from dsmooth.training.checkpoint import newest_checkpoint, read_checkpoint, restore
from dsmooth.training.optimizers import (
    MOMENTUM,
    FlatMuon,
    FlatParameters,
    Group,
    kernels_of,
    padded_together,
    polar_operator,
    wide,
)
from dsmooth.training.step import READ_STEPS, TrainState, kernel_rate
from tests.helpers.data_makers import random_dataset, refuses
from tests.helpers.tiny_runs import ROLES, tiny

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
# Operations whose result, or its shape, is a number on the host.
READ_BACK = ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select")


class ReadBack(TorchDispatchMode):
    """Keeps the names of operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.partition("::")[2], kwargs or {}
        given = torch.device(kwargs.get("device") or "cuda")
        if name in READ_BACK or (name == "_to_copy" and given.type == "cpu"):
            self.names.append(name)
        return func(*args, **kwargs)


class OnCudaAlone(TorchDispatchMode):
    """Refuses every tensor that is not on the pretended device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        assert all(tensor.device == CUDA for tensor in tensors), func
        return result


@pytest.mark.quick
@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
@pytest.mark.parametrize("role", ROLES)
def test_steps_read_nothing_back(role: str, optimizer: str) -> None:
    """Over the end of an epoch, with all that a step can have."""
    config = tiny(role, accumulate=2, clip_norm=1.0, optimizer=optimizer, flip=True)
    trained = TrainState(config, random_dataset(12), CPU)
    with ReadBack() as reads:
        for _ in range(3):
            trained.step()
    assert reads.names == []
    assert len(trained.results()) == 3


def test_the_gradient_of_a_batch_is_clipped_and_reported_as_it_was() -> None:
    """And Adam has the decay rates of the settings."""
    for limit in (1e3, 1e-3):
        state = TrainState(tiny(clip_norm=limit, betas=(0.5, 0.7)), random_dataset(12), CPU)
        state.step()
        norm, clipped = state.results()[0].gradient_norm, state.optimizer.flat.gradient.norm()
        assert 0.01 < norm < 100
        assert float(clipped) == pytest.approx(min(norm, limit), rel=1e-3)
    assert [group["betas"] for group in state.optimizer.adam.param_groups] == [(0.5, 0.7)]
    state.rows[1, 1], state.steps = torch.inf, 2
    refuses("gradient's norm inf", state.results, error=NonFiniteLoss)


def test_a_step_that_takes_too_much_memory_says_what_takes_less(monkeypatch) -> None:
    config = tiny(accumulate=2)
    state = TrainState(config, random_dataset(12), CPU)
    full = MagicMock(side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to"))
    monkeypatch.setattr(state, "_take_step", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"8 images.*CUDA.*`accumulate=4`$") as caught:
        state.step()
    assert "--accumulate 4" in explain(caught.value, ["accumulate"])


def test_the_dropout_of_a_step_has_a_seed_of_64_bits() -> None:
    state, seeds = TrainState(tiny(seed=5), random_dataset(12), CPU), []
    state.model.register_forward_pre_hook(
        lambda network, args, named: seeds.append(int(named["seed"])), with_kwargs=True
    )
    for images_seen in (0, 8):
        state.step()
        words = image_words(1, 1, seed=5, first_index=images_seen, stream=Stream.DROPOUT)
        low, high = words[0, 0, :2].tolist()
        assert seeds[-1] % 2**64 == low + (high << 32)


def test_checkpoints_are_minutes_apart(tmp_path, monkeypatch) -> None:
    """A batch of eight images takes 24 seconds."""
    now, saved, run, step = 0.0, [], RunFolder(tmp_path), TrainState.step
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def slow(state: TrainState) -> None:
        nonlocal now
        now += 24
        saved.append(read_checkpoint(run.checkpoint).images_seen)
        step(state)

    monkeypatch.setattr(TrainState, "step", slow)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 60.0)
    train(tiny(images=80), run.path, dataset=random_dataset(20))
    assert set(saved) == {0, 24, 48, 72}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # the EMA's copy
def test_a_step_takes_nothing_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a pretended GPU, without numbers; torch's own backward and Adam would need a driver."""
    # A seed of its own: the order of images is kept, here of pretended numbers.
    config = tiny("denoiser", seed=9, clip_norm=1.0, clean_noise=0.01, optimizer="muon", flip=True)
    config = replace(config, data_init=False, graph="off", model=replace(config.model, atoms="all"))
    monkeypatch.setattr(dsmooth.PixelCNNpp, "to", lambda model, *args, **keywords: model)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    images = random_dataset(12)
    with FakeTensorMode(allow_non_fake_inputs=True), use_impl("reference"), CUDA:
        trained = TrainState(config, images, CUDA)

        def backward(loss: Tensor) -> None:
            for parameter in trained.model.parameters():
                parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)
        monkeypatch.setattr(trained.optimizer.adam, "step", lambda: None)
        with OnCudaAlone():
            trained._update()
        with OnCudaAlone(), pytest.raises(AssertionError, match="lift_fresh"):
            torch.tensor([1, 2])


def test_a_loss_that_is_not_finite_is_found_and_spares_the_checkpoint(tmp_path, small_runs) -> None:
    """The first update makes weights of which the second loss is not finite."""
    config, run = tiny(images=8 * 2 * READ_STEPS, seed=7, learning_rate=1e38), RunFolder(tmp_path)
    with pytest.raises(NonFiniteLoss, match=r"loss is .* at step 1 \(8 images\) with seed 7"):
        train(config, run.path)
    kept = TrainState(config, plan.load_data(config)[0], CPU)
    restore(run, kept, newest_checkpoint(run))
    kept.check_finite()
    assert not run.weights.exists()


def test_a_graph_that_must_be_and_cannot_says_why() -> None:
    words = "needs a CUDA device, and this run computes on cpu"
    refuses(words, step.check_step, tiny(graph="on"), CPU)
    step.check_step(tiny(graph="on"), CUDA)
    step.check_step(tiny(), CPU)


def test_each_call_of_a_replayed_step_is_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device: nothing is executed inside a recording."""
    cuda, executed, recorded = MagicMock(), [], []
    monkeypatch.setattr(step.torch, "cuda", cuda)
    recorded_graph, recording = cuda.CUDAGraph.return_value, cuda.graph.return_value

    def work() -> None:
        inside = recording.__enter__.called and not recording.__exit__.called
        (recorded if inside else executed).append(1)

    run = step.ReplayedStep(work, CUDA)
    for calls in range(1, step.WARM_UP + 4):
        run()
        assert len(executed) + recorded_graph.replay.call_count == calls
    assert len(recorded) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("role", ROLES)
def test_replayed_steps_are_the_steps(role: str) -> None:
    """A captured run against an uncaptured one, on a GPU: the same losses and weights."""
    config = tiny(role, accumulate=2, clip_norm=1.0, optimizer="muon")
    runs = {}
    for how in ("on", "off"):
        trained = TrainState(replace(config, graph=how), random_dataset(12), CUDA)
        for _ in range(10):
            trained.step()
        runs[how] = [reading.loss for reading in trained.results()], trained.tensors()
    assert runs["on"][0] == pytest.approx(runs["off"][0], rel=1e-5)
    for name, tensor in runs["on"][1].items():
        torch.testing.assert_close(tensor, runs["off"][1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("processor", "sets", "fast"),
    [
        ("AMD EPYC 9R14", ["avx512", "avx512bf16"], True),
        ("AMD EPYC 7R13", ["avx2"], False),
        ("Intel(R) Xeon(R) Processor", ["avx512", "avx512bf16"], False),
        ("Intel(R) Xeon(R) Processor", ["avx512", "avx512bf16", "amx"], True),
    ],
)
def test_bfloat16_is_chosen_where_it_is_faster(monkeypatch, processor, sets, fast) -> None:
    capabilities = {"avx512_bf16": "avx512bf16" in sets}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(machine, "cpu_name", lambda: processor)
    monkeypatch.setattr(machine, "instruction_sets", lambda: sets)
    data = random_dataset(12)
    config = plan.fill_in(tiny(precision="auto"), data, data, CPU)
    assert config.precision == ("bfloat16" if fast else "float32")


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_parameters_are_parts_of_one_buffer_and_stay_what_they_are(optimizer: str) -> None:
    """Values, and memory order; an update of the buffer is one of the network."""
    config = tiny("denoiser", optimizer=optimizer, data_init=False)
    state = TrainState(config, random_dataset(12), CPU)
    flat = state.optimizer.flat
    assert set(flat.parameters) == {name for name, _ in state.model.named_parameters()}
    for name, parameter in state.model.named_parameters():
        assert parameter.data_ptr() == flat.values.data_ptr() + 4 * flat.offsets[name]
        assert parameter.data_ptr() % 16 == flat.values.data_ptr() % 16
        assert parameter.ndim != 4 or parameter.is_contiguous(memory_format=torch.channels_last)
    elements = sum(parameter.numel() for parameter in state.model.parameters())
    assert flat.values.count_nonzero() <= elements <= flat.values.numel()
    state.step()
    used = torch.zeros_like(flat.values)
    for view in flat.views(used).values():
        view.fill_(1)
    buffers = flat.values, flat.gradient, state.average.values
    assert all(not buffer[used == 0].any() for buffer in buffers)


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_the_loss_falls(optimizer: str) -> None:
    config = tiny("plain", optimizer=optimizer, images=400, learning_rate=5e-3)
    digits = load_dataset("mnist", "train")
    state = TrainState(config, replace(digits, images=digits.images[:, :, 8:20, 8:20]), CPU)
    for _ in range(50):
        state.step()
    losses = [reading.loss for reading in state.results()]
    assert sum(losses[-10:]) < sum(losses[:10]) - 3


def test_the_state_of_the_other_optimizer_is_refused() -> None:
    for names in itertools.permutations(get_args(OptimizerName)):
        one, other = (
            TrainState(tiny("plain", optimizer=name), random_dataset(12), CPU) for name in names
        )
        for state in (one, other):
            state.step()
        refuses(r"x holds the state of another .* differ", one.restore, other.tensors(), 8, 1, "x")


@pytest.mark.gpu
def test_words_and_noise_are_those_of_the_cpu() -> None:
    for seed, first in ((0, 0), (2**64 - 1, 2**32 - 2)):
        where = {"seed": seed, "first_index": first, "stream": Stream.SMOOTHING, "repeat": 3}
        expected = image_words(5, 200, **where)
        assert torch.equal(device_words(5, 200, device="cuda", **where).cpu(), expected)
    x, smoothing = torch.rand(4, 1, 28, 28), dsmooth.GaussianSmoothing(0.5)
    expected, got = (smoothing.sample(t, seed=1, first_index=2) for t in (x, x.cuda()))
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-6, atol=1e-6)


def random_matrices(n: int, rows: int, columns: int, smallest: float) -> Tensor:
    """(n, rows, columns) with singular values from 1 down to `smallest`."""
    generator = torch.Generator().manual_seed(rows + columns)
    u, _, vh = torch.linalg.svd(
        torch.randn(n, rows, columns, generator=generator), full_matrices=False
    )
    values = torch.logspace(0, math.log10(smallest), min(rows, columns))
    return u * values @ vh


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24), (1, 7), (7, 1)])
def test_the_polar_factor_keeps_singular_vectors_and_sets_values_to_one(shape) -> None:
    """Whatever the size of a gradient."""
    for scale in (1, 1e-6, 1e6):
        x = wide(scale * random_matrices(3, *shape, smallest=0.005))
        factor = polar_operator(x @ x.mT) @ x
        u, _, vh = torch.linalg.svd(x, full_matrices=False)
        values = u.mT @ factor @ vh.mT
        diagonal = values.diagonal(dim1=1, dim2=2)
        assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-3
        assert 0.87 < diagonal.min() <= diagonal.max() < 1.13
    assert polar_operator(torch.zeros(2, 3, 3)).isfinite().all()


def convolutions(shapes: Iterable[tuple[int, int, tuple[int, int], bool]]) -> list[WeightNormConv]:
    """Layers with gradients, channels_last as those of a network in training."""
    torch.manual_seed(5)
    layers = []
    for fan_in, fan_out, size, transposed in shapes:
        layer = WeightNormConv(fan_in, fan_out, size, transposed=transposed)
        layer = layer.to(memory_format=torch.channels_last)
        layer.weight_v.grad = torch.randn_like(layer.weight_v)
        layers.append(layer)
    return layers


def muon_of(*layers: WeightNormConv) -> FlatMuon:
    """An optimiser of the kernels of some layers, whose gradients it takes."""
    kernels = kernels_of(nn.ModuleList(layers))
    flat = FlatParameters({name: conv.weight_v for name, conv in kernels.items()})
    flat.gradient.normal_(generator=torch.Generator().manual_seed(3))
    return FlatMuon(kernels, flat)


def filters(v: Tensor, transposed: bool) -> Tensor:
    """A kernel with one row per filter: (D, kh kw C)."""
    return (v.permute(1, 2, 3, 0) if transposed else v.permute(0, 2, 3, 1)).flatten(1)


SHAPES = [(4, 6, (2, 3), False), (4, 6, (2, 3), False), (6, 4, (2, 2), True), (2, 9, (1, 1), False)]


def test_a_frozen_kernel_keeps_still() -> None:
    layers = convolutions(SHAPES[:2])
    layers[1].requires_grad_(False)
    before = layers[1].weight_v.clone()
    muon = muon_of(*layers)
    muon.step(0.1)
    assert torch.equal(layers[1].weight_v, before)
    assert set(muon.flat.parameters) == {"0.weight_v"}


@pytest.mark.quick
def test_a_step_has_the_momentum_of_nesterov() -> None:
    """Of each kernel by itself, of one shape too. The angle is the root mean square of those of the
    filters, which have length one."""
    layers = convolutions(SHAPES)
    weights = [layer.affine()[0].detach() for layer in layers]
    muon, averages = muon_of(*layers), [torch.zeros(1)] * len(layers)
    # The functions are the same.
    torch.testing.assert_close([layer.affine()[0].detach() for layer in layers], weights)
    for _ in range(2):
        expected = []
        for number, layer in enumerate(layers):
            v = filters(layer.weight_v.detach().clone(), layer.transposed)
            layer.weight_v.grad = torch.randn_like(layer.weight_v)
            gradient = filters(layer.weight_v.grad, layer.transposed).clone()
            averages[number] = torch.lerp(gradient, averages[number], MOMENTUM)
            x = wide(torch.lerp(gradient, averages[number], MOMENTUM)[None])
            turned = (polar_operator(x @ x.mT) @ x)[0]
            turned = turned.mT if len(turned) < len(v) else turned
            v -= 0.1 * max(1.0, v.shape[0] / v.shape[1]) ** 0.5 * turned
            expected.append(v / v.norm(dim=1, keepdim=True))
        muon.flat.gather_gradients()
        muon.step(torch.tensor(0.1))
        kernels = [filters(layer.weight_v.detach(), layer.transposed) for layer in layers]
        torch.testing.assert_close(kernels, expected, rtol=0, atol=2e-6)


def test_gram_matrices_of_few_kernels_are_padded_to_the_next_size() -> None:
    def sizes(*groups: tuple[int, int]) -> list[list[int]]:
        kernels = [Group(d, 1000, False, count, 0) for d, count in groups]
        return [[group.n_filters for group in part] for part in padded_together(kernels)]

    assert sizes((40, 90), (80, 60), (30, 1), (4, 1)) == [[4, 30, 40], [80]]
    assert sizes((160, 90), (320, 60), (100, 1)) == [[100], [160], [320]]


def test_the_angle_follows_from_the_number_of_steps() -> None:
    config = tiny(optimizer="muon", images=8000, batch_size=8)
    assert kernel_rate(replace(config, kernel_rate=0.03)) == 0.03
    quarter = kernel_rate(replace(config, images=32_000))
    assert kernel_rate(config) == pytest.approx(2 * quarter)
    assert kernel_rate(replace(config, images=8)) == kernel_rate(replace(config, images=80))
