"""One instruction played on given values: for the tests of the player itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from tests.ptx.lanes import DTYPES
from tests.ptx.layout import WARP
from tests.ptx.memory import Memory
from tests.ptx.parse import SIZES
from tests.ptx.player import Player

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
MOVED = {1: "u8", 2: "b16", 4: "b32", 8: "b64"}


def _register(prefix: str, i: int, type_: str) -> str:
    return (
        f".reg .{'pred' if type_ == 'pred' else 'b' + str(8 * max(SIZES[type_], 2))} %{prefix}{i};"
    )


@cache
def _player(code: str, results: tuple[str, ...], sources: tuple[str, ...]) -> tuple[Player, Memory]:
    memory = Memory(1 << 18)
    lines = [_register("d", i, t) for i, t in enumerate(results)]
    lines += [_register("s", i, t) for i, t in enumerate(sources)]
    lines += [".reg .b64 %a; .reg .b64 %t; .reg .b32 %i; .reg .b16 %h;", "mov.u32 %i, %tid.x;"]
    arrays = [f"out{i}" for i in range(len(results))] + [f"in{i}" for i in range(len(sources))]
    for i, type_ in enumerate(sources):
        lines += [f"ld.param.u64 %a, [in{i}];", f"mad.wide.u32 %a, %i, {SIZES[type_]}, %a;"]
        if type_ == "pred":
            lines += ["ld.global.u8 %h, [%a];", f"setp.ne.b16 %s{i}, %h, 0;"]
        else:
            lines += [f"ld.global.{MOVED[SIZES[type_]]} %s{i}, [%a];"]
    lines += [code]
    for i, type_ in enumerate(results):
        lines += [f"ld.param.u64 %a, [out{i}];", f"mad.wide.u32 %a, %i, {SIZES[type_]}, %a;"]
        if type_ == "pred":
            lines += [f"selp.u16 %h, 1, 0, %d{i};", "st.global.u8 [%a], %h;"]
        else:
            lines += [f"st.global.{MOVED[SIZES[type_]]} [%a], %d{i};"]
    parameters = ", ".join(f".param .u64 {name}" for name in arrays)
    text = f"{HEADER}.entry one({parameters}) {{\n" + "\n".join(lines) + "\nret;\n}\n"
    return Player(text, memory), memory


def evaluate(
    code: str, results: Sequence[str], sources: Sequence[tuple[str, Sequence[object]]]
) -> list[np.ndarray]:
    """code: instructions that set %d0, ... from %s0, ..., which hold the sources, a value a lane.

    sources: types and values; of bf16 and the like their bits. Values are repeated to whole warps;
    what comes back has as many as were given.
    """
    count = len(sources[0][1])
    lanes = -(-count // WARP) * WARP
    player, memory = _player(code, tuple(results), tuple(type_ for type_, _ in sources))
    with memory.borrowed():
        inputs = []
        for type_, values in sources:
            array = np.resize(np.array(values, DTYPES[type_]), lanes)
            inputs.append(memory.place(torch.from_numpy(array.view(np.uint8))))
        outputs = [memory.empty((lanes * SIZES[t],), torch.uint8, once=True) for t in results]
        player.launch("one", (1,), (lanes,), [*outputs, *inputs])
        found = [o.clone().numpy().view(DTYPES[t]) for o, t in zip(outputs, results, strict=True)]
    return [values[:count] for values in found]
