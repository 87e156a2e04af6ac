"""PTX text as data: functions, variables, and instructions with their operands.

Written after the PTX ISA's chapters on syntax and state spaces. Nothing is interpreted here. A name
that is declared again in an inner scope is made unique: a function's registers have one name each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod

SIZES = {
    "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2,
    "b32": 4, "u32": 4, "s32": 4, "f32": 4, "b64": 8, "u64": 8, "s64": 8, "pred": 1,
}  # fmt: skip


class UnknownForm(Exception):
    """An instruction, modifier or declaration that the player does not know."""


@dataclass(frozen=True)
class Operand:
    """kind: "name" (a register, symbol or label), "number", "address", or "parts": of a vector, of
    a call's list, or a register and a predicate."""

    kind: str
    name: str = ""
    value: int = 0  # an integer, the bits of a float, the offset of an address
    parts: tuple[Operand, ...] = ()


@dataclass(frozen=True)
class Instruction:
    """name: with its modifiers. predicate: a register, or ""; negated: runs where it is false."""

    name: str
    operands: tuple[Operand, ...]
    predicate: str
    negated: bool
    line: int
    text: str


@dataclass(frozen=True)
class Variable:
    """space: "shared", "local" or "param". size: bytes, 0 for an open array."""

    name: str
    space: str
    size: int
    alignment: int


@dataclass
class Function:
    name: str
    entry: bool
    parameters: list[Variable]
    results: list[Variable]
    registers: dict[str, str] = field(default_factory=dict)  # name: type
    variables: list[Variable] = field(default_factory=list)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name: index into the code
    targets: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of an indexed branch
    threads: int = 0  # that .reqntid or .maxntid state, in all


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_FUNCTION = re.compile(
    r"^(?:\.(?:visible|weak)\s+)?\.(?P<kind>entry|func)\s*(?:\((?P<results>[^)]*)\))?"
    r"\s*(?P<name>[\w$%]+)\s*(?:\((?P<parameters>[^)]*)\))?(?P<rest>[^{;]*)\{(?P<body>.*?)^\}",
    re.M | re.S,
)
_VARIABLE = re.compile(
    r"\.(?P<space>shared|local|param)\b(?:\s*\.align\s+(?P<align>\d+))?"
    r"\s*\.(?P<type>\w+)(?:\s*\.(?:ptr|global|align\s+\d+))*\s+(?P<name>[\w$%]+)"
    r"\s*(?:\[(?P<extent>[^\]]*)\])?"
)
_STATEMENT = re.compile(
    r"\s*(?:[{}]|(?P<label>[\w$%]+)\s*:(?!:)|\.(?:loc|file)\b[^\n]*|(?P<text>[^;]*);)"
)
_PART = re.compile(r"(?:\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,{\[(])+")


def parse(text: str) -> tuple[dict[str, Function], list[Variable]]:
    """Functions by name, and the variables outside of them."""
    text = _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)
    functions = {}
    for found in _FUNCTION.finditer(text):
        lists = (_variables(found[name] or "") for name in ("parameters", "results"))
        function = Function(found["name"], found["kind"] == "entry", *lists)
        if stated := re.search(r"\.(?:req|max)ntid\s+([\d,\s]+)", found["rest"]):
            function.threads = prod(map(int, stated[1].split(",")))
        _parse_body(function, found["body"], text.count("\n", 0, found.start("body")) + 1)
        functions[function.name] = function
    return functions, _variables(_FUNCTION.sub("", text))


def _variables(text: str) -> list[Variable]:
    found = []
    for match in _VARIABLE.finditer(text):
        size = SIZES[match["type"]]
        alignment = int(match["align"] or size)
        if match["extent"] is not None:
            size *= int(match["extent"].strip() or 0)
        found.append(Variable(match["name"], match["space"], size, alignment))
    return found


def _parse_body(function: Function, body: str, line: int) -> None:
    names: dict[str, str] = {}  # as they are written: what they are called from here on
    label, seen = "", 0

    def declare(name: str) -> str:
        names[name] = f"{name}@{len(function.code)}" if name in names else name
        return names[name]

    for found in _STATEMENT.finditer(body):
        if found["label"]:
            label = found["label"]
            function.labels[label] = len(function.code)
        statement = " ".join((found["text"] or "").split())
        if statement.startswith(".reg"):
            _, type_, *rest = re.split(r"[\s.,]+", statement[1:])
            for name in rest:
                row = re.fullmatch(r"([\w$%]+)<(\d+)>", name)
                for register in [f"{row[1]}{i}" for i in range(int(row[2]))] if row else [name]:
                    function.registers[declare(register)] = type_
        elif statement.startswith((".local", ".shared", ".param")):
            (v,) = _variables(statement)
            function.variables.append(Variable(declare(v.name), v.space, v.size, v.alignment))
        elif statement.startswith(".branchtargets"):
            function.targets[label] = tuple(re.split(r"[\s,]+", statement)[1:])
        elif statement and not statement.startswith((".pragma", ".callprototype")):
            line += body.count("\n", seen, found.start("text"))
            seen = found.start("text")
            function.code.append(_parse_instruction(statement, names, line))


def _parse_instruction(text: str, names: dict[str, str], line: int) -> Instruction:
    found = re.fullmatch(r"(?:@(!?)([\w$%]+) )?(.*)", text)
    assert found is not None
    negated, guard, rest = found.groups(default="")
    name, _, operands = rest.partition(" ")
    parts = (part.strip() for part in _PART.findall(operands))
    parsed = tuple(_parse_operand(part, names) for part in parts if part)
    return Instruction(name, parsed, names.get(guard, guard), bool(negated), line, text)


def _parse_operand(text: str, names: dict[str, str]) -> Operand:
    if text[0] in "{(" or "|" in text:
        parts = (part.strip() for part in re.split(r"[,|]", text.strip("{()}")))
        return Operand("parts", parts=tuple(_parse_operand(p, names) for p in parts if p))
    if match := re.fullmatch(r"\[\s*([\w$%.]+)\s*(?:\+\s*(-?\w+))?\s*\]", text):
        return Operand("address", names.get(match[1], match[1]), int(match[2] or "0", 0))
    if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
        return Operand("number", value=int(match[1], 16))
    if re.match(r"-?\d", text):
        return Operand("number", value=int(text.rstrip("U"), 0))
    return Operand("name", names.get(text, text))
