"""The sampler's kernel on a driver without a card: where it comes from, how it is launched."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from dsmooth import cuda
from dsmooth._extension import extension
from dsmooth.commands import doctor
from dsmooth.cuda import compiler, driver, images
from dsmooth.cuda.compiler import Nvrtc, nvrtc
from dsmooth.cuda.driver import Card, CudaError, Kernel
from dsmooth.machine import has_fast_bfloat16
from dsmooth.nn import PixelCNNpp
from dsmooth.sampling.program import Program
from tests.helpers.builds import kept
from tests.helpers.data_makers import refuses
from tests.helpers.networks import tiny_config
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
        driver.library.cache_clear()
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


needs_nvrtc = pytest.mark.skipif(nvrtc() is None, reason="torch brings no NVRTC")


class FakeNvrtc(Nvrtc):
    """Compiles to a line of text."""

    def __init__(self, version: str = "13.2"):
        self.path, self.version = "fake", version
        self.architectures = [75, 80, 86, 89, 90, 100, 120]
        self.failure: Exception | None = None
        self.compiled = 0

    def compile(self, path: Any, headers: Any, options: Any, *, ptx: bool) -> tuple[bytes, str]:
        if self.failure is not None:
            raise self.failure
        self.compiled += 1
        return f"{'PTX' if ptx else 'code'} {' '.join(options)}".encode(), ""


@pytest.fixture
def fake(stub: StubDriver, monkeypatch: pytest.MonkeyPatch) -> FakeNvrtc:
    fake = FakeNvrtc()
    monkeypatch.setattr(images, "nvrtc", lambda: fake)
    return fake


def package(*names: str) -> None:
    for name in names:
        (images.PACKAGED / name).write_bytes(name.encode())


def origins(major: int, minor: int, operands: str = "bfloat16") -> list[str]:
    found = [words for words, read in images.sources((major, minor), operands) if read()]
    return [re.sub("^packaged | by .*|, which .*", "", words) for words in found]


CUBINS = "bfloat16.sm_80.cubin", "bfloat16.sm_90.cubin"
PTX = "bfloat16.compute_80.ptx"


def test_packaged_code_of_the_card_comes_first_and_ptx_last(fake: FakeNvrtc) -> None:
    package(*CUBINS, PTX)
    assert origins(8, 0) == [CUBINS[0], "compiled for sm_80", PTX]
    assert origins(8, 6)[:2] == [CUBINS[0], "compiled for sm_86"]
    assert origins(9, 0)[:2] == [CUBINS[1], "compiled for sm_90"]
    assert origins(10, 0) == ["compiled for sm_100", PTX]
    assert origins(13, 0) == ["compiled for compute_120", PTX]  # a card that NVRTC does not know
    assert origins(9, 0, "float32") == ["compiled for sm_90"]


@pytest.mark.parametrize(
    ("file", "has_compiler", "words"),
    [
        ("bfloat16.sm_100.cubin", True, "packaged bfloat16.sm_100.cubin"),
        (None, True, "compiled for sm_100 by NVRTC 13.2 at the first use"),
        (PTX, False, f"packaged {PTX}, which the driver compiles"),
        (None, False, cuda.NO_COMPILER),
    ],
)
def test_the_first_source_is_said_and_loaded(
    file, has_compiler, words, fake, stub, monkeypatch, caplog
) -> None:
    stub.set_card(10, 0)
    package(*filter(None, [file]))
    monkeypatch.setattr(images, "nvrtc", lambda: fake if has_compiler else None)
    assert cuda.describe_cuda(0) == words
    assert cuda.sampler_obstacle(FIRST) == (words if words == cuda.NO_COMPILER else None)
    assert fake.compiled == ("compiled for" in words) == bool(caplog.text)


def test_code_of_a_newer_toolkit_gives_way_to_torchs_own(fake, stub) -> None:
    """And what no origin can mend is said, with the driver's version, or as the compiler did."""
    fake.failure = CudaError("sample.cu(3): error: no")
    said = "compiled for sm_90 by NVRTC 13.2 at the first use: "
    assert cuda.sampler_obstacle(FIRST) == f"{said}sample.cu(3): error: no"
    fake.failure = None
    package("bfloat16.sm_90.cubin")
    stub.refused[b"bflo"] = 200
    assert cuda.sampler_obstacle(FIRST) is None
    assert fake.compiled == 1
    cuda._load.cache_clear()
    stub.refused[b"code"] = 222
    obstacle = cuda.sampler_obstacle(FIRST)
    assert obstacle.startswith(f"{said}cuModuleLoadDataEx: ")
    assert obstacle.endswith("unsupported toolchain.; the driver is of CUDA 12.4")


def make(fake: Nvrtc, target: str = "sm_90", operands: str = "bfloat16") -> bytes:
    return images.compiled(fake, target, operands)


