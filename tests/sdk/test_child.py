"""Which functions a process of its own would find by their names."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

from broker import LocalBroker
from tests.sdk import process_handlers
from tests.sdk.process_handlers import Counting
from worker_sdk import Client
from worker_sdk.child import check_found
from worker_sdk.handlers import Handler, make_handler

pytest_plugins = ["worker_sdk.testing"]

WAIT_S = 20.0


def handler_of(function: Any) -> Handler:
    return make_handler("t", function, "process", "thread", None)


@pytest.mark.parametrize(
    "function", [process_handlers.pid, process_handlers.two, Counting.static, Counting.of_class]
)
def test_what_its_name_leads_to_can_be_a_handler(function: Any) -> None:
    check_found(handler_of(function))


def test_a_decorator_below_the_worker_s_is_part_of_what_runs(
    pointsman_broker: LocalBroker, pointsman_client: Client
) -> None:
    with process_handlers.worker:
        assert pointsman_client.run("two", wait_timeout=WAIT_S) == 2
        assert pointsman_client.run("again two", wait_timeout=WAIT_S) == 2


def test_a_decorator_above_the_worker_s_is_refused_when_it_starts() -> None:
    said = r"'one' .* imports tests.sdk.process_handlers:one: .* must stand above all other"

    with pytest.raises(ValueError, match=said):
        process_handlers.hiding_worker.start()


def test_a_method_of_an_object_is_not_what_its_name_leads_to() -> None:
    with pytest.raises(ValueError, match=r"that is <function .*, not <bound method"):
        check_found(handler_of(Counting().of_object))


def test_a_name_that_leads_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = handler_of(process_handlers.pid)
    monkeypatch.delattr(process_handlers, "pid")

    with pytest.raises(ValueError, match="has no attribute 'pid'"):
        check_found(handler)


def spec(name: str) -> ModuleSpec:
    return ModuleSpec(name, None)


@pytest.mark.parametrize(
    ("spec", "file", "is_found"),
    [
        (None, __file__, True),  # python FILE
        (spec("package.module"), __file__, True),  # python -m package.module
        (spec("package.__main__"), __file__, False),  # python -m package
        (spec("__main__"), __file__, False),  # python FOLDER
        (None, "<stdin>", False),
        (None, None, False),  # python -c, or a shell
    ],
)
def test_what_stands_in_the_main_module_is_found_if_processes_are_given_that(
    monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | None, file: str | None, is_found: bool
) -> None:
    def handle() -> None: ...

    handle.__module__, handle.__qualname__ = "__main__", "handle"
    main = ModuleType("__main__")
    main.__dict__.update({"__spec__": spec, "__file__": file, "handle": handle})
    monkeypatch.setitem(sys.modules, "__main__", main)

    if is_found:
        check_found(handler_of(handle))
    else:
        with pytest.raises(ValueError, match="must stand in a module"):
            check_found(handler_of(handle))
