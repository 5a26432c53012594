"""Nothing that arrives is executed, or unserialised into anything but declared structs.

tests/test_architecture.py keeps pickle and its kin out by name; here are the back doors to them.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(path for name in ("broker", "worker_sdk") for path in (ROOT / name).rglob("*.py"))

UNSERIALISERS = {
    *("pickle", "_pickle", "pickletools", "cPickle", "marshal", "shelve", "copyreg", "dbm"),
    *("dill", "cloudpickle", "jsonpickle", "joblib", "yaml", "xmlrpc", "plistlib"),
    # These pickle what passes through them.
    *("multiprocessing.managers", "multiprocessing.queues", "multiprocessing.pool"),
    *("multiprocessing.shared_memory", "concurrent.futures", "logging.config"),
}
PICKLING_METHODS = {"send_pyobj", "recv_pyobj", "Queue", "SimpleQueue", "Manager", "Pool", "Pipe"}
"""Of pyzmq's sockets, and of multiprocessing's contexts."""
EXECUTING_CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
IMPORTING = {
    # The commands' MODULE:WORKER, and the handler that the worker's own process registered.
    "broker/cli/processes.py",
    "worker_sdk/child.py",
}


def found_in(text: str) -> set[str]:
    """The forbidden things that a module's text uses."""
    return set(_found(ast.parse(text)))


def _found(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        for name in names:
            yield from (each for each in UNSERIALISERS if f"{name}.".startswith(f"{each}."))
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in EXECUTING_CALLS:
                yield called.id
            if isinstance(called, ast.Attribute) and called.attr in PICKLING_METHODS:
                yield called.attr
            if isinstance(called, ast.Name) and called.id == "import_module":
                yield "import_module"
            if isinstance(called, ast.Attribute) and called.attr == "import_module":
                yield "import_module"
            if any(each.arg == "shell" for each in node.keywords):
                yield "shell"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_neither_executes_nor_unpickles(path: Path) -> None:
    found = found_in(path.read_text(encoding="utf-8"))

    if str(path.relative_to(ROOT)) in IMPORTING:
        found.discard("import_module")
    if path.name == "executors.py":
        found.discard("Pipe")  # of which it uses send_bytes and recv_bytes alone: below
    assert not found


def test_pipes_between_processes_carry_bytes_alone() -> None:
    """A Connection's own send and recv would pickle."""
    texts = [path.read_text(encoding="utf-8") for path in FILES]
    with_pipes = [text for text in texts if "multiprocessing.connection" in text]

    assert len(with_pipes) == 2  # the worker's process, and the one that runs its handlers
    for text in with_pipes:
        methods = {
            node.func.attr
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert {"recv_bytes", "send_bytes"} <= methods
        assert not methods & {"recv", "send"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pickle", {"pickle"}),
        ("from pickle import loads", {"pickle"}),
        ("def f():\n    import dill as json", {"dill"}),
        ("from multiprocessing import managers", {"multiprocessing.managers"}),
        ("import multiprocessing.pool", {"multiprocessing.pool"}),
        ("x.recv_pyobj()", {"recv_pyobj"}),
        ("eval('1')", {"eval"}),
        ("run('x', shell=True)", {"shell"}),
        ("importlib.import_module(x)", {"import_module"}),
        ("import json, re.match", set()),
    ],
)
def test_these_tests_see_what_they_forbid(text: str, found: set[str]) -> None:
    assert found_in(text) == found
