"""Triton kernels compiled for a GPU, and played where their launchers would have launched them.

    with played({gated_resnet: ["hidden_kernel", ...]}, Memory()) as launches:
        y = dsmooth.functional.gated_resnet(x, ..., impl="triton")   # on the CPU

What launchers allocate by torch.empty, empty_like or new_empty lies in the player's memory,
unwritten, and each byte of it may be written once. Other tensors are inputs: copied in for the
launch, and not to be written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

from dsmooth.kernels import launch as launching
from tests.helpers.triton_canaries import allocating
from tests.helpers.triton_tools import (
    Launch,
    compile_kernel,
    let_triton_run,
    record_launches,
    specialise,
)
from tests.ptx.memory import WARP, Memory
from tests.ptx.player import Player

ARCHITECTURE = 80


class TritonPlayer:
    """Play launches."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._compiled: dict[Any, tuple[Player, int]] = {}

    def play(self, launch: Launch) -> None:
        with self.memory.borrowed():
            values = {name: self._placed(value) for name, value in launch.arguments.items()}
            launch = replace(launch, arguments=values)
            types, *marks = specialise(launch)
            key = (launch.kernel, repr((types, marks, launch.options)))
            if key not in self._compiled:
                compiled = compile_kernel(launch, ARCHITECTURE)
                player = Player(compiled.asm["ptx"], self.memory)
                self._compiled[key] = player, compiled.metadata.shared
            player, shared = self._compiled[key]
            arguments = [x for name, type_ in types.items() for x in _flat(values[name], type_)]
            lanes = WARP * launch.options["num_warps"]
            player.launch(launch.kernel.__name__, launch.grid, (lanes,), arguments, shared)

    def _placed(self, value: Any) -> Any:
        if isinstance(value, tuple):
            parts = [self._placed(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if not isinstance(value, Tensor) or self.memory.holds(value):
            return value
        return self.memory.place(value.detach())


@contextmanager
def played(kernels: dict[ModuleType, list[str]], memory: Memory) -> Iterator[list[list[Launch]]]:
    """Inside the block these kernels are played, and new CPU memory is the player's; gives the
    launches of each module."""
    player = TritonPlayer(memory)

    def placed(like: Tensor) -> Tensor:
        return memory.empty(like.shape, like.dtype, strides=like.stride(), once=True)

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(launching, "capability_of", lambda device: ARCHITECTURE)
        patch.setattr(launching, "allows_tf32", lambda: False)
        let_triton_run(patch)
        stack.enter_context(allocating(placed))
        yield [
            stack.enter_context(record_launches(module, *names, play=player.play))
            for module, names in kernels.items()
        ]


def _flat(value: Any, type_: Any) -> list[Any]:
    """Values passed for an argument: tuples flattened, constants left out."""
    if not isinstance(type_, tuple):
        return [] if type_ == "constexpr" else [value]
    return [part for pair in zip(value, type_, strict=True) for part in _flat(*pair)]
