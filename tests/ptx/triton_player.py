"""Triton kernels compiled for a GPU, and played where their launchers would have launched them.

    with played(gated_resnet, "hidden_kernel", ...) as player:
        y = dsmooth.functional.gated_resnet(x, ..., impl="triton")   # on the CPU

What launchers allocate by torch.empty or torch.empty_like lies in the player's memory, unwritten,
and each byte of it may be written once. Other tensors are inputs: copied in for the launch, and not
to be written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.kernels import launch as launching
from tests.helpers.triton_tools import LAUNCH_OPTIONS, Launch, compile_kernel, specialise
from tests.ptx.memory import WARP, Memory
from tests.ptx.player import Player


class TritonPlayer:
    """Play launches; `edit` may change the PTX of a kernel, given its name and text."""

    def __init__(self, memory: Memory, arch: int = 80, edit: Any = None) -> None:
        self.memory, self.arch, self.edit = memory, arch, edit
        self.launches: list[str] = []
        self.instructions = 0
        self._compiled: dict[Any, tuple[Player, int]] = {}

    def play(
        self, kernel: Any, grid: tuple[int, ...], values: dict[str, Any], options: Any
    ) -> None:
        with self.memory.borrowed():
            values = {name: self._placed(value) for name, value in values.items()}
            launch = Launch(kernel, grid, values, options)
            types, *marks = specialise(launch)
            player, shared = self._compile(launch, repr((types, marks, options)))
            arguments: list[Any] = []
            for name, type_ in types.items():
                arguments += _flat(values[name], type_)
            before = player.instructions
            player.launch(kernel.__name__, grid, (WARP * options["num_warps"],), arguments, shared)
            self.instructions += player.instructions - before
            self.launches.append(kernel.__name__)

    def _placed(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._placed(part) for part in value)
        if not isinstance(value, Tensor) or self.memory.holds(value):
            return value
        return self.memory.place(value.detach())

    def _compile(self, launch: Launch, what: str) -> tuple[Player, int]:
        key = (launch.kernel, what)
        if key not in self._compiled:
            compiled = compile_kernel(launch, self.arch)
            text = compiled.asm["ptx"]
            if self.edit is not None:
                text = self.edit(launch.kernel.__name__, text)
            self._compiled[key] = Player(text, self.memory), compiled.metadata.shared
        return self._compiled[key]


class _Played:
    def __init__(self, kernel: Any, player: TritonPlayer) -> None:
        self.kernel, self.player = kernel, player

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **named: Any) -> None:
            named.pop("enable_fp_fusion", None)
            options = {name: named.pop(name, value) for name, value in LAUNCH_OPTIONS.items()}
            values = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
            self.player.play(self.kernel, grid, values, options)

        return launch


@contextmanager
def played(
    kernels: dict[ModuleType, list[str]], memory: Memory, *, tf32: bool = False, edit: Any = None
) -> Iterator[TritonPlayer]:
    """Inside the block these kernels are played, and new CPU memory is the player's."""
    player = TritonPlayer(memory, edit=edit)
    original, original_like = torch.empty, torch.empty_like

    def empty(*size: Any, **kw: Any) -> Tensor:
        like = original(*size, **{**kw, "device": "meta"})
        device = torch.device(kw.get("device") or "cpu")
        if device.type != "cpu" or like.numel() == 0 or _tracing():
            return original(*size, **kw)
        return memory.empty(like.shape, like.dtype, strides=like.stride(), once=True)

    def empty_like(given: Tensor, **kw: Any) -> Tensor:
        like = original_like(given, **{**kw, "device": "meta"})
        if given.device.type != "cpu" or like.numel() == 0 or _tracing():
            return original_like(given, **kw)
        return memory.empty(like.shape, like.dtype, strides=like.stride(), once=True)

    def new_empty(self: Tensor, *size: Any, **kw: Any) -> Tensor:
        kw = {"dtype": self.dtype, "device": self.device, **kw}
        return empty(*size, **kw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "capability_of", lambda device: player.arch)
        patch.setattr(launching, "allows_tf32", lambda: tf32)
        for op in ("gated_resnet", "logistic_mixture"):
            asked = import_module(f"dsmooth.functional.{op}")
            patch.setattr(asked, "triton_obstacle", lambda *args, **kw: None)
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch, "empty_like", empty_like)
        patch.setattr(Tensor, "new_empty", new_empty)
        for module, names in kernels.items():
            for name in names:
                patch.setattr(module, name, _Played(getattr(module, name), player))
        yield player


def _tracing() -> bool:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    return isinstance(_get_current_dispatch_mode(), FakeTensorMode)


def _flat(value: Any, type_: Any) -> list[Any]:
    """Values passed for an argument: tuples taken apart, constants left out."""
    if not isinstance(type_, tuple):
        return [] if type_ == "constexpr" else [value]
    return [part for pair in zip(value, type_, strict=True) for part in _flat(*pair)]
