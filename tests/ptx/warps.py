"""Instructions by which the lanes of a warp exchange values: shuffles, votes, reductions."""

from __future__ import annotations

import numpy as np

from tests.ptx.forms import Action, Modifiers, form, put, refuse
from tests.ptx.lanes import DTYPES, Group, Registers
from tests.ptx.layout import WARP, Trap
from tests.ptx.parse import Instruction


def check_members(members: np.ndarray, group: Group) -> None:
    """All lanes that the mask names must be here, and name themselves."""
    mask = np.zeros(len(members), bool)
    mask[group.lanes] = True
    here = mask.reshape(-1, WARP)
    bits = (here * (np.uint64(1) << np.arange(WARP, dtype=np.uint64))).sum(1)
    named = members.reshape(-1, WARP).astype(np.uint64)
    wrong = here & (named != bits[:, None])
    if wrong.any():
        row, lane = (int(i[0]) for i in np.nonzero(wrong))
        raise Trap(
            f"warp {row} has lanes {int(bits[row]):#x} here; lane {lane} names "
            f"{int(named[row, lane]):#x}"
        )


def shuffle_sources(mode: str, by: np.ndarray, clamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lane of its warp that each lane takes from, and whether it is in range."""
    lane = np.arange(len(by)) % WARP
    by, clamp = by.astype(np.int64), clamp.astype(np.int64)
    segment, bound = clamp >> 8 & 31, clamp & 31
    by = by & 31
    most = (lane & segment) | (bound & ~segment)
    least = lane & segment
    if mode == "up":
        source = lane - by
        inside = source >= most
    elif mode == "down":
        source = lane + by
        inside = source <= most
    elif mode == "bfly":
        source = lane ^ by
        inside = source <= most
    else:
        source = least | (by & ~segment)
        inside = source <= most
    return np.where(inside, source, lane), inside


@form("shfl")
def shfl(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    mode = modifiers.take("up", "down", "bfly", "idx")
    if not modifiers.take("sync") or type_ != "b32" or not mode:
        raise refuse(instruction)
    modifiers.done()
    target, a, by, clamp, members = instruction.operands
    targets = target.parts if target.kind == "pair" else (target,)
    d = registers.write(targets[0], "b32")
    p = registers.write(targets[1], "pred") if len(targets) > 1 else None
    value, step, bound, names = (registers.read(o, "u32") for o in (a, by, clamp, members))

    def run(group: Group) -> None:
        check_members(names, group)
        source, inside = shuffle_sources(mode, step, bound)
        at = np.arange(len(source)) // WARP * WARP + source
        here = np.zeros(len(at), bool)
        here[group.lanes] = True
        if not here[at[here]].all():
            raise Trap("a shuffle from a lane that is not in it")
        put(d, value[at], group)
        if p is not None:
            put(p, inside, group)

    return run


@form("vote")
def vote(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    mode = modifiers.take("all", "any", "uni", "ballot")
    if not modifiers.take("sync") or not mode or (type_ == "b32") != (mode == "ballot"):
        raise refuse(instruction)
    modifiers.done()
    target, source, members = instruction.operands
    p, names = registers.read(source, "pred"), registers.read(members, "u32")
    d = registers.write(target, type_)

    def run(group: Group) -> None:
        check_members(names, group)
        here = np.zeros(len(p), bool)
        here[group.lanes] = True
        truth = ((~p if source.negated else p) & here).reshape(-1, WARP)
        here = here.reshape(-1, WARP)
        if mode == "ballot":
            each = (truth * (np.uint64(1) << np.arange(WARP, dtype=np.uint64))).sum(1)
        elif mode == "any":
            each = truth.any(1)
        else:
            each = (truth == here).all(1)
            if mode == "uni":
                each |= ~truth.any(1)
        put(d, np.repeat(each, WARP).astype(d.dtype), group)

    return run


@form("redux")
def redux(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    name = modifiers.take("add", "min", "max", "and", "or", "xor")
    ufuncs = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
        "or": np.bitwise_or, "xor": np.bitwise_xor,
    }  # fmt: skip
    if not modifiers.take("sync") or not name or type_ not in ("u32", "s32", "b32"):
        raise refuse(instruction)
    modifiers.done()
    target, source, members = instruction.operands
    a, names = registers.read(source, type_), registers.read(members, "u32")
    d = registers.write(target, type_)

    def run(group: Group) -> None:
        check_members(names, group)
        for warp in group.warps:  # a part of a warp is refused
            row = slice(warp * WARP, (warp + 1) * WARP)
            d[row] = ufuncs[name].reduce(a[row], dtype=DTYPES[type_])

    return run


@form("activemask")
def activemask(instruction: Instruction, registers: Registers) -> Action:
    d = registers.write(instruction.operands[0], "b32")

    def run(group: Group) -> None:
        here = np.zeros(len(d), bool)
        here[group.lanes] = True
        bits = (here.reshape(-1, WARP) * (np.uint64(1) << np.arange(WARP, dtype=np.uint64))).sum(1)
        put(d, np.repeat(bits, WARP).astype(np.uint32), group)

    return run


@form("bar")
def warp_barrier(instruction: Instruction, registers: Registers) -> Action:
    """Lanes of a warp that run together have met already; all that are named must be here."""
    if instruction.modifiers != ("warp", "sync"):
        raise refuse(instruction)
    names = registers.read(instruction.operands[0], "u32")
    return lambda group: check_members(names, group)
