"""Ceilings, sampling, training steps and the loss on a CUDA device, one contender a case.

    python benchmarks/on_gpu.py ceiling sampler-mnist step-cifar-kept --out on-gpu.json

A name stands for all cases that begin with it. A case is checked, then timed, the device idle
before and after each call, and written before the next begins; a case that the file has is not
measured again. --once and --trace run a case for a profiler instead. --device cpu and --tiny
rehearse where there is no GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

# Last, so that an installed dsmooth is found before the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.measure import Work, machine, take_turns
from benchmarks.networks import (
    CIFAR,
    MNIST,
    SMALL,
    Network,
    check_samples,
    flops_of_forward,
    make_step,
    plain_forward,
)
from benchmarks.tune import make_block
from dsmooth import GaussianSmoothing, PixelCNNpp, SmoothedPair
from dsmooth.files import write_atomically
from dsmooth.functional import logistic_mixture_log_prob, use_impl
from dsmooth.nn.layers import GatedResnet
from dsmooth.sampling import CachedSampler
from dsmooth.train.device import ReplayedStep, set_keep_gates

Run = Callable[[], object]
BF16 = torch.bfloat16
NETWORKS = {"mnist": MNIST, "cifar": CIFAR}
RECOMPILE_LIMIT = 64


@dataclass(frozen=True)
class Card:
    """The device, and whether the cases have their smallest size."""

    device: torch.device
    tiny: bool

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def size(self, name: str, batch: int) -> tuple[Network, int]:
        return (SMALL, 2) if self.tiny else (NETWORKS[name], batch)

    def wait(self) -> None:
        """Return once the device is idle."""
        if self.is_cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Case:
    """A checked contender and the work of one call.

    calls: how many calls do the whole work, of which one is timed.
    """

    run: Run
    work: Work = field(default_factory=Work)
    rounds: int = 10
    warmup: int = 1
    calls: int = 1


def copy_ceiling(card: Card) -> Case:
    """A copy larger than the caches."""
    n_bytes = 2**20 if card.tiny else 2**30
    source = torch.ones(n_bytes, dtype=torch.uint8, device=card.device)
    target = torch.empty_like(source)
    return Case(lambda: target.copy_(source), Work(bytes=2 * n_bytes))


def matmul_ceiling(card: Card) -> Case:
    """A large bfloat16 product."""
    size = 256 if card.tiny else 8192
    a = torch.randn(size, size, device=card.device).to(BF16)
    return Case(lambda: a @ a, Work(flops=2 * size**3))


@triton.jit
def read_kernel(source_ptr, target_ptr, n_blocks, repeats, BLOCK: tl.constexpr):
    """Each program reads all of the source again and again, past the first cache."""
    offs = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(n_blocks * repeats):
        start = (tl.program_id(0) + i) % n_blocks * BLOCK
        total += tl.load(source_ptr + start + offs, cache_modifier=".cg")
    tl.store(target_ptr + tl.program_id(0) * BLOCK + offs, total)


def multiprocessors(card: Card) -> int:
    return int(torch.cuda.get_device_properties(card.device).multi_processor_count)


def l2_ceiling(everywhere: bool, card: Card) -> Case:
    """Reading 4 MB, which lie in the second cache, by one multiprocessor or by all."""
    block, n_blocks, repeats = 16384, 64, 8
    programs = multiprocessors(card) if everywhere else 1
    source = torch.ones(n_blocks * block, device=card.device)
    target = torch.empty(programs * block, device=card.device)

    def run() -> None:
        read_kernel[(programs,)](source, target, n_blocks, repeats, BLOCK=block, num_warps=16)

    run()
    assert (target == n_blocks * repeats).all()
    return Case(run, Work(bytes=programs * repeats * source.nbytes))


@triton.jit
def mma_kernel(sums_ptr, repeats, BLOCK: tl.constexpr):
    """Each warp adds products of 16x16 and 16x8 ones in its registers by mma.sync."""
    pair = tl.full((BLOCK,), 0x3F803F80, tl.int32)  # of ones in bfloat16
    c0 = tl.zeros((BLOCK,), tl.float32)
    c1, c2, c3 = c0, c0, c0
    for _ in range(repeats):
        c0, c1, c2, c3 = tl.inline_asm_elementwise(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{$0, $1, $2, $3}, {$4, $4, $4, $4}, {$4, $4}, {$5, $6, $7, $8};",
            "=f,=f,=f,=f,r,f,f,f,f",
            [pair, c0, c1, c2, c3],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(sums_ptr + offs, c0 + c1 + c2 + c3)


@triton.jit
def wgmma_kernel(a_ptr, b_ptr, sums_ptr, repeats, M: tl.constexpr, N: tl.constexpr):
    """Each program adds products of the same (M, M) and (M, N) in shared memory."""
    offs_m, offs_n = tl.arange(0, M), tl.arange(0, N)
    a = tl.load(a_ptr + offs_m[:, None] * M + offs_m[None, :])
    b = tl.load(b_ptr + offs_m[:, None] * N + offs_n[None, :])
    sums = tl.zeros((M, N), tl.float32)
    for _ in range(repeats):
        sums = tl.dot(a, b, sums)
    offs = tl.program_id(0) * M * N + offs_m[:, None] * N + offs_n[None, :]
    tl.store(sums_ptr + offs, sums)


def mma_ceiling(card: Card) -> Case:
    """mma.sync in bfloat16, two warps a scheduler as in the sampler."""
    programs, block, repeats = 2 * multiprocessors(card), 1024, 1 << 14
    sums = torch.empty(programs * block, device=card.device)

    def run() -> None:
        mma_kernel[(programs,)](sums, repeats, BLOCK=block, num_warps=4)

    run()
    assert (sums == 4 * 16 * repeats).all()
    return Case(run, Work(flops=2 * 4 * 16 * sums.numel() * repeats))


def wgmma_ceiling(card: Card) -> Case:
    """wgmma in bfloat16, where the device has it."""
    programs, m, n, repeats = multiprocessors(card), 128, 256, 1 << 12
    a, b = (torch.ones(m, k, device=card.device, dtype=BF16) for k in (m, n))
    sums = torch.empty(programs, m, n, device=card.device)

    def run() -> None:
        wgmma_kernel[(programs,)](a, b, sums, repeats, M=m, N=n, num_warps=8)

    run()
    assert (sums == m * repeats).all()
    return Case(run, Work(flops=2 * m * sums.numel() * repeats))


def sampler(name: str, batch: int, card: Card) -> Case:
    """Cached sampling in bfloat16."""
    network, batch = card.size(name, batch)
    model, side = network.build(), network.size
    on_card = CachedSampler(copy.deepcopy(model).to(card.device), BF16)
    check_samples(model, on_card.sample(min(batch, 4), side, side).cpu(), BF16)
    work = Work(images=batch, flops=flops_of_forward(model, network.shape(batch)))
    return Case(lambda: on_card.sample(batch, side, side), work, rounds=3)


def plain(name: str, batch: int, card: Card) -> Case:
    """Plain sampling in bfloat16: a forward by the reference for every pixel."""
    network, batch = card.size(name, batch)
    model = network.build().to(card.device, memory_format=torch.channels_last)

    def run() -> None:
        with card.device, torch.autocast(card.device.type, BF16):
            plain_forward(model, network.shape(batch))

    return Case(run, Work(images=batch), rounds=3, calls=network.size**2)


def two_step(conditioning: str, card: Card) -> Case:
    """x~ and then x."""
    network, batch = card.size("mnist", 1056)
    models = [network.build(), network.build(conditioning)]
    size = (network.size, network.size)
    pair = SmoothedPair(*models, GaussianSmoothing(0.5), size).eval().to(card.device)
    assert torch.isfinite(pair.sample(min(batch, 4))).all()
    flops = sum(flops_of_forward(model, network.shape(batch)) for model in models)
    return Case(lambda: pair.sample(batch), Work(images=batch, flops=flops), rounds=3)


def training_step(name: str, batch: int, mode: str, card: Card) -> Case:
    """Forward, backward, clipping and Adam in bfloat16, replayed as a CUDA graph.

    mode: "kept" and "again" are our kernels, the gates kept or computed again; "cudnn" has torch's
    convolutions between kernels; "eager" and "compile", by max-autotune, are the reference.
    "-uncaptured" behind it: without a graph. Without dropout, whose random words are made for
    kernels: as tensors they would slow the others.
    """
    network, batch = card.size(name, batch)
    torch.manual_seed(0)
    x = torch.rand(network.shape(batch), device=card.device) * 2 - 1
    kind = mode.removesuffix("-uncaptured")
    ours = "triton" if card.is_cuda else "native"
    impl: Any = {"kept": ours, "again": ours, "cudnn": "cudnn"}.get(kind, "reference")
    model = network.build().to(card.device, memory_format=torch.channels_last)
    set_keep_gates(model, kind == "kept")
    step = make_step(model, x, impl, BF16)
    with torch.no_grad(), use_impl("reference"), torch.autocast(card.device.type, BF16):
        want = -float(model.log_prob(x).sum()) / x.numel()
    if kind == "compile":
        compile_blocks(model)
    got = float(step())
    assert abs(got - want) < 2e-2 * abs(want), (got, want)
    captured = card.is_cuda and kind == mode
    work = Work(images=batch, flops=3 * flops_of_forward(network.build(), network.shape(batch)))
    return Case(ReplayedStep(step, card.device) if captured else step, work, warmup=6)


def compile_blocks(model: PixelCNNpp) -> None:
    """Compile each gated resnet for its shapes, and fail where one cannot be.

    The number of a layer, which only dropout reads, is left out: each would be compiled anew.
    """
    # By name: a mode would capture graphs of its own inside ours.
    import_module("torch._inductor.config").max_autotune = True
    dynamo = import_module("torch._dynamo.config")
    dynamo.recompile_limit = RECOMPILE_LIMIT
    if hasattr(dynamo, "fail_on_recompile_limit_hit"):
        dynamo.fail_on_recompile_limit_hit = True
    for module in model.modules():
        if isinstance(module, GatedResnet):
            module.layer = 0
            compiled = torch.compile(module.forward, dynamic=False, fullgraph=True)
            # The instance's own forward is what torch.nn.Module calls.
            module.forward = partial(without_layer, compiled)  # type: ignore[method-assign]


def without_layer(forward: Callable[..., Tensor], *inputs: Any, layer: int, **rest: Any) -> Tensor:
    return forward(*inputs, **rest)


def block(card: Card) -> Case:
    """A gated block of the CIFAR-10 network forward and backward: every kernel, for a profiler."""
    return Case(make_block(Namespace(filters=160, size=32, batch=64, dtype="bfloat16")))


def loss(shape: tuple[int, ...], impl: str, card: Card) -> Case:
    """Value and gradient of the mixture's log-likelihood."""
    if card.tiny:
        shape = (2, shape[1], 8, 8)
    torch.manual_seed(0)
    x = torch.rand(shape, device=card.device) * 2 - 1
    width = 10 * (3 if shape[1] == 1 else 10)
    params = torch.randn(shape[0], width, *shape[2:], device=card.device)
    params = params.to(memory_format=torch.channels_last).requires_grad_()

    def gradient(impl: Any) -> Tensor:
        log_p = logistic_mixture_log_prob(x, params, impl=impl)
        return torch.autograd.grad(log_p.sum(), params)[0]

    want = gradient("reference")
    tolerance = 1e-4 * want.abs().max().item()
    torch.testing.assert_close(gradient(impl), want, rtol=1e-3, atol=tolerance)
    # values, their gradients, and those scaled
    moved = 4 * (4 * params.numel() + x.numel())
    return Case(lambda: gradient(impl), Work(images=shape[0], bytes=moved))


