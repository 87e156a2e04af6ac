"""Sampling, training and the loss on a CUDA device, each beside what it has to beat.

    python benchmarks/on_gpu.py sampler two-step step-mnist step-cifar loss --out on-gpu.json

Contenders are checked, then take turns; times are medians of rounds that end with the device idle.
The file is written as results come, and cases that it has are not measured again. --device cpu and
--tiny rehearse it where there is no GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

# Last, so that an installed dsmooth is found before the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.measure import Limit, Turns, machine, take_turns
from benchmarks.networks import (
    CIFAR,
    MNIST,
    SMALL,
    Network,
    check_samples,
    flops_of_forward,
    plain_forward,
)
from dsmooth import GaussianSmoothing, SmoothedPair
from dsmooth.files import write_atomically
from dsmooth.functional import logistic_mixture_log_prob, use_impl
from dsmooth.sampling import CachedSampler
from dsmooth.train.device import ReplayedStep, compile_gated_resnets

Run = Callable[[], object]
BF16 = torch.bfloat16


class Card:
    """The device, and how large the cases are."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny = torch.device(device), tiny
        self.is_cuda = self.device.type == "cuda"
        self.rounds = 2 if tiny else 10

    def turns(self, contenders: dict[str, Run], **settings: Any) -> Turns:
        """Seconds of each contender, the device idle before and after."""
        rounds = settings.pop("rounds", self.rounds)
        synced = {
            name: replace(run, run=self._synced(run.run))
            if isinstance(run, Limit)
            else self._synced(run)
            for name, run in contenders.items()
        }
        return take_turns(synced, rounds, **settings)

    def _synced(self, run: Run) -> Run:
        def synced() -> None:
            run()
            if self.is_cuda:
                torch.cuda.synchronize()

        return synced

    def matmul(self) -> Limit:
        """A large bfloat16 product, whose rate stands for the peak."""
        size = 256 if self.tiny else 8192
        a = torch.randn(size, size, device=self.device).to(BF16)
        return Limit(lambda: a @ a, 2 * size**3, "flops")

    def copy(self) -> Limit:
        """A copy larger than the caches."""
        n_bytes = 2**20 if self.tiny else 2**30
        source = torch.ones(n_bytes, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return Limit(lambda: target.copy_(source), 2 * n_bytes, "bytes")


def sampler(card: Card) -> Iterator[dict[str, Any]]:
    """Cached sampling against one forward a pixel, the reference in bfloat16."""
    sizes = [("small", SMALL, 2)] if card.tiny else [
        ("mnist", MNIST, 1), ("mnist", MNIST, 64), ("mnist", MNIST, 1056),
        ("cifar", CIFAR, 64), ("cifar", CIFAR, 2112),
    ]  # fmt: skip
    for name, network, batch in sizes:
        model = network.build()
        side, on_card = network.size, CachedSampler(copy.deepcopy(model).to(card.device), BF16)
        check_samples(model, on_card.sample(min(batch, 4), side, side).cpu(), BF16)
        contenders = {
            "cached": lambda on_card=on_card, batch=batch, side=side: on_card.sample(
                batch, side, side
            ),
            "plain": plain(model, network, batch, card),
            "torch.mm": card.matmul(),
        }
        turns = card.turns(contenders, rounds=3).times("plain", side**2)
        flops = flops_of_forward(model, network.shape(batch))
        yield result(f"sampler {name} {batch}", turns, "cached", images=batch, flops=flops)


def plain(model: Any, network: Network, batch: int, card: Card) -> Run:
    """One forward, as plain sampling makes for every pixel."""
    on_card = copy.deepcopy(model).to(card.device, memory_format=torch.channels_last)

    def run() -> None:
        with card.device, torch.autocast(card.device.type, BF16):
            plain_forward(on_card, network.shape(batch))

    return run


def two_step(card: Card) -> Iterator[dict[str, Any]]:
    """x~ and then x, for both conditionings."""
    network, batch = (SMALL, 2) if card.tiny else (MNIST, 1056)
    for conditioning in ("stack", "concat"):
        models = [network.build(), network.build(conditioning)]
        size = (network.size, network.size)
        pair = SmoothedPair(*models, GaussianSmoothing(0.5), size).eval().to(card.device)
        assert torch.isfinite(pair.sample(min(batch, 4))).all()
        turns = card.turns(
            {"two-step": lambda pair=pair: pair.sample(batch), "torch.mm": card.matmul()}, rounds=3
        )
        flops = sum(flops_of_forward(model, network.shape(batch)) for model in models)
        yield result(f"two-step {conditioning} {batch}", turns, "two-step", batch, flops)


def step_mnist(card: Card) -> Iterator[dict[str, Any]]:
    yield training_step("mnist", MNIST, 80, card)


def step_cifar(card: Card) -> Iterator[dict[str, Any]]:
    yield training_step("cifar", CIFAR, 64, card)


def training_step(name: str, network: Network, batch: int, card: Card) -> dict[str, Any]:
    """Forward, backward, clipping and Adam in bfloat16: eager, torch.compile and ours.

    On a GPU also torch's own convolutions between kernels of ours ("cudnn"); there all but "ours
    uncaptured" are replayed as a CUDA graph.
    """
    if card.tiny:
        name, network, batch = "small", SMALL, 2
    x = torch.rand(network.shape(batch), device=card.device) * 2 - 1
    ours = "triton" if card.is_cuda else "native"
    modes = {"eager": "reference", "max-autotune": "reference", "ours": ours}
    if card.is_cuda:
        modes["cudnn"] = "cudnn"
    contenders: dict[str, Any] = {
        label: make_step(network, x, impl, compiled=label == "max-autotune" and not card.tiny)
        for label, impl in modes.items()
    }
    losses = {label: float(run()) for label, run in contenders.items()}
    for label, value in losses.items():
        assert abs(value - losses["eager"]) < 2e-2 * abs(losses["eager"]), (label, losses)
    if card.is_cuda:
        contenders = {label: ReplayedStep(run, card.device) for label, run in contenders.items()}
        contenders["ours uncaptured"] = make_step(network, x, ours, compiled=False)
    turns = card.turns(contenders | {"torch.mm": card.matmul()}, warmup=1 if card.tiny else 6)
    flops = 3 * flops_of_forward(network.build(), network.shape(batch))
    return result(f"step {name} {batch}", turns, "ours", images=batch, flops=flops)


def make_step(network: Network, x: Tensor, impl: Any, compiled: bool) -> Callable[[], Tensor]:
    """A function that makes one update and returns its loss.

    Without dropout, whose random words are made for kernels: as tensors they would slow the others.
    """
    model = network.build().to(x.device, memory_format=torch.channels_last)
    if compiled:
        # By name: a mode would capture graphs of its own inside ours.
        import_module("torch._inductor.config").max_autotune = True
        compile_gated_resnets(model)
    capturable = {"capturable": True} if x.is_cuda else {}
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True, **capturable)

    def step() -> Tensor:
        with use_impl(impl), torch.autocast(x.device.type, BF16):
            loss = -model.log_prob(x).sum() / x.numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


