"""A step stays on the device: nothing is read back, nothing is sent; and it can be replayed."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, get_args
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dsmooth
from dsmooth import machine
from dsmooth.config import LearningRateSchedule, OptimizerName
from dsmooth.functional import use_impl
from dsmooth.philox import Stream, image_words
from dsmooth.runs import RunFolder
from dsmooth.training import NonFiniteLoss, beginning, step, train
from dsmooth.training.beginning import run_settings
from dsmooth.training.checkpoint import go_on, read_checkpoint
from dsmooth.training.step import READ_STEPS, TrainState, scheduled
from tests.helpers.data_makers import random_dataset, refuses
from tests.helpers.tiny_runs import ROLES, tiny

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
# Operations whose result, or its shape, is a number on the host.
READ_BACK = ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select")


class NoReadBack(TorchDispatchMode):
    """Refuses what would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.partition("::")[2], kwargs or {}
        given = torch.device(kwargs.get("device") or "cuda")
        assert name not in READ_BACK, name
        assert name != "_to_copy" or given.type != "cpu", name
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
    """Over the end of an epoch, with all that a step can have; reading them is refused."""
    config = tiny(role, accumulate=2, clip_norm=1.0, optimizer=optimizer, flip=True)
    trained = TrainState(config, random_dataset(12), CPU)
    with NoReadBack():
        for _ in range(3):
            trained.step()
    assert len(trained.read()) == 3
    with NoReadBack(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        float(trained.position)


def test_the_gradient_of_a_batch_is_clipped_and_reported_as_it_was() -> None:
    """And Adam has the decay rates of the settings."""
    state = TrainState(tiny(clip_norm=1e-3, betas=(0.5, 0.7)), random_dataset(12), CPU)
    state.step()
    norms = [parameter.grad.norm() for parameter in state.parameters]
    assert float(torch.stack(norms).norm()) == pytest.approx(1e-3, rel=1e-3)
    assert state.read()[0].gradient_norm > 0.01
    assert [group["betas"] for group in state.optimizer.adam.param_groups] == [(0.5, 0.7)]
    state.rows[1, 1], state.steps = torch.inf, 2
    refuses("gradient's norm inf", state.read, error=NonFiniteLoss)


def test_the_dropout_of_a_step_has_a_seed_of_64_bits() -> None:
    state, seeds = TrainState(tiny(seed=5), random_dataset(12), CPU), []
    state.network.register_forward_pre_hook(
        lambda network, args, named: seeds.append(int(named["seed"])), with_kwargs=True
    )
    for images_seen in (0, 8):
        state.step()
        words = image_words(1, 1, seed=5, first_index=images_seen, stream=Stream.DROPOUT)
        low, high = words[0, 0, :2].tolist()
        assert seeds[-1] % 2**64 == low + (high << 32)


def test_checkpoints_are_minutes_apart(tmp_path, monkeypatch) -> None:
    """A batch of eight images takes 24 seconds."""
    now, saved, run = 0.0, [], RunFolder(tmp_path)
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def visit(image: Tensor) -> Tensor:
        nonlocal now
        now += 3
        saved.append(run.checkpoint.exists() and read_checkpoint(run.checkpoint).images_seen)
        return image

    config = tiny(images=80, checkpoint_minutes=1.0, data_init=False)
    train(config, run.path, dataset=(random_dataset(20), random_dataset(4)), transform=visit)
    assert set(saved) == {0, 24, 48, 72}


@pytest.mark.quick
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # the EMA's copy
def test_a_step_takes_nothing_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a pretended GPU, without numbers; torch's own backward and Adam would need a driver."""
    # A seed of its own: the order of images is kept, here of pretended numbers.
    config = tiny("denoiser", seed=9, clip_norm=1.0, clean_noise=0.01, optimizer="muon", flip=True)
    config = replace(
        config, data_init=False, graph="off", model=replace(config.model, atoms=(0, 255))
    )
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
            for schedule in get_args(LearningRateSchedule):
                scheduled(
                    1.0, replace(config, schedule=schedule), trained.position, trained.counter
                )
        with OnCudaAlone(), pytest.raises(AssertionError, match="lift_fresh"):
            torch.tensor([1, 2])


def test_a_loss_that_is_not_finite_is_found_and_spares_the_checkpoint(tmp_path, small_runs) -> None:
    """The first update makes weights of which the second loss is not finite."""
    config, run = tiny(images=8 * 2 * READ_STEPS, seed=7, learning_rate=1e38), RunFolder(tmp_path)
    with pytest.raises(NonFiniteLoss, match=r"loss is .* at step 1 \(8 images\) with seed 7"):
        train(config, run.path)
    kept = TrainState(config, beginning.load_data(config)[0], CPU)
    go_on(read_checkpoint(run.checkpoint), kept)
    kept.check_finite()
    assert not run.weights.exists()


def test_a_graph_that_must_be_and_cannot_says_why() -> None:
    with pytest.raises(ValueError, match="needs a CUDA device, and this run computes on cpu"):
        TrainState(tiny(graph="on"), random_dataset(12), CPU)
    assert not step.uses_graph(tiny(), CPU)
    assert step.uses_graph(tiny(), CUDA)
    assert not step.uses_graph(tiny(graph="off"), CUDA)
    assert not step.uses_graph(tiny(compile=True), CUDA)
    with pytest.raises(ValueError, match="compile=True launches kernels of its own"):
        step.uses_graph(tiny(graph="on", compile=True), CUDA)


def test_each_call_of_a_replayed_step_is_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device: nothing is executed inside a recording."""
    cuda, executed, recorded = MagicMock(), [], []
    monkeypatch.setattr(step.torch, "cuda", cuda)
    graph, recording = cuda.CUDAGraph.return_value, cuda.graph.return_value

    def work() -> None:
        inside = recording.__enter__.called and not recording.__exit__.called
        (recorded if inside else executed).append(1)

    run = step.ReplayedStep(work, CUDA)
    for calls in range(1, step.WARM_UP + 4):
        run()
        assert len(executed) + graph.replay.call_count == calls
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
        runs[how] = [reading.loss for reading in trained.read()], trained.tensors()
    assert runs["on"][0] == pytest.approx(runs["off"][0], rel=1e-5)
    for name, tensor in runs["on"][1].items():
        torch.testing.assert_close(tensor, runs["off"][1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("processor", "instructions", "chosen"),
    [
        ("AMD EPYC 9R14", True, "bfloat16"),
        ("AMD EPYC 7R13", False, "float32"),
        ("Intel(R) Xeon(R) Processor", True, "float32"),
    ],
)
def test_bfloat16_is_chosen_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, processor: str, instructions: bool, chosen: str
) -> None:
    capabilities = {"avx512_bf16": instructions, "amx_bf16": instructions}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(machine, "cpu_name", lambda: processor)
    config = tiny("noisy", precision="auto")
    data = random_dataset(12)
    assert run_settings(config, data, data, CPU).precision == chosen