def test_the_cache_knows_what_decides_an_image(fake, monkeypatch, tmp_path, caplog) -> None:
    first, said = make(fake), caplog.text
    assert make(fake) == first
    assert (fake.compiled, caplog.text) == (1, said)
    make(fake, "sm_80")
    make(fake, operands="float32")
    assert fake.compiled == 3
    other = FakeNvrtc("13.3")
    make(other)
    assert other.compiled == 1
    for name, value in (("OPTIONS", ("-std=c++23",)), ("SOURCES", tmp_path / "sources")):
        monkeypatch.setattr(images, name, value)
        file = tmp_path / "sources" / images.STANDARD
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        make(fake)
    assert fake.compiled == 5
    (file.parent / "step.cuh").write_text("other")
    make(fake)
    assert fake.compiled == 6


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_file_is_made_again(damage, fake, caplog) -> None:
    first = make(fake)
    path = images.cached_file(fake, "sm_90", "bfloat16")
    content = path.read_bytes()
    path.write_bytes(content[:40] + b"?" + content[41:] if damage is None else damage)
    assert make(fake) == first
    assert "is damaged and is made again" in caplog.text
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_costs_a_line(fake, monkeypatch, tmp_path, caplog) -> None:
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with monkeypatch.context() as patched:
        patched.setattr(images, "write_atomically", full)
        first = make(fake)
    words = "the sampler is not kept, so the next process compiles it again: "
    assert re.search(f"{words}.*No space left", caplog.text)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert make(fake) == first
    assert caplog.text.count(words) == fake.compiled == 2


def test_old_images_of_other_sources_go(fake: FakeNvrtc) -> None:
    make(fake)
    first = images.cached_file(fake, "sm_90", "bfloat16")
    recent, other = (first.with_name(f"{first.name[:-16]}{digit * 16}") for digit in "01")
    for path in (recent, other, first.with_name("sampler-float32-sm_90-0")):
        path.write_bytes(b"older")
    kept = {path.name for path in first.parent.iterdir()} - {other.name}
    os.utime(other, (0, 0))
    os.utime(first.with_name("sampler-float32-sm_90-0"), (0, 0))  # of other operands
    first.unlink()
    make(fake)
    assert {path.name for path in first.parent.iterdir()} == kept


@needs_nvrtc
def test_the_compilers_own_words_are_the_error(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void sample() { no; }")
    message = r'wrong.cu\(1\): error: identifier "no" is undefined'
    compile = partial(nvrtc().compile, source, {}, ["-arch=sm_90"], ptx=False)
    refuses(message, compile, error=CudaError)


@pytest.mark.long
@needs_nvrtc
@pytest.mark.parametrize("operands", ["bfloat16", pytest.param("float32", marks=pytest.mark.full)])
# T4 is refused before (test_turing_is_too_old); H100, A100, A10, L4 and RTX 40, B200, RTX 50.
@pytest.mark.parametrize(
    "card", [90, *(pytest.param(c, marks=pytest.mark.full) for c in (80, 86, 89, 100, 120))]
)
def test_kernels_keep_to_registers(card: int, operands: str) -> None:
    """A sum that leaves its register costs more than the product that made it."""
    found, target = nvrtc(), f"sm_{card}"

    def write(folder: Path) -> None:
        code, said = images.compile_kernel(found, target, operands, "-Xptxas=-v")
        assert code.startswith(b"\x7fELF")
        (folder / "said.txt").write_text(said)

    folder = kept(repr((found.version, target, operands, images.OPTIONS)).encode(), write)
    said = (folder / "said.txt").read_text()  # by ptxas
    assert f"Compiling entry function 'sample' for '{target}'" in said
    # Between the stages the kernel may keep one register in memory; before Hopper a stage of more
    # than 8 images, which has thousands of instructions, keeps two.
    line = r"properties for (\w+)\n.* (\d+) bytes spill stores, (\d+) bytes spill loads"
    spilled = {name: max(int(a), int(b)) for name, a, b in re.findall(line, said)}
    assert sum("draw_stages" in name or "draw_rows" in name for name in spilled) == 3
    most = {"draw_stages": 8 if card in (80, 86, 89) else 0, "sample": 4}
    for name, spills in spilled.items():
        kind = "draw_stages" if "draw_stages" in name else name
        assert spills <= most.get(kind, 0), name
    stacks = [int(bytes_) for bytes_ in re.findall(r"(\d+) bytes cumulative stack size", said)]
    assert 0 < max(stacks) <= 128
    shared = [int(bytes_) for bytes_ in re.findall(r"(\d+) bytes smem", said)]
    assert max(shared, default=0) <= 1024  # apart from what the launch asks for


FRAGMENT = 8 * 2 * 8 * 16 * 4  # bytes of a warp's sums, two units wide, for eight warps


@pytest.mark.long
def test_wide_networks_take_low_tiles_where_shared_memory_is_small() -> None:
    """Tall tiles of rows, six fragments high, need 32 KB more than low ones, of two."""
    models = {n: PixelCNNpp(tiny_config(n_filters=n, n_resnet=2)) for n in (40, 160)}
    programs = {filters: Program(model, bf16=True) for filters, model in models.items()}

    def shared_bytes(filters: int, limit: int) -> int:
        sampler = extension().CudaSampler(programs[filters], True, 0, 1, limit)
        return int(sampler.shared_bytes)

    # The most of a block, by CUDA's programming guide: A100 and Hopper have more, the others less.
    most, least = 163 << 10, 99 << 10
    tall = shared_bytes(160, most)
    assert least < tall <= most
    assert shared_bytes(160, tall - 1) == tall - 4 * FRAGMENT == shared_bytes(160, least) <= least
    assert shared_bytes(40, least) <= least
