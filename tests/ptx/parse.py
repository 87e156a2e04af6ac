"""PTX text as data: functions, variables, and instructions with their operands.

Written after the PTX ISA's chapters on syntax and state spaces. Nothing is interpreted here; names
declared in an inner scope are made unique, so that a function's registers have one name each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache


class UnknownForm(Exception):
    """An instruction, modifier or declaration that the player does not know."""


class Sizes(dict[str, int]):
    """Bytes of a type."""

    def __missing__(self, type_: str) -> int:
        raise UnknownForm(f"type .{type_}")


SIZES = Sizes({
    "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2,
    "b32": 4, "u32": 4, "s32": 4, "f32": 4, "b64": 8, "u64": 8, "s64": 8, "pred": 1,
})  # fmt: skip


@dataclass(frozen=True)
class Operand:
    """kind: "name" (a register, symbol or label), "integer", "float32", "vector", "address", "list"
    (of a call), "pair" (a register and a predicate)."""

    kind: str
    name: str = ""
    value: int = 0  # an integer, the bits of a float, the offset of an address
    parts: tuple[Operand, ...] = ()
    negated: bool = False


@dataclass(frozen=True)
class Instruction:
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    predicate: Operand | None
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


@dataclass
class Module:
    functions: dict[str, Function]
    variables: dict[str, Variable]
    architecture: str


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_LABEL = re.compile(r"([\w$%]+)\s*:(?!:)")
_HEADER = re.compile(
    r"(?P<linkage>(?:\.(?:visible|weak|extern)\s+)*)\.(?P<kind>entry|func)\s+(?P<rest>[^{;]*)"
)
_VARIABLE = re.compile(
    r"(?:\.extern\s+)?\.(?P<space>shared|local|param)\b(?:\s*\.align\s+(?P<align>\d+))?"
    r"\s*\.(?P<type>\w+)(?:\s*\.(?:ptr|global|align\s+\d+))*\s+(?P<name>[\w$%]+)"
    r"\s*(?P<extent>\[[^\]]*\])?$",
    re.S,
)


def parse(text: str) -> Module:
    text = _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)
    architecture = re.search(r"\.target\s+(\w+)", text)
    module = Module({}, {}, architecture.group(1) if architecture else "")
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
        elif header := _HEADER.match(text, at):
            function = _parse_header(header)
            at = header.end()
            if text[at] == ";":
                at += 1  # a declaration ahead
            else:
                end = _closing(text, at)
                _parse_body(function, text, at + 1, end)
                module.functions[function.name] = function
                at = end + 1
        elif text.startswith((".version", ".target", ".address_size", ".file"), at):
            at = text.index("\n", at)
        elif text.startswith(".global", at):  # a string of libdevice, which nothing reads
            at = text.index(";", at) + 1
        elif text.startswith(".section", at):
            at = _closing(text, text.index("{", at)) + 1
        else:
            end = text.index(";", at)
            variable = _parse_variable(text[at:end].strip())
            module.variables[variable.name] = variable
            at = end + 1
    return module


def _closing(text: str, at: int) -> int:
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.start()
    raise UnknownForm("a brace that nothing closes")


def _parse_header(header: re.Match[str]) -> Function:
    rest = header["rest"].strip()
    results: list[Variable] = []
    if rest.startswith("("):
        inside, rest = rest[1:].split(")", 1)
        results = _parse_parameters(inside)
    match = re.match(r"\s*([\w$%]+)\s*(?:\(([^)]*)\))?(.*)", rest, re.S)
    assert match is not None
    threads = 0
    if stated := re.search(r"\.(?:req|max)ntid\s+([\d,\s]+)", match[3]):
        threads = 1
        for extent in stated[1].split(","):
            threads *= int(extent)
    parameters = _parse_parameters(match[2] or "")
    return Function(match[1], header["kind"] == "entry", parameters, results, threads=threads)


def _parse_parameters(text: str) -> list[Variable]:
    return [_parse_variable(part.strip()) for part in text.split(",") if part.strip()]


def _parse_variable(text: str) -> Variable:
    match = _VARIABLE.match(text)
    if match is None:
        raise UnknownForm(f"declaration: {text[:200]}")
    size = SIZES[match["type"]]
    alignment = int(match["align"] or size)
    if match["extent"]:
        size *= int(match["extent"][1:-1].strip() or 0)
    return Variable(match["name"], match["space"], size, alignment)


def _statements(text: str, at: int, end: int) -> Iterator[tuple[str, int]]:
    """Scope braces, labels with their colon, and statements, each with its place."""
    while at < end:
        if text[at].isspace() or text[at] == ";":
            at += 1
        elif text[at] in "{}":
            yield text[at], at
            at += 1
        elif label := _LABEL.match(text, at):
            yield f"{label[1]}:", at
            at = label.end()
        elif text.startswith((".loc\t", ".loc ", ".file\t", ".file "), at):
            at = text.index("\n", at)
        else:
            stop = text.index(";", at)
            yield " ".join(text[at:stop].split()), at
            at = stop + 1


def _parse_body(function: Function, text: str, begin: int, end: int) -> None:
    scopes: list[dict[str, str]] = [{}]
    line, seen, label = text.count("\n", 0, begin) + 1, begin, ""
    for statement, at in _statements(text, begin, end):
        line += text.count("\n", seen, at)
        seen = at
        if statement == "{":
            scopes.append({})
        elif statement == "}":
            scopes.pop()
        elif statement.endswith(":"):
            label = statement[:-1]
            function.labels[label] = len(function.code)
        elif statement.startswith(".branchtargets"):
            function.targets[label] = tuple(re.split(r"[\s,]+", statement)[1:])
        elif statement.startswith(".reg"):
            _declare_registers(function, scopes, statement)
        elif statement.startswith((".local", ".shared", ".param")):
            variable = _parse_variable(statement)
            name = _declare(scopes, variable.name, f"@{line}")
            function.variables.append(
                Variable(name, variable.space, variable.size, variable.alignment)
            )
        elif not statement.startswith((".pragma", ".callprototype")):
            function.code.append(_parse_instruction(statement, scopes, line))


def _declare(scopes: list[dict[str, str]], name: str, mark: str) -> str:
    scopes[-1][name] = name if len(scopes) == 1 else name + mark
    return scopes[-1][name]


def _declare_registers(function: Function, scopes: list[dict[str, str]], text: str) -> None:
    match = re.match(r"\.reg\s*\.(\w+)\s+(.*)", text)
    if match is None or match[1] not in SIZES:
        raise UnknownForm(f"declaration: {text}")
    for name in match[2].split(","):
        row = re.match(r"([\w$%]+)<(\d+)>", name.strip())
        names = [f"{row[1]}{i}" for i in range(int(row[2]))] if row else [name.strip()]
        for one in names:
            mark = f"@{len(function.registers)}"
            function.registers[_declare(scopes, one, mark)] = match[1]


def _parse_instruction(text: str, scopes: list[dict[str, str]], line: int) -> Instruction:
    predicate, rest = None, text
    if rest.startswith("@"):
        guard, rest = re.split(r"\s+", rest[1:], maxsplit=1)
        negated = guard.startswith("!")
        predicate = Operand("name", _resolve(guard.lstrip("!"), scopes), negated=negated)
    name, _, operands = rest.partition(" ")
    opcode, *modifiers = name.split(".")
    parsed = tuple(_parse_operand(part, scopes) for part in _split(operands))
    return Instruction(opcode, tuple(modifiers), parsed, predicate, line, text)


def _split(text: str) -> list[str]:
    """At the commas outside of all brackets."""
    if not any(bracket in text for bracket in "{[("):
        return [part.strip() for part in text.split(",")] if text.strip() else []
    parts, depth, begin = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append(text[begin:i].strip())
            begin = i + 1
    return [*parts, text[begin:].strip()] if text.strip() else []


def _resolve(name: str, scopes: list[dict[str, str]]) -> str:
    return next((scope[name] for scope in reversed(scopes) if name in scope), name)


@cache
def _register(name: str) -> Operand:
    return Operand("name", name)


def _parse_operand(text: str, scopes: list[dict[str, str]]) -> Operand:
    if text.startswith("%") and "|" not in text:
        return _register(_resolve(text, scopes))
    if text.startswith(("{", "(")):
        kind = "vector" if text[0] == "{" else "list"
        return Operand(kind, parts=tuple(_parse_operand(p, scopes) for p in _split(text[1:-1])))
    if text.startswith("["):
        base, sign, offset = re.fullmatch(
            r"\[\s*([\w$%.]+)\s*([+-]?)\s*(-?\w+)?\s*\]", text
        ).groups()  # type: ignore[union-attr]
        value = int(offset, 0) * (-1 if sign == "-" else 1) if offset else 0
        if re.fullmatch(r"\d\w*", base):
            return Operand("address", "", int(base, 0) + value)
        return Operand("address", _resolve(base, scopes), value)
    if "|" in text:
        parts = tuple(_parse_operand(part.strip(), scopes) for part in text.split("|"))
        return Operand("pair", parts=parts)
    if text.startswith("!"):
        return Operand("name", _resolve(text[1:].strip(), scopes), negated=True)
    if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
        return Operand("float32", value=int(match[1], 16))
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text):
        return Operand("integer", value=_integer(text.rstrip("U")))
    return Operand("name", _resolve(text, scopes))


def _integer(text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("-")
    octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
    return sign * int(digits, 8 if octal else 0)
