"""The native sampler and its random words, for wrong calls and wrong programs: see harness.py."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsmooth._extension import extension
from dsmooth.sampling.program import Program
from tests.faults.harness import NOTE, PART, Arguments, Odd, Target, guarded, run
from tests.helpers.networks import network

SHAPE = (3, 1, 8, 8)
REFUSED: Odd = {
    "seed": [-1, 2**64, 1.5, "x"],
    "first_index": [-1, 2**64, 0.5],
    "temperature": [0.0, -1.0, float("nan"), float("inf"), "x"],
    "guidance": [-1.0, float("nan"), float("inf"), "x", 0.5],  # these models are not pairs
    "threads": [0, -1, 2**31, 2**40, 1.5],
    "slice": [-1, 2**31, 1.5],
    "height": [-4, 0, 6, 2**15 + 4, 2**31, 8.0, "x"],
    "width": [-4, 0, 6, 2**15 + 4, 2**31, 8.0, "x"],
    "counter": [[], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 2**32], [-1, 0, 0, 0], "abcd", 3],
    "key": [(), (1,), (1, 2, 3), (2**32, 0), (0, -1), (1.5, 0), "ab", 3],
}
ACCEPTED: Odd = {
    "seed": [2**64 - 1],
    "first_index": [2**63],
    "temperature": [1e-30, 1e30],
    "threads": [64, 10**6],
    "slice": [1, 1000, 2**31 - 1],
    "progress": [3, "x", lambda: None],
    "height": [2**15],
    "width": [2**15],
}
ONE_THREAD: Arguments = {"threads": 1, "slice": 0, "progress": None}

CLASSES = 2
BYTES: dict[str, Any] = {"atoms": "all", "fourier_features": 8, "head_filters": 3}


def make_program(conditioning: str, bf16: bool, n_classes: int = 0, **more: Any) -> Program:
    """more: fields of the model's configuration."""
    sizes = {"n_filters": 3, "n_mix": 2, "n_classes": n_classes}
    kind = {"likelihood": "discretized", "conditioning": conditioning}
    return Program(network(**sizes, **kind | more), bf16=bf16)


def make_sampler(conditioning: str, bf16: bool, n_classes: int = 0, **more: Any) -> Any:
    return extension().CpuSampler(make_program(conditioning, bf16, n_classes, **more), bf16, "auto")


def _arguments(conditioning: str, completes: bool = False, n_classes: int = 0) -> Arguments:
    """completes: some pixels are known, the first row among them."""
    context = torch.linspace(-1, 1, 192).view(SHAPE)
    mask = (torch.arange(192) % 64 % 9 < 8).view(3, 8, 8) & completes
    return {
        "out": guarded(torch.where(mask[:, None], context.flip(0), torch.nan)),
        "context": None if conditioning == "none" else guarded(context),
        "mask": guarded(mask.view(torch.uint8)) if completes else None,
        "labels": guarded(torch.tensor([-1, 0, 1])) if n_classes else None,
        "seed": 5,
        "first_index": 2,
        "temperature": 1.0,
        "guidance": 0.0,
        "threads": 2,
        "slice": 0,
        "progress": None,
    }


def _target(
    conditioning: str, bf16: bool, completes: bool, n_classes: int = 0, **more: Any
) -> Target:
    sampler = make_sampler(conditioning, bf16, n_classes, **more)

    def call(given: Arguments) -> list[Tensor]:
        sampler.sample(**given)
        assert given["out"].isfinite().all()
        return []

    return Target(
        f"_C.CpuSampler.sample, {conditioning}, {bf16=}, {completes=}, {n_classes=}, {more}",
        *(lambda: _arguments(conditioning, completes, n_classes), call, REFUSED, ACCEPTED),
        *(ONE_THREAD, "out", True),
    )


PLAIN = make_sampler("none", False)  # whose caches are rings of rows


def test_bytes_are_linear_in_rows_and_columns() -> None:
    eight, twelve, most = (PLAIN.bytes_per_image(8, width) for width in (8, 12, 2**15))
    assert (
        most == PLAIN.bytes_per_image(2**15, 2**15) == eight + (2**15 - 8) // 4 * (twelve - eight)
    )


TARGETS = [
    *(
        _target(conditioning, bf16, False)
        for conditioning in ("none", "stack", "concat")
        for bf16 in (False, True)
    ),
    _target("none", False, True),
    _target("stack", True, True),
    _target("concat", False, False, CLASSES),
    _target("none", True, True, CLASSES),
    _target("none", True, False, **BYTES),
    _target("stack", False, True, **BYTES),
    Target(
        "_C.CpuSampler.bytes_per_image",
        lambda: {"height": 8, "width": 8},
        lambda given: [torch.tensor(PLAIN.bytes_per_image(**given))],
        *(REFUSED, ACCEPTED),
    ),
    Target(
        "_C.philox4x32_10",
        lambda: {"counter": [1, 2, 3, 2**32 - 1], "key": (5, 2**32 - 1)},
        lambda given: [torch.tensor(extension().philox4x32_10(**given))],
        *(REFUSED, ACCEPTED),
    ),
]
ALSO = (
    "_C.CpuSampler.__init__",
    "_C.CpuSampler.instruction_set",
    "_C.instruction_sets",
)


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_wrong_call_raises_or_draws_rightly(target: Target) -> None:
    run(target)


