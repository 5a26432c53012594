"""The guarantees' document: every promise has its limits and its tests, and those exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
PROMISES = {part.splitlines()[0]: part for part in re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]}


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", sorted(set(NAMED.findall(TEXT))), ids="::".join)
def test_named_test_exists(name: tuple[str, str]) -> None:
    path, test = name

    assert test.startswith("test_")
    assert test in names_in(ROOT / path)


@pytest.mark.parametrize("promise", PROMISES)
def test_promise_has_limits_and_tests(promise: str) -> None:
    text = PROMISES[promise]

    assert "**Limits.**" in text
    assert NAMED.search(text.partition("**Tests.**")[2])


def test_there_are_promises() -> None:
    assert len(PROMISES) > 10
