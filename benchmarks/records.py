"""Results of benchmarks as data: reading, writing, a table, and the comparison of two runs.

A result is what `measure.Bench.compare` makes: a flat JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsmooth.text import Table, significant

Result = dict[str, Any]
COLUMNS = ("case", "threads", "time", "spread", "rate", "against", "of the limit")


def load(path: Path) -> list[Result]:
    """Raises ValueError, naming the file, if it is not a file of results."""
    try:
        loaded = json.loads(path.read_text())["results"]
        return [dict(result) for result in loaded]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a results.json of `python benchmarks`: {error}") from error


def save(path: Path, results: list[Result]) -> None:
    lines = ",\n".join(json.dumps(result) for result in results)
    path.write_text(f'{{"results": [\n{lines}\n]}}\n')


def merge(before: list[Result], after: list[Result]) -> list[Result]:
    """`before` with its cases replaced by those of `after`, and with new ones; by suite."""
    merged = {name_of(result): result for result in (*before, *after)}
    return sorted(merged.values(), key=lambda result: result["suite"])


def name_of(result: Result) -> str:
    return f"{result['suite']} {result['case']}"


def table(results: list[Result]) -> Table:
    """Time, rate, ratios to the other contenders, and the share of the machine's limit."""
    return Table(COLUMNS, [cells(result) for result in results], "Benchmarks: medians")


def cells(result: Result) -> tuple[str, ...]:
    """A row of the table. The spread: quartiles compared with the median, of several rounds."""
    seconds, q1, q3 = result["seconds"][result["ours"]]
    several = result.get("rounds", 2) > 1
    return (
        name_of(result),
        str(result["threads"]),
        f"{significant(seconds)} s" if seconds >= 1 else f"{significant(seconds * 1e3)} ms",
        f"{q1 / seconds - 1:+.0%} {q3 / seconds - 1:+.0%}" if several else "",
        rate_text(result),
        ratios_text(result),
        limit_text(result),
    )


def rate_text(result: Result) -> str:
    return f"{significant(result['img_per_s'])} img/s" if result["img_per_s"] else ""


def ratios_text(result: Result) -> str:
    """How many times as fast as each other contender; below 1 is slower."""
    medians = {name: median for name, (median, *_) in result["ratios"].items()}
    return ", ".join(
        f"{median:,.0f}x {name}" if median >= 100 else f"{median:.3g}x {name}"
        for name, median in medians.items()
    )


def limit_text(result: Result) -> str:
    """The share reached of what this machine can do: FLOP by a large torch.mm, bytes by a copy."""
    limits = [limit for name, limit in result["limits"].items() if name in ("torch.mm", "copy")]
    seconds = result["seconds"][result["ours"]][0]
    shares = [result[unit] / rate / seconds for unit, rate in limits]
    return f"{max(shares):.0%}" if shares else ""


def compare(before: list[Result], after: list[Result]) -> Iterator[str]:
    """Yield a sentence for each number that changed beyond the spread: the quartiles are disjoint.

    Times are compared on the same device and number of threads; ratios always, because both
    contenders ran on one machine.
    """
    old = {name_of(result): result for result in before}
    compared = changed = 0
    for now in after:
        then = old.pop(name_of(now), None)
        if then is None:
            continue
        names = now["ratios"].keys() & then["ratios"].keys()
        pairs = [(f"ratio to {n}", now["ratios"][n], then["ratios"][n]) for n in sorted(names)]
        if (now["device"], now["threads"]) == (then["device"], then["threads"]):
            pairs.append(("seconds", now["seconds"][now["ours"]], then["seconds"][then["ours"]]))
        for what, new, was in pairs:
            compared += 1
            if was[1] <= new[2] and new[1] <= was[2]:
                continue
            changed += 1
            better = (new[0] < was[0]) == (what == "seconds")
            yield (
                f"{name_of(now)}: {what} {was[0]:.4g} -> {new[0]:.4g} "
                f"({'better' if better else 'WORSE'}, {new[0] / was[0] - 1:+.0%})"
            )
    yield f"{compared} numbers compared, {changed} differ beyond the spread."
