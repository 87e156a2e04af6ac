"""Kernel launches of a training step on a card, counted on the CPU.

`TrainState.step` of a preset runs on CPU tensors in bfloat16 with gates kept, with the operators of
a GPU. Launches of this package's Triton kernels are counted, not run. An operation of torch counts
as many launches as its CUDA implementation makes: none for views and allocations, one for most
others; operations on lists of tensors by the limits of their fast route, or one for each tensor
without it. Copies of images and rates from the host, before the step, are not counted.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pkgutil import resolve_name
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dsmooth
from benchmarks.measure import Bench, quick, smoke
from benchmarks.networks import make_state
from dsmooth.functional import use_impl
from dsmooth.kernels.launch import Prepared

# Tensors of each list that one launch of a foreach operation takes, by the number of lists, and the
# chunks of CHUNK elements (ATen/native/cuda/MultiTensorApply.cuh).
TENSORS_PER_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
CHUNKS_PER_LAUNCH, CHUNK = 320, 65536
CAT_INPUTS = 128  # of one launch (ATen/native/cuda/Shape.cu)
NOTHING = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"),
    *("_unsafe_view", "_local_scalar_dense", "set_"),
    *("_record_function_enter_new", "_record_function_exit"),
}
# Padding fills a new tensor and copies into it.
TWICE = {"constant_pad_nd"}
OTHER = "other operations"
OPERATORS = "gated resnets and likelihood"
# Sections of the count: the function whose launches belong to it.
SECTIONS = {
    "Muon": "dsmooth.training.optimizers.FlatMuon.step",
    "average": "dsmooth.training.optimizers.EMA.update",
    "noise": "dsmooth.smoothing.Smoothing.sample",
    "seed of dropout": "dsmooth.training.step.dropout_seed",
}
KERNELS = ("expand", "gated_resnet", "logistic_mixture", "weights", "philox", "weight_norm")
# Operators inside which torch disables the dispatch mode.
INSIDE = (
    "dsmooth.functional.gated_resnet_triton.ordered",
    *("dsmooth.kernels.gated_resnet.forward", "dsmooth.kernels.gated_resnet.backward"),
)


class Launches(TorchDispatchMode):
    """Counts launches inside the block by section."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.section = OTHER

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        with self:
            yield

    @contextlib.contextmanager
    def inside(self, section: str) -> Iterator[None]:
        """Count launches inside the block in this section, unless it is inside another one."""
        outer = self.section
        if outer == OTHER:
            self.section = section
        try:
            yield
        finally:
            self.section = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "dsmooth":  # its operations are counted one by one
            with self.inside(OTHER if name.startswith("weight_norm") else OPERATORS):
                if name == "logistic_mixture_triton_backward":  # a product for each gradient
                    self.counts[self.section] += sum(args[-1])
                return func(*args, **kwargs)
        self.counts[self.section] += launches_of(name, func, args)
        return func(*args, **kwargs)


def launches_of(name: str, func: Any, args: Sequence[Any]) -> int:
    """The launches of one operation of torch on CUDA tensors."""
    if name in NOTHING or func.is_view:
        return 0
    lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
    if name == "_fused_adam_":
        return multi_tensor_launches(args[:4])
    if name == "_foreach_norm":  # and the sum over the chunks of each tensor
        return multi_tensor_launches(lists) + math.ceil(len(lists[0]) / TENSORS_PER_LAUNCH[1])
    if name.startswith("_foreach_"):
        outputs = [] if name.endswith("_") else lists[:1]
        if not takes_fast_route(lists):
            return len(lists[0])
        return multi_tensor_launches([*lists, *outputs])
    if name in ("cat", "stack"):
        return math.ceil(len(lists[0]) / CAT_INPUTS)
    if name == "convolution_backward":
        return sum(args[-1])
    return 2 if name in TWICE else 1


def takes_fast_route(lists: Sequence[Sequence[Tensor]]) -> bool:
    """Whether all tensors have one dtype, and those at the same index one dense layout."""
    first = lists[0]
    dense = torch._prims_common.is_non_overlapping_and_dense_or_false
    return all(
        len(tensors) == len(first)
        and all(
            a.dtype == first[0].dtype
            and a.shape == b.shape
            and a.stride() == b.stride()
            and dense(a)
            for a, b in zip(tensors, first, strict=True)
        )
        for tensors in lists
    )


def multi_tensor_launches(lists: Sequence[Sequence[Tensor]]) -> int:
    """Launches over lists of tensors, divided as by multi_tensor_apply."""
    limit, launches, tensors, chunks = TENSORS_PER_LAUNCH[len(lists)], 0, 0, 0
    for tensor in lists[0]:
        left = math.ceil(tensor.numel() / CHUNK)
        tensors += left > 0
        while left:
            taken = min(left, CHUNKS_PER_LAUNCH - chunks)
            chunks, left = chunks + taken, left - taken
            full = chunks == CHUNKS_PER_LAUNCH or (not left and tensors == limit)
            if full:
                launches, chunks, tensors = launches + 1, 0, int(left > 0)
    return launches + (chunks > 0)


@contextlib.contextmanager
def counted() -> Iterator[Launches]:
    """Inside the block operators use impl="triton" on the CPU, without running its kernels."""
    launches = Launches()

    def launch(kernel: Any, prepared: Prepared, device: torch.device, **tensors: Any) -> None:
        launches.counts[launches.section] += prepared.programs > 0

    patches = {f"dsmooth.kernels.{name}.launch": launch for name in KERNELS}
    patches |= {path: launches.counting()(resolve_name(path)) for path in INSIDE}
    patches |= {path: launches.inside(s)(resolve_name(path)) for s, path in SECTIONS.items()}
    with contextlib.ExitStack() as stack:
        for path, replacement in patches.items():
            stack.enter_context(mock.patch(path, replacement))
        for op in (
            "gated_resnet",
            "logistic_mixture",
            "dispatch",
        ):  # functions have these names too
            module = import_module(f"dsmooth.functional.{op}")
            stack.enter_context(mock.patch.object(module, "triton_obstacle", return_value=None))
        stack.enter_context(use_impl("triton"))
        yield launches


def launches_of_step(name: str, role: dsmooth.config.Role) -> Counter[str]:
    """The launches of the second step of a preset, by section."""
    settings: dict[str, Any] = {"batch_size": 2, "precision": "bfloat16"}
    with counted() as launches:
        state = make_state(name, role, torch.device("cpu"), **settings)
        state.step()
        launches.counts.clear()
        with launches:
            state.step()
    return launches.counts


@pytest.mark.parametrize(
    ("preset", "role"),
    [
        smoke("mnist-quick", "noisy", id="smoke"),
        *(
            quick(preset, role, id=f"{preset}-{role}")
            for preset in ("mnist", "mnist-quick")
            for role in ("noisy", "denoiser")
        ),
    ],
)
def bench_launches(bench: Bench, preset: str, role: dsmooth.config.Role) -> None:
    """Print the launches of a step: all, and by section."""
    totals = bench.benchmark.pedantic(launches_of_step, [preset, role], rounds=1)
    sections = ", ".join(f"{section} {count}" for section, count in totals.most_common())
    with bench.capsys.disabled():
        print(f"\n  {preset} {role}: {totals.total()} launches a step: {sections}", flush=True)