def test_what_is_written_has_memory_of_its_own() -> None:
    given = _arguments("stack", completes=True, n_classes=2)
    out, sampler = given["out"], make_sampler("stack", False, 2)
    read = {
        "context": out,
        "mask": out.view(torch.uint8).flatten()[:192].view(3, 8, 8),
        "labels": out.flatten()[-6:].view(torch.int64),
    }
    for name, same in read.items():
        with pytest.raises(ValueError, match=f"out must have memory of its own, .* of {name}"):
            sampler.sample(**given | {name: same})


def test_guidance_needs_labels() -> None:
    two = {"out": guarded(torch.zeros(2, 1, 8, 8)), "guidance": 0.5}
    with pytest.raises(ValueError, match=r"guidance must be .*, 0 without labels, got 0\.5"):
        make_sampler("none", False).sample(**_arguments("none") | two)


NUMBERS = [-(2**31), -2, -1, 0, 1, 2, 3, 5, 64, 2**20, 2**31 // 10 + 1, 2**31 - 1, 2**31, 2**70]
ODD = [None, "x", 1.5, True, False, (), [], {}, np.zeros(3), torch.ones(2), object(), *NUMBERS]
WEIGHTS = [
    *(np.zeros(shape) for shape in ((), (0,), (3,), (3, 1), (3, 1, 6), (0, 1, 6), (3, 1, 6, 1))),
    *(np.full((3, 1, 6), value) for value in (np.nan, np.inf, 1e300)),
    *(np.zeros((3, 1, 6), dtype) for dtype in (bool, np.int64, np.complex64, object, "U1")),
    [[[1.0] * 6]] * 3,
    torch.zeros(3, 1, 6),
    "abc",
    None,
]
# Odd values in addition to ODD.
VALUES_OF: dict[str, list[Any]] = {
    "likelihood": ["continuous", "gaussian", "bogus", ""],
    "smoothing_scale": [-1.0, float("nan")],
    **dict.fromkeys(("weight", "bias", "projection", "features"), WEIGHTS),
}
ARGUMENTS: dict[str, list[Any]] = {
    "program": [None, "x", 3, object()],
    "bf16": [None, "x", True, False],
    "instruction_set": ["generic", "sse9", "", 3],
}


def wrong_values(program: Program) -> Iterator[tuple[str, dict[str, Any]]]:
    """Words, and the arguments of a sampler with a wrong value, most in a part of the program."""
    arguments: dict[str, Any] = {"program": program, "bf16": False, "instruction_set": "auto"}
    for name, odd in ARGUMENTS.items():
        yield from ((f"{name}: {value!r}", arguments | {name: value}) for value in odd)
    terms = [term for op in program.ops for term in op.terms]
    for number, part in enumerate([program, *program.ops, *program.caches, *terms]):
        for name, right in sorted(vars(part).items()):
            odd = WEIGHTS if VALUES_OF.get(name) is WEIGHTS else [*VALUES_OF.get(name, []), *ODD]
            for value in odd:
                object.__setattr__(part, name, value)
                yield f"part {number}, {name}: {value!r:.40}", arguments
            object.__setattr__(part, name, right)


@pytest.mark.parametrize(
    ("conditioning", "n_classes", "more"),
    [("none", 0, {}), ("stack", CLASSES, {}), ("concat", 0, {}), ("stack", 0, BYTES)],
)
def test_a_wrong_program_is_refused_or_draws_within_its_memory(
    conditioning: str, n_classes: int, more: dict[str, Any]
) -> None:
    calls = refused = 0
    for words, arguments in islice(
        wrong_values(make_program(conditioning, False, n_classes, **more)), 0, None, 17 * PART
    ):
        Path(NOTE).write_text(f"_C.CpuSampler with {words}")
        calls += 1
        try:
            sampler = extension().CpuSampler(**arguments)
        except Exception as error:
            if isinstance(error, SystemError):
                raise
            refused += 1
            continue
        if sampler.bytes_per_image(8, 8) > 2**24:
            continue
        program = arguments["program"]
        shape = (3, program.image_channels, 8, 8)
        context = torch.zeros(shape) if program.conditioned else None
        labels = torch.zeros(3, dtype=torch.int64) if program.n_classes else None
        for threads in (1, 4):
            given = {"out": torch.zeros(shape), "context": context, "labels": labels}
            sampler.sample(**_arguments(conditioning) | given | {"threads": threads})
    print(f"_C.CpuSampler.__init__, {conditioning}: {calls} calls, {refused} refused")
    assert refused > calls // 3
