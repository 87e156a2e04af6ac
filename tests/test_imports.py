"""The floors: who imports whom, without circles, who spells files' names, who includes pybind11."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

import dsmooth.kernels

pytestmark = pytest.mark.quick

PACKAGE = Path(dsmooth.__file__).parent

# The floors, from the verbs down to the ground: a module imports from lower floors, and from its
# package. Lazy imports count, those for type checkers too.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("report",),
    ("experiments",),
    ("evaluate", "training"),
    ("pretrained",),
    ("pair",),
    ("bound", "sampling"),
    ("smoothing",),
    ("data", "nn"),
    ("functional", "presets", "results", "work"),
    ("config", "cuda", "distributed", "kernels", "machine"),
    ("_extension", "files", "philox", "pixels", "progress"),
    ("_C", "_door", "fields", "text"),
)
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}
# Imports by name are not in the graph, so they could close a circle: the package finds its public
# names by them, and the command its verbs. torch.manual_seed seeds the generators of all devices.
FIND_BY_NAME = {"", "cli"}
CALLS = {"import_module": FIND_BY_NAME, "__import__": FIND_BY_NAME, "torch.manual_seed": set()}
IMPLEMENTATION_IMPORTS = {"shifted_conv", "dispatch", "gated_resnet_operands"}
FILE_NAMES = ("config.json", "log.jsonl", "checkpoint.safetensors", "model.safetensors")


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name below dsmooth ("" is the package itself)."""
    kernels = Path(dsmooth.kernels.__path__[0])  # in a source tree not below PACKAGE
    paths = {path: path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    paths |= {path: "kernels" / path.relative_to(kernels) for path in kernels.rglob("*.py")}
    found = {}
    for path, place in sorted(paths.items()):
        parts = place.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


@cache
def imports(name: str) -> set[str]:
    """The modules of dsmooth that `name` imports anywhere, in functions too, as dotted names."""
    package = ["dsmooth", *filter(None, name.split("."))]
    if name and not (PACKAGE / name.replace(".", "/") / "__init__.py").exists():
        package.pop()
    found = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), ".".join(package))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                known = inner.partition(".")[2] in modules().keys() | FLOOR.keys()
                found.add(inner if known else base)
    return {t.partition(".")[2] for t in found if t.split(".")[0] == "dsmooth"} - {name}


def test_imports_go_down() -> None:
    for name in filter(None, modules()):
        for target in imports(name):
            top, other = name.split(".")[0], target.split(".")[0]
            assert target, f"{name} imports the package itself, which names everything"
            assert other == top or FLOOR[other] > FLOOR[top], f"{name} imports {target}"


def test_there_are_no_circles() -> None:
    """Inside a package too; a package's __init__ counts as importing what it re-exports."""
    TopologicalSorter({name: imports(name) for name in modules() if name}).prepare()


def test_few_modules_know_of_processes() -> None:
    users = {name for name in modules() if name and "distributed" in imports(name)}
    assert users == {"training.step", "work"}


def test_calls_that_few_modules_make() -> None:
    for name, tree in modules().items():
        called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        for ending, allowed in CALLS.items():
            found = {call for call in called if call.endswith(ending)}
            assert not found or name in allowed, f"{name} calls {found}"


def test_implementations_of_an_op_do_not_know_its_reference() -> None:
    files = [name for name in modules() if name.startswith("functional.") and name.endswith("_op")]
    assert len(files) == 2
    for name in files:
        within = {t.split(".")[1] for t in imports(name) if t.startswith("functional.")}
        assert within <= IMPLEMENTATION_IMPORTS, f"{name} imports {within}"


def test_only_runs_spells_the_names_of_its_files() -> None:
    """In code; docstrings and help texts may name them."""
    for name in modules().keys() - {"pretrained.runs"}:
        nodes = [*ast.walk(modules()[name])]
        prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in (node for node in nodes if isinstance(node, ast.Constant)):
            if isinstance(node.value, str) and id(node) not in prose:
                spelled = [file for file in FILE_NAMES if file in node.value]
                assert not spelled, f"{name} line {node.lineno} spells {spelled}"
