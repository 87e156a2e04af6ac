"""The documentation is true: its commands and code run, its paths and names exist.

`python -m tests.test_docs` writes the tables of all settings in docs/api/training.md.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import MISSING, fields
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import torch
from docstring_parser import parse_from_object

import dsmooth
from dsmooth.config import ModelConfig, TrainConfig
from dsmooth.data import load_dataset
from tests.helpers.command_runs import measure_few, run, save_run, smaller
from tests.helpers.data_makers import random_bytes, write_images
from tests.helpers.rank_processes import start_ranks, wait_for_all

ROOT = Path(__file__).parent.parent
HELP, NOTEBOOK = "help(dsmooth)", "docs/quickstart.ipynb"
MANY_MACHINES = "docs/many_machines.md"
# Pages whose code and commands run in order, in a folder without runs. Each section of DIVIDED has
# its own folder, with small runs in `runs`.
ROWS: tuple[tuple[str, ...], ...] = (
    (HELP,),
    (NOTEBOOK,),
    ("README.md",),
    ("docs/own_images.md",),
    ("docs/api/training.md",),
    ("docs/unlabelled.md",),
    ("docs/guide.md",),
)
DIVIDED = ("docs/own_loop.md", "docs/recipes.md")
# A section that needs the packaged models as they were trained.
TRAINED = "A likelihood for every pixel"
# Options for data and weights that the tests do not have.
ELSEWHERE = re.compile(r"--(preset|data|data-dir|extractor) \S+ ?")
SHORTER = {
    "sample(64": "sample(2", "sample(256": "sample(4", "[:256]": "[:4]",
    "image_size=32": "image_size=8",
}  # fmt: skip
FEWER = {
    "images=12_000, evaluations=2": "images=48, evaluations=1, evaluation_images=8",
    "(32": "(4", ", 32,": ", 4,", "arange(8)": "arange(2)", "leave(6,": "leave(3,",
    "(8, 6)": "(2, 3)",
}  # fmt: skip


def sections(page: str) -> dict[str, str]:
    """The text below each second-level heading, and the text before the first."""
    if page == HELP:
        text = dsmooth.__doc__ or ""
        example = text[text.index("    import dsmooth") : text.index("A pair of your own")]
        return {"": f"```python\n{dedent(example)}```"}
    if page == NOTEBOOK:
        cells = json.loads((ROOT / page).read_text())["cells"]
        code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        return {"": "".join(f"```python\n{source}\n```\n" for source in code)}
    first, *rest = re.split(r"^## (.*)\n", (ROOT / page).read_text(), flags=re.M)
    return {"": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


def blocks(page: str, *headings: str) -> Iterator[tuple[str, str]]:
    """Language and text of each code block of the sections, or of the whole page."""
    texts = sections(page)
    for heading in headings or texts:
        yield from re.findall(r"```(\w*)\n(.*?)```", texts[heading], re.S)


def rows() -> list[tuple[str, ...]]:
    """ROWS, and each section of DIVIDED with code or commands."""

    def has_something(page: str, heading: str) -> bool:
        commands = re.compile(r"^(dsmooth|torchrun) ", re.M)
        return any(
            kind == "python" or commands.search(text) for kind, text in blocks(page, heading)
        )

    single = [(page, heading) for page in DIVIDED for heading in sections(page)]
    return [*ROWS, *(row for row in single if has_something(*row))]


def shrink(line: str) -> list[str]:
    """The arguments of the documented command, with a tiny network and few images."""
    command = smaller(line.replace("--image-size 32", "--image-size 8"))
    if line.endswith("--out photographs"):  # a folder to train on
        return [*command, "-n", "40"]
    if "--image-size" in command:  # colours, whose samples diverge for longer
        return [*command, "--images", "240"]
    if "--init" in command:
        few = "--images 16 --set evaluations=1 --set evaluation_images=4"
        return [*shlex.split(line)[1:], *few.split()]
    return command


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, networks of older ports, and runs of a pair of small networks."""
    folder = tmp_path_factory.mktemp("ground")
    pixels = random_bytes((40, 8, 12, 3))
    write_images(folder / "images", {f"{i}.png": picture for i, picture in enumerate(pixels)})
    for golden in (ROOT / "tests" / "golden").glob("network_*_k2.safetensors"):
        shutil.copy(golden, folder)
    for role in ("noisy", "denoiser"):
        save_run(folder / "runs" / role, role, size=28)
    return folder


