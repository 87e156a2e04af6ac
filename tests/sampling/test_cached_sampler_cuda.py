"""The cached sampler on CUDA: its registers, and laws of a device alone (csrc/tests has others)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dsmooth._extension import build_info, cuda_obstacle, extension
from dsmooth.sampling import CachedSampler, sample_images
from dsmooth.sampling.program import Program
from tests.helpers.data_makers import refuses
from tests.helpers.networks import network
from tests.helpers.nvcc_builds import NVCC, compiled
from tests.ptx.cuda_player import build_sampler

SOURCES = Path(__file__).parents[2] / "csrc" / "sampler"


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.skipif(not SOURCES.exists(), reason="csrc is not here: tests of an installed package")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("architecture", ["90", pytest.param("80", marks=pytest.mark.full)])
def test_kernels_keep_to_registers(architecture: str, dtype: str) -> None:
    """A sum that leaves its register costs more than the product that made it."""
    options = ["-Xptxas", "-v", "-Werror", "all-warnings", "-cubin", "-arch", f"sm_{architecture}"]
    ptx = build_sampler() / f"{dtype}.ptx"
    folder = compiled(*options, "-o", "sampler.cubin", sources=[ptx])
    said = (folder / "said.txt").read_text()

    def used(what: str) -> list[int]:
        return [int(number) for number in re.findall(rf"(\d+) bytes {what}", said)]

    assert len(re.findall(rf"'\w+6sample\w+' for 'sm_{architecture}'", said)) == 1
    # Between the stages the kernel may keep one register in memory; on sm_80 a stage of more than
    # 8 images, which has thousands of instructions, keeps two.
    line = r"for (\w+)\n.* (\d+) bytes spill stores, (\d+) bytes spill loads"
    spilled = {name: max(int(a), int(b)) for name, a, b in re.findall(line, said)}
    assert sum("draw_stages" in name or "draw_rows" in name for name in spilled) == 3
    most = {"draw_stages": 8 if architecture == "80" else 0, "6sample": 4}
    for name, spills in spilled.items():
        assert spills <= next((n for part, n in most.items() if part in name), 0), name
    assert max(used("cumulative stack size")) <= 128
    assert max(used("smem"), default=0) <= 1024  # apart from what the launch asks for


def native_sampler(device: int) -> Any:
    return extension().CudaSampler(Program(network()), False, device)


@pytest.mark.skipif(not extension().has_cuda, reason=f"not built for CUDA: {cuda_obstacle()}")
def test_a_device_that_is_not_there_is_said() -> None:
    refuses(r"cudaDeviceGetAttribute: \w", native_sampler, 100, error=RuntimeError)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a CUDA device")
@pytest.mark.skipif(not extension().has_cuda, reason=f"not built for CUDA: {cuda_obstacle()}")
def test_no_device_or_driver_is_said_plainly() -> None:
    plainly = "no NVIDIA driver is installed|sees no CUDA device|the driver knows CUDA"
    refuses(plainly, native_sampler, 0, error=RuntimeError)


def test_other_devices_are_refused() -> None:
    refuses("on the CPU or a CUDA device, got meta", CachedSampler, network().to("meta"))
    model = network()
    model.head.to("cpu")
    model.stem_u.to("meta")
    refuses(r"on one device, got stem_u\.\w+ on meta and head", CachedSampler, model)


# From here on: laws on a device.


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
    refuses("cudaDeviceGetAttribute", native_sampler, 100, error=RuntimeError)
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
    with pytest.raises(ValueError, match='instruction_set must be "auto" on cuda:0'):
        CachedSampler(model, instruction_set="avx2")
    sampler = CachedSampler(model)
    assert sampler.bytes_per_image(8, 8) > 0
    with pytest.raises(ValueError, match="context must be on cuda:0, got cpu"):
        sampler.sample(1, 4, 4, context=torch.zeros(1, 1, 4, 4))
    assert build_info()["cuda"]["built"]
