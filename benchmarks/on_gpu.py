"""Sampling, training steps and the loss on a CUDA device, one contender a case.

    python benchmarks/on_gpu.py sampler-mnist step-cifar-ours --out on-gpu.json

A name means all cases that begin with it. A case is checked, timed on an otherwise idle device, and
saved before the next one starts; a case in the file is not measured again. --device cpu
--tiny tries the program without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

# Last, so that an installed dsmooth is found before the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.bench_logistic_mixture import check, images_and_params, make_contenders
from benchmarks.measure import Run, Work, machine, take_turns
from benchmarks.networks import (
    CIFAR,
    MNIST,
    SMALL,
    Network,
    check_samples,
    flops_of_forward,
    make_state,
    make_step,
)
from dsmooth.files import write_atomically
from dsmooth.functional import use_impl
from dsmooth.sampling import CachedSampler
from dsmooth.training.step import ReplayedStep

BF16 = torch.bfloat16
NETWORKS = {"mnist": MNIST, "cifar": CIFAR}
GRADIENT_ERROR = 5e-2  # of its norm


@dataclass(frozen=True)
class Setup:
    """The device, and whether cases have their smallest size."""

    device: torch.device
    tiny: bool

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def ours(self) -> Any:
        """The fast implementation of ops on the device."""
        return "triton" if self.is_cuda else "native"

    def size(self, name: str, batch: int) -> tuple[Network, int]:
        return (SMALL, 2) if self.tiny else (NETWORKS[name], batch)

    def wait(self) -> None:
        """Return once the device is idle."""
        if self.is_cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Case:
    """A contender and the work of one call.

    check: fails if the contender is wrong. calls: number of calls that do the whole work, of which
    one is timed.
    """

    run: Run
    work: Work = field(default_factory=Work)
    check: Run = lambda: None
    rounds: int = 10
    warmup: int = 1
    calls: int = 1


def sampler(name: str, batch: int, card: Setup) -> Case:
    """Cached sampling in bfloat16."""
    network, batch = card.size(name, batch)
    model, side = network.build(), network.size
    on_card = CachedSampler(deepcopy(model).to(card.device), BF16)
    check_samples(model, on_card.sample(min(batch, 4), side, side).cpu(), BF16)
    work = Work(images=batch, flops=flops_of_forward(model, network.shape(batch)))
    return Case(lambda: on_card.sample(batch, side, side), work, rounds=3)


def training_step(name: str, batch: int, mode: str, card: Setup) -> Case:
    """Forward, backward, clipping and Adam in bfloat16, replayed as a CUDA graph.

    mode: "ours" uses this package's kernels, "eager" the reference; "uncaptured" is ours without
    a graph. The network has no dropout, whose random words are made
    for the kernels and slow the reference.
    """
    network, batch = card.size(name, batch)
    torch.manual_seed(0)
    x = torch.rand(network.shape(batch), device=card.device) * 2 - 1
    impl: Any = "reference" if mode == "eager" else card.ours
    model = network.build()
    step = make_step(model, x, impl, BF16)

    def check() -> None:
        """Compare loss and clipped gradient with the reference, to the precision of bfloat16."""
        with use_impl("reference"), torch.autocast(card.device.type, BF16):
            want = -model.log_prob(x).sum() / x.numel()
        slopes = flat(torch.autograd.grad(want, [*model.parameters()]))
        slopes /= slopes.norm().clamp(min=1)
        got = step()
        assert (got - want).abs() < 2e-2 * want.abs(), (got, want)
        off = (flat([p.grad for p in model.parameters()]) - slopes).norm() / slopes.norm()
        assert off < GRADIENT_ERROR, off

    captured = card.is_cuda and mode != "uncaptured"
    work = Work(images=batch, flops=3 * flops_of_forward(network.build(), network.shape(batch)))
    run = ReplayedStep(step, card.device) if captured else step
    return Case(run, work, check, warmup=6)


def preset_step(name: str, role: str, mode: str, card: Setup) -> Case:
    """`TrainState.step` of a preset, with noise, dropout, Muon and the moving average.

    mode: "replayed", or "uncaptured": without a graph.
    """
    settings: dict[str, Any] = {"precision": "bfloat16"}
    settings["graph"] = "auto" if mode == "replayed" else "off"
    if card.tiny:
        settings |= {"size": 8, "batch_size": 2, "n_filters": 4, "n_resnet": 1}
    state = make_state(name, role, card.device, **settings)

    def run() -> None:
        with use_impl(card.ours):
            state.step()

    def check() -> None:
        """Compare the loss of the first step with the reference, to the precision of bfloat16."""
        reference = make_state(name, role, card.device, **settings | {"graph": "off"})
        with use_impl("reference"):
            reference.step()
        run()
        losses = [s.results()[0].loss for s in (state, reference)]
        assert abs(losses[0] - losses[1]) < 2e-2 * abs(losses[1]), losses

    images = state.config.batch_size
    flops = flops_of_forward(deepcopy(state.model).cpu(), state.inputs(0).target.shape)
    return Case(run, Work(images=images, flops=3 * flops), check, warmup=6)


def flat(tensors: Sequence[Any]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def loss(shape: tuple[int, int, int, int], likelihood: Any, contender: str, card: Setup) -> Case:
    """Value and gradient of the mixture's log-likelihood; contender: "ours" or "eager"."""
    if card.tiny:
        shape = (2, shape[1], 8, 8)
    x, params = images_and_params(shape, likelihood, gradient=False)
    x = x.to(card.device)
    params = params.to(card.device, memory_format=torch.channels_last).requires_grad_()

    contenders = make_contenders(x, params, likelihood, True, compiled=False, impl=card.ours)
    # values, their gradients, and those scaled
    moved = 4 * (4 * params.numel() + x.numel())
    run = contenders[card.ours if contender == "ours" else "eager"]
    return Case(run, Work(images=shape[0], bytes=moved), partial(check, contenders, rtol=1e-3))


