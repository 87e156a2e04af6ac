"""A kernel's loading and launches, on a driver without a card (tests/helpers/stub_driver.py)."""

from __future__ import annotations

import ctypes

import pytest
import torch

from dsmooth import cuda
from dsmooth.commands import doctor
from dsmooth.cuda import compiler, driver, images
from dsmooth.cuda.driver import Card, CudaError, Kernel
from dsmooth.machine import has_fast_bfloat16
from tests.helpers.stub_driver import StubDriver

pytestmark = pytest.mark.quick

CODE = b"\x7fELF machine code"
FIRST = torch.device("cuda", 0)


def launch(kernel: Kernel, argument: bytes = b"argument") -> None:
    kernel.launch(blocks=5, lanes=256, shared_bytes=4096, argument=argument, stream=99)


def test_a_launch_arrives_as_it_was_asked_for(stub: StubDriver) -> None:
    seen = []
    stub.launched = lambda *launch: seen.append((*launch[:3], ctypes.string_at(launch[3], 3000)))
    argument = bytes(range(250)) * 12
    kernel = Kernel(Card(1), CODE)
    # Code for sm_90 has shared memory of its own; the driver takes no more than the rest.
    assert kernel.shared_limit == stub.state.most_dynamic_shared == (227 << 10) - 1024
    with stub.raised():
        launch(kernel, argument)
    assert seen == [([5, 1, 1], [256, 1, 1], 4096, argument)]
    assert stub.state.stream == 99
    assert stub.state.contexts == 0


CALLS = ["cuModuleLoadDataEx", "cuModuleGetFunction", "cuFuncGetAttribute", "cuFuncSetAttribute"]
CALLS += ["cuLaunchKernel"]
CALLS += ["cuDeviceGet", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2"]


@pytest.mark.parametrize("function", CALLS)
def test_a_call_that_fails_is_one_line_and_leaves_no_context(function, stub) -> None:
    """So is a card that vanishes: from then on every call fails."""
    stub.fail(function, 46)
    with pytest.raises(CudaError, match=rf"\A{function}: an error\Z"):
        launch(Kernel(Card(0), CODE))
    assert stub.state.contexts == 0
    assert not stub.launches


@pytest.mark.parametrize("status", sorted(driver.NOT_UNDERSTOOD))
def test_code_that_a_driver_cannot_read_is_said_with_its_version(status, stub) -> None:
    stub.refused[b""] = status
    stub.fail("cuDriverGetVersion", status)  # as everything of a driver without a card
    message = r"cuModuleLoadDataEx: .*; the driver is of CUDA 12\.4"
    message += r" \(ptxas fatal: no\)\Z" * (status == 218)  # what the compiler of PTX says
    with pytest.raises(CudaError, match=message):
        Kernel(Card(0), CODE)


def test_a_card_that_could_not_load_is_tried_again(stub: StubDriver, monkeypatch) -> None:
    monkeypatch.setattr(images, "nvrtc", lambda: None)  # which would compile for seconds
    (images.PACKAGED / "bfloat16.sm_90.cubin").write_bytes(b"code")
    stub.fail("cuCtxPushCurrent_v2", 2)
    assert cuda.sampler_obstacle(FIRST) is not None
    stub.state.failing = None
    assert cuda.sampler_obstacle(FIRST) is None
    assert cuda.sampler_kernel(FIRST, "bfloat16") is cuda.sampler_kernel(FIRST, "bfloat16")


def test_a_device_without_an_index_is_the_current_one(stub: StubDriver, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    (images.PACKAGED / "bfloat16.sm_90.cubin").write_bytes(b"code")
    assert cuda.sampler_kernel(torch.device("cuda"), "bfloat16").card.index == 1


def test_there_must_be_a_driver_and_a_card(stub: StubDriver, monkeypatch, capsys) -> None:
    """The obstacle is a line, which `dsmooth doctor` prints."""

    def obstacle() -> str:
        driver.driver.cache_clear()
        found = cuda.sampler_obstacle(FIRST)
        assert found is not None
        assert "\n" not in found
        return found

    assert cuda.sampler_obstacle(torch.device("cuda", 100)) == "cuDeviceGet: an error"
    stub.fail("cuInit", 100)
    assert obstacle() == "cuInit: no CUDA-capable device is detected"
    assert doctor.doctor() == 0
    assert "no CUDA device: cuInit: no CUDA-capable device is" in capsys.readouterr().out
    monkeypatch.setattr(driver, "LIBRARY", "libcuda.so.of.nobody")
    assert obstacle().startswith("no NVIDIA driver can be used (libcuda.so.of.nobody: cannot open")
    monkeypatch.setattr(driver, "LIBRARY", None)  # this process, which has no such functions
    assert obstacle().startswith("no NVIDIA driver can be used (")


def test_turing_is_too_old(stub: StubDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """compute capability 7.5: nothing is compiled, and the next best way draws."""
    monkeypatch.setattr(compiler, "nvrtc", lambda: pytest.fail("looked for a compiler"))
    stub.set_card(7, 5, 64 << 10)
    words = "cuda:0 has compute capability 7.5, and the sampler needs 8.0"
    assert cuda.sampler_obstacle(FIRST) == cuda.describe_cuda(0) == words
    with pytest.raises(RuntimeError, match=words):
        cuda.sampler_kernel(FIRST, "bfloat16")


def test_emulated_bfloat16_is_not_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a T4, where is_bf16_supported() is true by default."""
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert not has_fast_bfloat16(FIRST)
