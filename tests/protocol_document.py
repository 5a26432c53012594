"""docs/protocol.md as its tests read it, and what its tables must say of a message.

The conventions, which the document explains to its readers as well:

- a heading like "### `enqueue`: client to broker" or "### Part: new job" opens a section about one
  struct of worker_sdk.messages; its table names each field, and its ``json`` blocks are examples
  of that struct;
- ``dialogue`` blocks are conversations in JSON, ``frames`` blocks conversations in frames. Both can
  be played with a real broker, see protocol_stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import msgspec
from msgspec import NODEFAULT, Raw, Struct, inspect

from worker_sdk import messages

DOCUMENT = Path(__file__).parents[1] / "docs" / "protocol.md"

DIRECTIONS: dict[str, UnionType] = {
    "client to broker": messages.ClientRequest,
    "worker to broker": messages.WorkerRequest,
    "broker to client": messages.Reply,
    "broker to worker": messages.WorkerEvent,
}
_BOTH = {
    "both ways": ("worker to broker", "broker to worker"),
    "broker to client and worker": ("broker to client", "broker to worker"),
}
_MESSAGE_HEADING = re.compile(r"`(\w+)`: ([a-z ]+)")
_PART_HEADING = re.compile(r"Part: ([a-z ]+)")


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind the fence, the text, and the line it begins in."""

    kind: str
    options: dict[str, str]
    text: str
    line: int
    section: str

    @property
    def name(self) -> str:
        """The name of a test of this block."""
        return f"line {self.line}: {self.section}"


@dataclass(frozen=True)
class Row:
    """A row of a table: the cells by the heads of their columns, without code marks and links."""

    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


@dataclass
class Section:
    """What stands under one heading, up to the next one of any depth."""

    title: str
    line: int
    lines: list[str]

    def tables(self) -> Iterator[list[Row]]:
        """Each table."""
        heads: list[str] = []
        rows: list[Row] = []
        for line in [*self.lines, ""]:
            cells = _cells(line)
            if not cells:
                if heads:
                    yield rows
                heads, rows = [], []
            elif not heads:
                heads = cells
            elif not all(re.fullmatch(":?-+:?", cell) for cell in cells):
                assert len(cells) == len(heads), f"{len(cells)} cells, not {len(heads)}: {line}"
                rows.append(Row(dict(zip(heads, cells, strict=True))))

    def table(self, first_head: str) -> list[Row]:
        """The one table whose first column is `first_head`."""
        found = [rows for rows in self.tables() if rows and first_head in rows[0].cells]
        assert len(found) == 1, f"{self.title}: {len(found)} tables of {first_head}, not one"
        return found[0]

    def blocks(self, kind: str) -> list[Block]:
        """The fenced blocks of one kind."""
        found: list[Block] = []
        opened: tuple[int, str] | None = None
        for number, line in enumerate(self.lines, start=self.line + 1):
            if not line.startswith("```"):
                continue
            if opened is None:
                opened = (number, line[3:].strip())
                continue
            first, info = opened
            opened = None
            word, *options = info.split() or [""]
            if word == kind:
                text = "\n".join(self.lines[first - self.line : number - self.line - 1])
                pairs = dict(option.split("=", 1) for option in options)
                found.append(Block(kind, pairs, text, first, self.title))
        assert opened is None, f"{self.title}: a block is not closed"
        return found


def _cells(line: str) -> list[str]:
    if not line.startswith("|"):
        return []
    cells = re.split(r"(?<!\\)\|", line.strip())[1:-1]
    return [_plain(cell) for cell in cells]


def _plain(cell: str) -> str:
    cell = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell)
    return cell.replace("`", "").replace("\\|", "|").strip()


def read(path: Path = DOCUMENT) -> list[Section]:
    """Give the document's sections."""
    sections = [Section("", 0, [])]
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fenced ^= line.startswith("```")
        heading = None if fenced else re.fullmatch("#+ (.+)", line)
        if heading is None:
            sections[-1].lines.append(line)
        else:
            sections.append(Section(heading[1], number, []))
    return sections


# ---- which struct a section is about ---------------------------------------------------------


def described(section: Section) -> type[Struct] | None:
    """Give the struct that a section describes, if it describes one."""
    part = _PART_HEADING.fullmatch(section.title)
    if part is not None:
        struct: type[Struct] = getattr(messages, part[1].title().replace(" ", ""))
        return struct
    message = _MESSAGE_HEADING.fullmatch(section.title)
    if message is None:
        return None
    (found,) = {by_op(way)[message[1]] for way in _BOTH.get(message[2], (message[2],))}
    return found


