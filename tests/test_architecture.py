"""The walls of the house: who may import whom, how large a file may be, what it may be called."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("broker", "worker_sdk")
LONGEST_FILE_LINES = 500
NAMES_WITHOUT_A_SUBJECT = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py"}

LAYERS = (
    ("worker_sdk",),
    ("broker.log", "broker.kinds", "broker.config"),
    ("broker.core",),
    ("broker.store", "broker.codec", "broker.queries"),
    ("broker.exposure", "broker.policy", "broker.keyring", "broker.cutting", "broker.guard"),
    ("broker.sockets", "broker.watch", "broker.hoarders"),
    ("broker.server",),
    ("broker.daemon", "broker.local", "broker.demo", "broker.cli", "broker.__main__"),
)
"""From the bottom up: a module may import from its own layer and from those above it here. The
package `broker` itself, which gives its names to users, stands beside."""

MAY_IMPORT = {
    # The state machine stands alone.
    "broker.core": ("broker.core", "worker_sdk.messages", "msgspec"),
    # Stores know the core and nothing of the net.
    "broker.store": ("broker.store", "broker.core", "worker_sdk.messages", "msgspec", "broker.log"),
    # These are used everywhere, so they use nothing themselves.
    "broker.log": (),
    "broker.kinds": (),
    "broker.config": ("broker.kinds", "worker_sdk.messages"),
    "worker_sdk.messages": ("msgspec",),
    # What people embed in their services has no part of the broker in it.
    "worker_sdk": ("worker_sdk", "msgspec", "zmq"),
}
"""Besides the standard library. The longest prefix of a module's name decides."""

EXCEPT = {
    # Fixtures that run a broker in the test's own process; imported when a test uses one.
    "worker_sdk.testing": ("broker", "pytest"),
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, path


MODULES = dict(modules())


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(name: str) -> Iterator[str]:
    """Every module that module ``name`` imports, anywhere in its text, but for typing only."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in runtime_nodes(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in MODULES else base


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            stack.extend(node.orelse)
        else:
            stack.extend(ast.iter_child_nodes(node))


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def rules(name: str) -> list[str]:
    return [package for package in MAY_IMPORT if is_in(name, package)]


@pytest.mark.parametrize("name", [name for name in MODULES if rules(name)])
def test_module_imports_only_what_it_may(name: str) -> None:
    allowed = MAY_IMPORT[max(rules(name), key=len)] + EXCEPT.get(name, ())

    strangers = {
        each
        for each in imports(name)
        if not is_standard(each) and not any(is_in(each, package) for package in allowed)
    }

    assert not strangers, f"{name} imports {sorted(strangers)}"


def layer(name: str) -> int | None:
    for height, packages in enumerate(LAYERS):
        if any(is_in(name, package) for package in packages):
            return height
    return None


@pytest.mark.parametrize("name", [name for name in MODULES if name not in {"broker", *EXCEPT}])
def test_imports_run_one_way(name: str) -> None:
    own = layer(name)
    assert own is not None, f"{name} stands in no layer"

    upward = {each for each in imports(name) if (layer(each) or 0) > own}

    assert not upward, f"{name} imports {sorted(upward)} from above"


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_another_layers_insides(name: str) -> None:
    """A name with an underscore in front is its module's own business."""
    tree = tree_of(MODULES[name])
    private = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
        if (node.module or "").startswith(PACKAGES)
    }

    assert not private, f"{name} imports {sorted(private)}"


@pytest.mark.parametrize("name", MODULES)
def test_file_has_one_subject(name: str) -> None:
    path = MODULES[name]

    lines = len(path.read_text(encoding="utf-8").splitlines())

    assert lines <= LONGEST_FILE_LINES, f"{path} has {lines} lines"
    assert path.name not in NAMES_WITHOUT_A_SUBJECT


@pytest.mark.parametrize("name", MODULES)
def test_nothing_that_arrives_is_executed_or_unpickled(name: str) -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}

    tree = tree_of(MODULES[name])
    calls = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }

    assert not forbidden & {each.partition(".")[0] for each in imports(name)}
    assert not {"eval", "exec"} & calls


def test_packages_are_typed() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import zmq", {"zmq"}),
        ("def f():\n    from broker.server import Server", {"broker.server"}),
        ("from . import job", {"broker.core.job"}),
        ("from ..config import Config", {"broker.config"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import zmq", {"typing"}),
    ],
)
def test_these_tests_see_imports_of_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: set[str]
) -> None:
    file = tmp_path / "trespasser.py"
    file.write_text(text)
    monkeypatch.setitem(MODULES, "broker.core.trespasser", file)

    assert set(imports("broker.core.trespasser")) == found