SAMPLED = {"mnist": (1, 64, 132, 1056, 2112), "cifar": (1, 132, 1056, 2112)}
TRAINED = {"mnist": 80, "cifar": 64}
LOSSES = {"mnist": (1024, 1, 28, 28), "cifar": (256, 3, 32, 32)}
UNCAPTURED = tuple(f"{mode}-uncaptured" for mode in ("kept", "again", "cudnn", "eager"))
MODES = ("kept", "again", "cudnn", "eager", *UNCAPTURED, "compile")
CASES: dict[str, Callable[[Card], Case]] = {
    "ceiling-copy": copy_ceiling,
    "ceiling-matmul": matmul_ceiling,
    "ceiling-l2-one": partial(l2_ceiling, False),
    "ceiling-l2-all": partial(l2_ceiling, True),
    "ceiling-mma": mma_ceiling,
    "ceiling-wgmma": wgmma_ceiling,
    **{f"sampler-{k}-{n}": partial(sampler, k, n) for k, sizes in SAMPLED.items() for n in sizes},
    **{f"plain-{k}-{n}": partial(plain, k, n) for k, sizes in SAMPLED.items() for n in sizes},
    **{f"two-step-{how}": partial(two_step, how) for how in ("stack", "concat")},
    **{
        f"step-{name}-{mode}": partial(training_step, name, batch, mode)
        for name, batch in TRAINED.items()
        for mode in MODES
    },
    "block": block,
    **{
        f"loss-{name}-{label}": partial(loss, shape, impl)
        for name, shape in LOSSES.items()
        for label, impl in (("ours", "auto"), ("eager", "reference"))
    },
}