@pytest.mark.long
@pytest.mark.usefixtures("few_digits", "no_fidelity", "no_plots")
@pytest.mark.parametrize(
    "row", [*rows(), pytest.param((MANY_MACHINES,), marks=pytest.mark.full)], ids=" ".join
)
def test_documented_commands_and_code_run(row, ground, tmp_path, monkeypatch, request) -> None:
    if TRAINED not in row:
        request.getfixturevalue("small_models")
    monkeypatch.chdir(shutil.copytree(ground, tmp_path, dirs_exist_ok=True))
    if len(row) == 1:  # a whole page, which trains its own
        shutil.rmtree("runs")
    together: dict[str, object] = {}  # of the cells of the notebook
    measure_few(monkeypatch)
    for language, text in blocks(*row):
        if name := re.match(r"# (\w+\.py)\n", text):
            Path(name[1]).write_text(text)
        elif language == "python":
            for long, short in (FEWER if row == (NOTEBOOK,) else SHORTER).items():
                text = text.replace(long, short)
            exec(compile(text, "page", "exec"), together if row == (NOTEBOOK,) else {})
            continue
        for line in text.replace(" && ", "\n").splitlines():
            # Other programs do not run here.
            if line.startswith("torchrun ") and "-m dsmooth " in line:  # with gloo
                command = smaller(ELSEWHERE.sub("", line))
                wait_for_all(start_ranks(2, command, tmp_path))
            elif line.startswith("dsmooth ") and row != (MANY_MACHINES,):
                assert run(*shrink(line)) == 0, line
            elif line.startswith("torchrun "):
                torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
                subprocess.run([*torchrun, *line.split()[1:]], cwd=tmp_path, check=True)


@pytest.mark.long
def test_the_notebook_shows_what_the_packaged_pair_gives() -> None:
    """Its sizes and bits per pixel; images and trained weights differ by the machine's rounding."""
    names: dict[str, Any] = {"torch": torch, "test_set": load_dataset("mnist", "test")}
    cells = json.loads((ROOT / NOTEBOOK).read_text())["cells"]
    (first,) = (c for c in cells if "from_pretrained" in "".join(c["source"]))
    (measure,) = (c for c in cells if "def bits_per_pixel" in "".join(c["source"]))
    exec("".join(first["source"]), names)
    assert repr(names["pair"]) == "".join(first["outputs"][0]["data"]["text/plain"])
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec("".join(measure["source"]), names)
    stored = "".join(line for output in measure["outputs"] for line in output["text"])
    number = re.compile(r"\d+\.\d+")
    assert number.sub("N", printed.getvalue()) == number.sub("N", stored)
    values = [[float(n) for n in number.findall(text)] for text in (printed.getvalue(), stored)]
    assert values[0] == pytest.approx(values[1], abs=0.002)


@pytest.mark.quick
def test_paths_in_the_pages_exist() -> None:
    top = "dsmooth|csrc|kernels|benchmarks|tests|tools|docs"
    old = {*(ROOT / "docs").glob("decisions/*.md"), *(ROOT / "docs").glob("experiments/*.md")}
    for page in {ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - old:
        for path in re.findall(rf"`((?:{top})/[\w./*-]+)`", page.read_text()):
            assert list(ROOT.glob(path)), f"{page.name} mentions {path}, which does not exist"


@pytest.mark.quick
@pytest.mark.parametrize(
    "module", [dsmooth, dsmooth.data, dsmooth.functional, dsmooth.sampling, dsmooth.training]
)
def test_the_reference_has_every_public_name(module: Any) -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    described = {
        path.rpartition(".")[2]
        for path in re.findall(r"^::: (\S+)", pages, re.M)
        if path.startswith(module.__name__ + ".")
    }
    modules = {name for name in module.__all__ if isinstance(getattr(module, name), ModuleType)}
    assert set(module.__all__) - modules - {"__version__", "Shift"} <= described


TABLES = ROOT / "docs" / "api" / "training.md"


def table_of(kind: Any) -> str:
    """A row for each field: its name, its default and its text."""
    described = (p for base in kind.__mro__[:-1] for p in parse_from_object(base).params)
    texts = {p.arg_name: " ".join(p.description.split()).replace("|", r"\|") for p in described}
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for field in fields(kind):
        default = "" if field.default is MISSING else f"`{field.default}`"
        rows.append(f"| `{field.name}` | {default} | {texts[field.name]} |")
    return "\n".join(rows)


def with_tables(page: str) -> str:
    """The page with the tables between its marks."""
    begin, end = "<!-- settings: begin -->", "<!-- settings: end -->"
    parts = table_of(TrainConfig), "The network, `TrainConfig.model`:", table_of(ModelConfig)
    tables = "\n\n".join((begin, *parts, end))
    return page[: page.index(begin)] + tables + page[page.index(end) + len(end) :]


def test_the_page_has_all_settings() -> None:
    page = TABLES.read_text()
    assert page == with_tables(page), "run python -m tests.test_docs"


@pytest.mark.quick
def test_help_names_all_that_is_public() -> None:
    text = dsmooth.__doc__ or ""
    missing = [name for name in dsmooth.__all__ if not re.search(rf"\b{name}\b", text)]
    assert missing == ["__version__"]


def test_the_slurm_script_starts_the_command_of_two_machines() -> None:
    page = (ROOT / MANY_MACHINES).read_text().replace("\\\n", "")
    (two,) = re.findall(r"^torchrun --nnodes 2 .*", page, re.M)
    (last,) = re.findall(r"^srun (.*)", page, re.M)
    variables = {'"$SLURM_NNODES"': "2", '"$SLURM_JOB_ID"': "run", '"$FIRST:29400"': "first:29400"}
    for variable, value in {**variables, "runs/slurm": "runs/two"}.items():
        last = last.replace(variable, value)
    assert last.split() == two.split()


if __name__ == "__main__":
    TABLES.write_text(with_tables(TABLES.read_text()))
