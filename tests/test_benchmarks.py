"""The documents show the committed results of the benchmarks; two results are compared."""

from __future__ import annotations

import copy

import pytest

from benchmarks import results, write_docs

pytestmark = pytest.mark.quick


def test_the_documents_are_what_the_results_give() -> None:
    for path, text in write_docs.texts().items():
        assert path.read_text() == text, f"run `python benchmarks --write-docs` for {path.name}"


def test_a_case_differs_where_the_quartiles_do_not_overlap() -> None:
    (saved, *_) = write_docs.saved_results().values()
    assert results.merge(saved, saved[3:5]) == saved
    (total,) = results.compare(saved, saved)
    assert total.endswith("numbers compared, 0 differ beyond the spread.")
    for change, word in ((0.5, "better"), (2.0, "WORSE")):
        after = copy.deepcopy(saved)
        seconds = after[0]["seconds"]
        seconds[after[0]["ours"]] = [change * value for value in seconds[after[0]["ours"]]]
        told, total = results.compare(saved, after)
        assert told.startswith(f"{results.name_of(saved[0])}: seconds ")
        assert f"({word}, {change - 1:+.0%})" in told
        assert ", 1 differ beyond the spread." in total
