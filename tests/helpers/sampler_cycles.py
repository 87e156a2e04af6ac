"""Where the cycles of the CUDA sampler's bfloat16 kernel go, counted in its machine code.

All are sums of encoded stalls along the longest way, which takes every branch. Of a pixel part: a
window of up to 8 steps that finishes its unit (a stage), and one that stores nothing, for 8 images
and for 16. Of a row part, for tiles of 16 and of 48 rows: a step of k; a group of 16 rows by 16
columns that is finished; and all else of a tile, once.
"""

from __future__ import annotations

from tests.helpers.machine_code import Block, longest_path, reachable

STEPS_OF_LOOP = 2  # kAhead in row_tiles.cuh


def products(blocks: list[Block]) -> int:
    return sum(b.count("HMMA") for b in blocks)


def is_barrier(block: Block) -> bool:
    return block.count("BAR") > 0


def cycles(blocks: list[Block]) -> int:
    assert blocks, "there is no such way"
    return sum(b.stall for b in blocks)


def parts(functions: dict[str, list[Block]]) -> tuple[list[list[Block]], list[Block]]:
    """The functions of pixel parts, for 8 images and for 16, and that of row parts."""
    multiply = [f for f in functions.values() if products(f)]
    stages = sorted((f for f in multiply if any(map(is_barrier, f))), key=products)
    (rows,) = (f for f in multiply if not any(map(is_barrier, f)))
    assert len(stages) == 2
    return stages, rows


def stage_way(stage: list[Block]) -> list[Block]:
    """Between two barriers."""
    (barrier,) = filter(is_barrier, stage)
    return longest_path(barrier, is_barrier)


def window_way(stage: list[Block]) -> list[Block]:
    """From the first products of a window to those of the next, with no store between."""
    (barrier,) = filter(is_barrier, stage)
    first = next(b for b in stage_way(stage) if b.count("HMMA"))
    quiet = lambda b: b is not barrier and not b.count("STG")  # noqa: E731
    return longest_path(first, lambda _: False, quiet)


def row_loops(rows: list[Block]) -> list[Block]:
    """The loops over k, of 16 rows and of 48."""
    loops = sorted(
        (b for b in rows if b.count("HMMA") and b in b.next), key=lambda b: products([b])
    )
    assert len(loops) == 2
    return loops


def finish_way(loop: Block, other: Block) -> list[Block]:
    """From a group of results to the next, in the tile of a loop."""

    def finishes(block: Block) -> bool:
        weights = any(i.name.startswith("LDG.E.EF") for i in block.instructions)
        return not weights and not block.count("HMMA")

    behind = reachable(loop, lambda b: b is other)
    ways = [longest_path(b, lambda _: False, finishes) for b in behind if b.count("STG")]
    return max(ways, key=lambda way: sum(b.stall for b in way))


def count_cycles(functions: dict[str, list[Block]]) -> dict[str, dict[str, int]]:
    """Cycles; pixel parts by images, row parts by rows."""
    stages, rows = parts(functions)
    low, tall = row_loops(rows)
    found: dict[str, dict[str, int]] = {
        "stage": {}, "window": {}, "row_step": {}, "row_finish": {}, "row_rest": {},
    }  # fmt: skip
    for images, stage in zip(("8", "16"), stages, strict=True):
        found["stage"][images] = cycles(stage_way(stage))
        found["window"][images] = cycles(window_way(stage))
    for height, loop, other in (("16", low, tall), ("48", tall, low)):
        finish = cycles(finish_way(loop, other))
        whole = cycles(longest_path(loop, lambda _: False, lambda b, o=other: b is not o))
        found["row_step"][height] = -(-loop.stall // STEPS_OF_LOOP)
        found["row_finish"][height] = finish
        found["row_rest"][height] = whole - loop.stall - finish
    return found