def ways(section: Section) -> set[str]:
    """Give the directions that a message's heading names."""
    message = _MESSAGE_HEADING.fullmatch(section.title)
    assert message is not None, section.title
    return set(_BOTH.get(message[2], (message[2],)))


def by_op(way: str) -> dict[str, type[Struct]]:
    """Give the messages of one direction by their op."""
    return {str(kind.__struct_config__.tag): kind for kind in DIRECTIONS[way].__args__}


# ---- what a table must say of a field --------------------------------------------------------

WORDS = {
    "number": ("number", "seconds", "time"),
    "string": ("string", "id", "state", "code"),
}
"""What a table may call a type, more exactly than the struct does."""


def fields(struct: type[Struct]) -> list[inspect.Field]:
    """Give a struct's own fields: all but the `req` that every message has."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return [each for each in info.fields if each.name != "req"]


def type_words(kind: inspect.Type) -> set[str]:
    """Give the words for a type, of which a union has several."""
    match kind:
        case inspect.UnionType():
            return {word for each in kind.types for word in type_words(each)}
        case inspect.VarTupleType() | inspect.ListType():
            return {"list of " + " or ".join(sorted(type_words(kind.item_type)))}
        case inspect.DictType():
            return {"object of " + " or ".join(sorted(type_words(kind.value_type)))}
        case inspect.StructType():
            return {re.sub("(?<!^)([A-Z])", r" \1", kind.cls.__name__).lower()}
        case inspect.LiteralType():
            return {f'"{value}"' for value in kind.values}
        case inspect.StrType(min_length=36, max_length=36):
            return {"id"}
    return {
        inspect.StrType: {"string"},
        inspect.IntType: {"integer"},
        inspect.FloatType: {"number"},
        inspect.BoolType: {"boolean"},
        inspect.RawType: {"JSON"},
        inspect.NoneType: {"null"},
    }[type(kind)]


def is_type(said: str, kind: inspect.Type) -> bool:
    """Say whether a table's words for a type are right."""
    if isinstance(kind, inspect.VarTupleType):
        inner = said.removeprefix("list of ")
        return inner != said and is_type(inner, kind.item_type)
    if isinstance(kind, inspect.UnionType):
        lists = [each for each in kind.types if isinstance(each, inspect.VarTupleType)]
        others = [each for each in kind.types if each not in lists]
        parts = said.split(", ")
        for each in lists:
            match = [part for part in parts if is_type(part, each)]
            if not match:
                return False
            parts.remove(match[0])
        return _are_words(parts, {word for each in others for word in type_words(each)})
    return _are_words([said], type_words(kind))


def _are_words(parts: list[str], right: set[str]) -> bool:
    said = {word for part in parts for word in part.split(" or ")}
    general = {word: name for name, words in WORDS.items() for word in words}
    return said == right or {general.get(word, word) for word in said} == right


def bounds(kind: inspect.Type) -> str:
    """Give a type's bounds as a table writes them."""
    match kind:
        case inspect.UnionType():
            return "; ".join(filter(None, map(bounds, kind.types)))
        case inspect.VarTupleType():
            inner = bounds(kind.item_type)
            return f"each {inner}" if inner else ""
        case inspect.StrType(min_length=36, max_length=36):
            return ""
        case inspect.StrType():
            span = _span(kind.min_length, None, kind.max_length)
            return f"{span} characters" if span else ""
        case inspect.IntType() | inspect.FloatType():
            return _span(kind.ge, kind.gt, kind.le)
    return ""


def _span(least: float | None, over: float | None, most: float | None) -> str:
    if most is None:
        assert least is None
        assert over is None
        return ""
    end = "2^53" if most == 2**53 else f"{most:,}"
    if over is not None:
        return f"over {over:,} to {end}"
    return f"to {end}" if least is None else f"{least:,} to {end}"


def default(field: inspect.Field) -> str:
    """Give a field's default as a table writes it."""
    if field.required:
        return "required"
    if field.default is NODEFAULT:
        return "left out"
    value: Any = field.default
    return (bytes(value) if isinstance(value, Raw) else msgspec.json.encode(value)).decode()


def skeleton(struct: type[Struct]) -> str:
    """Give the table of a struct without the meanings: to begin a new section with."""
    rows = ["| field | type | bounds | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for each in fields(struct):
        words = " or ".join(sorted(type_words(each.type)))
        rows.append(f"| `{each.name}` | {words} | {bounds(each.type)} | `{default(each)}` | |")
    return "\n".join(rows)