SAMPLED = {"mnist": (1, 64, 132, 1056, 2112), "cifar": (1, 132, 1056, 2112)}
TRAINED = {"mnist": 80, "cifar": 64}
LOSSES = {"mnist": (1024, 1, 28, 28), "cifar": (256, 3, 32, 32)}
PRESETS = (("mnist", "noisy"), ("mnist", "denoiser"), ("cifar10", "noisy"))
MODES = ("ours", "uncaptured", "eager")
CASES: dict[str, Callable[[Setup], Case]] = {
    **{f"sampler-{k}-{n}": partial(sampler, k, n) for k, sizes in SAMPLED.items() for n in sizes},
    **{
        f"step-{name}-{mode}": partial(training_step, name, batch, mode)
        for name, batch in TRAINED.items()
        for mode in MODES
    },
    **{
        f"preset-{name}-{role}-{mode}": partial(preset_step, name, role, mode)
        for name, role in PRESETS
        for mode in ("replayed", "uncaptured")
    },
    **{
        f"loss-{name}-{likelihood}-{contender}": partial(loss, shape, likelihood, contender)
        for name, shape in LOSSES.items()
        for likelihood in ("continuous", "discretized")
        for contender in ("ours", "eager")
    },
}


def cases_of(words: str) -> list[str]:
    """The cases whose names start with these words."""
    return [name for name in CASES if f"{name}-".startswith(f"{words}-")]


def measure(name: str, card: Setup) -> dict[str, Any]:
    """Seconds [median, quartiles] of a case and its rates."""
    case = CASES[name](card)
    case.check()

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
        "seconds": [*seconds],
        **{unit: float(f"{rate:.4g}") for unit, rate in rates.items() if rate},
        "device": torch.cuda.get_device_name() if card.is_cuda else "cpu",
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="+", metavar="CASE", help="the first words of cases")
    parser.add_argument("--out", type=Path, default=Path("on-gpu.json"))
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: a rehearsal")
    options = parser.parse_args(arguments)
    for case in options.cases:
        if not cases_of(case):
            parser.error(f"no case begins with {case!r}: they are {', '.join(CASES)}")
    chosen = [name for case in options.cases for name in cases_of(case)]
    card = Setup(options.device, options.tiny)
    found = json.loads(options.out.read_text())["results"] if options.out.exists() else {}
    for name in chosen:
        if name not in found:
            found[name] = measure(name, card)
            print(name, found[name], flush=True)
            written = json.dumps({"machine": machine(), "results": found}, indent=1) + "\n"
            write_atomically(options.out, written.encode())


if __name__ == "__main__":
    main()