def loss(card: Card) -> Iterator[dict[str, Any]]:
    """Value and gradient of the mixture's log-likelihood against eager PyTorch, and a copy."""
    shapes = {"small": (2, 1, 8, 8)} if card.tiny else {
        "mnist": (1024, 1, 28, 28), "cifar": (256, 3, 32, 32),
    }  # fmt: skip
    for name, shape in shapes.items():
        x = torch.rand(shape, device=card.device) * 2 - 1
        width = 10 * (3 if shape[1] == 1 else 10)
        params = torch.randn(shape[0], width, *shape[2:], device=card.device)
        params = params.to(memory_format=torch.channels_last).requires_grad_()

        def gradient(impl: Any, x: Tensor = x, params: Tensor = params) -> Tensor:
            log_p = logistic_mixture_log_prob(x, params, impl=impl)
            return torch.autograd.grad(log_p.sum(), params)[0]

        want = gradient("reference")
        torch.testing.assert_close(
            gradient("auto"), want, rtol=1e-3, atol=1e-4 * want.abs().max().item()
        )
        contenders: dict[str, Run] = {
            "ours": lambda gradient=gradient: gradient("auto"),
            "eager": lambda gradient=gradient: gradient("reference"),
            "copy": card.copy(),
        }
        moved = 4 * (4 * params.numel() + x.numel())  # values, their gradients, and those scaled
        yield result(f"loss {name}", card.turns(contenders), "ours", shape[0], moved=moved)


CASES: dict[str, Callable[[Card], Iterator[dict[str, Any]]]] = {
    "sampler": sampler,
    "two-step": two_step,
    "step-mnist": step_mnist,
    "step-cifar": step_cifar,
    "loss": loss,
}


def result(
    case: str, turns: Turns, ours: str, images: int, flops: float = 0, moved: float = 0
) -> dict[str, Any]:
    """Seconds [median, quartiles] of all, images a second, and the part of the limit's rate."""
    seconds = turns.of(ours).median
    rates = dict(turns.rates().values())
    done = {"flops": flops, "bytes": moved}
    return {
        "case": case,
        "ours": ours,
        "seconds": {name: turns.of(name).as_list() for name in turns.seconds},
        "img_per_s": float(f"{images / seconds:.4g}"),
        "part_of_limit": {u: float(f"{done[u] / seconds / r:.3g}") for u, r in rates.items()},
    }


def line(found: dict[str, Any]) -> str:
    """A result in a line."""
    times = ", ".join(f"{name} {1e3 * s[0]:.4g} ms" for name, s in found["seconds"].items())
    parts = ", ".join(f"{part:.0%} of {unit}" for unit, part in found["part_of_limit"].items())
    return f"{found['case']}: {found['img_per_s']:,.4g} img/s; {times}; {parts}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="+", choices=list(CASES), metavar="|".join(CASES))
    parser.add_argument("--out", type=Path, default=Path("on-gpu.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: a rehearsal")
    options = parser.parse_args(arguments)
    card = Card(options.device, options.tiny)
    described = machine() | {"device": torch.cuda.get_device_name() if card.is_cuda else "cpu"}
    kept = json.loads(options.out.read_text())["results"] if options.out.exists() else {}
    for name in options.cases:
        if kept.get(name, {}).get("finished"):
            continue
        kept[name] = {"finished": False, "machine": described, "found": []}
        for one in CASES[name](card):
            print(line(one), flush=True)
            kept[name]["found"].append(one)
            write(options.out, kept)
        kept[name]["finished"] = True
        write(options.out, kept)


def write(path: Path, results: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps({"results": results}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
