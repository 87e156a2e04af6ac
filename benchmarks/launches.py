"""Kernel launches of a training step on a card, counted on the CPU.

`TrainState.step` of a preset runs on CPU tensors in bfloat16 with the operators of a GPU. Launches
of this package's Triton kernels are counted, not run. An operation of torch counts as many launches
as its CUDA implementation makes: none for views and allocations, one for most others; operations on
lists of tensors by the limits of their fast route. Copies of
images and rates from the host, before the step, are not counted.
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

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dsmooth
from benchmarks.networks import make_state
from dsmooth.functional import use_impl

# Tensors of each list that one launch of a foreach operation takes, by the number of lists
# (ATen/native/cuda/MultiTensorApply.cuh), and of `cat` (ATen/native/cuda/Shape.cu).
TENSORS_PER_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
CAT_INPUTS = 128
NOTHING = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"),
    *("_unsafe_view", "_local_scalar_dense", "set_"),
    *("_record_function_enter_new", "_record_function_exit"),
}
KERNELS = ("expand", "gated_resnet", "logistic_mixture", "weights", "philox")
# Operators inside which torch disables the dispatch mode.
INSIDE = (
    "dsmooth.functional.gated_resnet_op.ordered",
    *("dsmooth.kernels.gated_resnet.forward", "dsmooth.kernels.gated_resnet.backward"),
)


class Launches(TorchDispatchMode):
    """Counts launches inside the block. kernels: those of this package, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.kernels: Counter[str] = Counter()

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        with self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if name == "logistic_mixture_backward":  # a product for each gradient
            self.count += sum(args[-1])
        elif namespace != "dsmooth":  # whose operations are counted one by one
            self.count += launches_of(name, func, args)
        return func(*args, **(kwargs or {}))


def launches_of(name: str, func: Any, args: Sequence[Any]) -> int:
    """The launches of one operation of torch on CUDA tensors."""
    if name in NOTHING or func.is_view:
        return 0
    lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
    if name == "_fused_adam_":
        return list_launches(args[:4])
    if name == "_foreach_norm":  # and the sum over the chunks of each tensor
        return 2 * list_launches(lists)
    if name.startswith("_foreach_"):
        outputs = [] if name.endswith("_") else lists[:1]
        return list_launches([*lists, *outputs])
    if name in ("cat", "stack"):
        return math.ceil(len(lists[0]) / CAT_INPUTS)
    if name == "convolution_backward":
        return sum(args[-1])
    return 2 if name == "constant_pad_nd" else 1  # which fills a new tensor and copies into it


def list_launches(lists: Sequence[Sequence[Tensor]]) -> int:
    """Launches over lists of tensors, all of them small."""
    return math.ceil(len(lists[0]) / TENSORS_PER_LAUNCH[len(lists)])


@contextlib.contextmanager
def counted() -> Iterator[Launches]:
    """Inside the block operators use impl="triton" on the CPU, without running its kernels."""
    launches = Launches()

    def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
        if 0 in grid:
            return
        launches.count += 1
        unpacks = ", with gradients of parameters" if arguments.get("unpacked") else ""
        launches.kernels[kernel.__name__ + unpacks] += 1

    patches = {f"dsmooth.kernels.{name}.launch": launch for name in KERNELS}
    patches |= {path: launches.counting()(resolve_name(path)) for path in INSIDE}
    with contextlib.ExitStack() as stack:
        for path, replacement in patches.items():
            stack.enter_context(mock.patch(path, replacement))
        for op in ("gated_resnet_op", "logistic_mixture_op", "device_words"):
            module = import_module(f"dsmooth.functional.{op}")
            stack.enter_context(mock.patch.object(module, "triton_obstacle", return_value=None))
        stack.enter_context(use_impl("triton"))
        yield launches


def launches_of_step(name: str, role: dsmooth.config.Role) -> int:
    """The launches of the second step of a preset."""
    with counted() as launches:
        settings: dict[str, Any] = {"batch_size": 2, "precision": "bfloat16"}
        state = make_state(name, role, torch.device("cpu"), **settings)
        state.step()
        launches.count = 0
        with launches:
            state.step()
    return launches.count
