"""The device that draws: a GPU, unless the CPU is faster where the extension has no CUDA half."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from .._extension import cuda_obstacle, is_available
from ..distributed import broadcast_int, rank_and_size
from ..machine import choose_device
from ..models import Models
from ..progress import LOG
from ..sampling.cached import Sampler
from ..sampling.output import Manifest, Pictures, Shards
from ..sampling.request import How, Request

# Forwards of Jacobi sampling as a part of the pixels: 114 of 784 for p(x) on MNIST. A pair took 60
# for both steps (docs/benchmarks.md, "Forwards of Jacobi sampling").
JACOBI_FORWARDS = 114 / 784


def drawing_device(
    name: str, models: Models, request: Request, how: How, folder: Path | None = None
) -> torch.device:
    """The device that `name` means, for drawing a request from models on the CPU.

    Where the extension draws on the CPU alone, "auto" decides by a trial between that and Jacobi
    sampling on the GPU, and says so. folder: images are added to it, on the device of those there.
    """
    device = choose_device(name)
    obstacle = cuda_obstacle() if is_available() else None
    if name != "auto" or device.type == "cpu" or obstacle is None:
        return device
    for kind in (Shards, Pictures):
        if folder is not None and (folder / kind.manifest).exists():
            there = Manifest.read(folder / kind.manifest).description.get("device")
            return torch.device("cpu") if there == "cpu" else device
    if how.precision == "bfloat16":  # of the cached sampler alone
        return torch.device("cpu")
    is_faster = False
    if rank_and_size()[0] == 0:
        on_cpu, on_gpu = trial(models, request, how, device)
        is_faster = on_gpu < on_cpu
        if not is_faster:
            times = f"{on_gpu / on_cpu:.1f} times as fast as Jacobi iterations on {device}"
            LOG.info("drawing on the CPU, by a trial %s: %s", times, obstacle)
    return device if broadcast_int(is_faster) else torch.device("cpu")


def trial(models: Models, request: Request, how: How, device: torch.device) -> tuple[float, float]:
    """Seconds that a request takes by the cached sampler on the CPU, and by Jacobi on `device`.

    Measured on an image for each thread and on one forward of each network.
    """
    few = request.part(0, min(request.count, how.threads or torch.get_num_threads()))
    draw = models.drawer(request, Sampler(how))
    draw(request.part(0, 1), lambda _: None)  # packs the weights
    on_cpu = seconds(partial(draw, few, lambda _: None), device) * request.count / few.count
    models.to(device)
    batch = request.part(0, min(request.count, models.chunk))
    x = torch.zeros(batch.count, *models.image_shape, device=device)
    forwards = 0.0
    with torch.no_grad():
        for network in models.networks.values():
            config = network.config
            context = None if config.conditioning == "none" else x
            label = batch.labels(config.condition_size, device) if config.condition_size else None
            level = (
                torch.zeros(len(x), dtype=torch.int64, device=device)
                if config.noise_levels
                else None
            )
            forward = partial(network, x, context, label, level)
            forward()  # makes what it needs
            forwards += seconds(forward, device)
    models.to("cpu")
    pixels = x[0, 0].numel()
    return on_cpu, JACOBI_FORWARDS * pixels * forwards * request.count / batch.count


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that a piece of work takes, with what it leaves on a CUDA device."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
