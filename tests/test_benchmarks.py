"""The documents show the committed results of the benchmarks."""

from __future__ import annotations

from benchmarks import write_docs


def test_the_documents_are_what_the_results_give() -> None:
    for path, text in write_docs.texts().items():
        assert path.read_text() == text, f"run `python benchmarks --write-docs` for {path.name}"
