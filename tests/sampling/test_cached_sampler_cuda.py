"""The cached sampler on a CUDA device (tests/cuda and csrc/tests check what needs none)."""

from __future__ import annotations

import pytest
import torch

from dsmooth.cuda.driver import Card, CudaError
from dsmooth.sampling import CachedSampler, sample_images
from tests.helpers.data_makers import refuses
from tests.helpers.networks import network


def test_other_devices_are_refused() -> None:
    refuses("on the CPU or a CUDA device, got meta", CachedSampler, network().to("meta"))


# From here on: tests on a device.


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
def test_a_failed_call_does_not_fail_the_next() -> None:
    sampler = CachedSampler(network().cuda())
    with pytest.raises(CudaError, match=r"cuDeviceGet: \w"):
        Card(100)
    sampler.sample(1, 8, 8)
    torch.cuda.synchronize()


@pytest.mark.gpu
def test_images_are_drawn_in_bfloat16_where_the_model_lies() -> None:
    model = network().cuda()
    x = sample_images(model, 3, height=8, width=8, seed=4)
    assert torch.equal(x, CachedSampler(model, torch.bfloat16).sample(3, 8, 8, seed=4))


@pytest.mark.gpu
def test_bad_arguments_on_a_device() -> None:
    model = network("concat").cuda()
    sampler = CachedSampler(model)
    assert sampler.bytes_per_image(8, 8) > 0
    with pytest.raises(ValueError, match="context must be on cuda:0, got cpu"):
        sampler.sample(1, 4, 4, context=torch.zeros(1, 1, 4, 4))