def cases_of(words: str) -> list[str]:
    """The cases whose names begin with these words."""
    return [name for name in CASES if f"{name}-".startswith(f"{words}-")]


def measure(name: str, card: Card) -> dict[str, Any]:
    """Seconds [median, quartiles] of a case and its rates."""
    case = CASES[name](card)

    def run() -> None:
        case.run()
        card.wait()

    rounds, calls = 2 if card.tiny else case.rounds, {name: case.calls}
    seconds = take_turns({name: run}, rounds, warmup=case.warmup, calls=calls).of(name)
    rates = {
        "img_per_s": case.work.images / seconds.median,
        "tflop_per_s": case.work.flops / seconds.median / 1e12,
        "tb_per_s": case.work.bytes / seconds.median / 1e12,
    }
    return {
        "seconds": seconds.as_list(),
        **{unit: float(f"{rate:.4g}") for unit, rate in rates.items() if rate},
        "device": torch.cuda.get_device_name() if card.is_cuda else "cpu",
    }


def profile(name: str, card: Card, trace: Path | None) -> None:
    """Run a case once, warm: between the marks that ncu waits for, or for a trace of torch's."""
    case = CASES[name](card)
    for _ in range(case.warmup):
        case.run()
    card.wait()
    with ExitStack() as stack:
        if trace is not None:
            profiler = stack.enter_context(torch.profiler.profile())
        elif card.is_cuda:
            stack.enter_context(torch.cuda.profiler.profile())
        case.run()
        card.wait()
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
        print(profiler.key_averages().table(f"self_{card.device.type}_time_total", row_limit=40))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="+", metavar="CASE", help="the first words of cases")
    parser.add_argument("--out", type=Path, default=Path("on-gpu.json"))
    parser.add_argument("--once", action="store_true", help="run once, for ncu; nothing is written")
    parser.add_argument("--trace", type=Path, help="run once and write a trace, .json or .json.gz")
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: a rehearsal")
    options = parser.parse_args(arguments)
    for case in options.cases:
        if not cases_of(case):
            parser.error(f"no case begins with {case!r}: they are {', '.join(CASES)}")
    chosen = [name for case in options.cases for name in cases_of(case)]
    card = Card(options.device, options.tiny)
    if options.once or options.trace:
        for name in chosen:
            profile(name, card, options.trace)
        return
    found = json.loads(options.out.read_text())["results"] if options.out.exists() else {}
    for name in chosen:
        if name not in found:
            found[name] = measure(name, card)
            print(name, found[name], flush=True)
            written = json.dumps({"machine": machine(), "results": found}, indent=1) + "\n"
            write_atomically(options.out, written.encode())


if __name__ == "__main__":
    main()
