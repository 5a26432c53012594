"""Logs: what a line says, for programs and for eyes."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from broker import log as logs
from broker.log import get_logger, set_up


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger(logs.ROOT)
    handlers, level, propagate = list(root.handlers), root.level, root.propagate
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    root.propagate = propagate


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_has_time_level_logger_event_and_fields() -> None:
    stream = io.StringIO()
    set_up("info", "json", stream)

    get_logger("server").info("worker joined", worker="w1", types=["a", "b"], credit=4)

    (line,) = lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "server",
        "event": "worker joined",
        "worker": "w1",
        "types": ["a", "b"],
        "credit": 4,
    }


def test_each_event_stays_one_line_whatever_its_fields_hold() -> None:
    hostile = 'a\n{"level": "error"}\x1b[31m\u2028\udcff'
    for form in ("json", "human"):
        stream = io.StringIO()
        set_up("info", form, stream)

        get_logger("server").info("peer sent junk", name=hostile, raw=b"\xff\n", odd={1, 2})

        assert len(stream.getvalue().splitlines()) == 1
        assert "\x1b" not in stream.getvalue()


def test_field_cannot_pose_as_the_event() -> None:
    stream = io.StringIO()
    set_up("info", "json", stream)

    get_logger("server").info("real", event="false", level="error")

    (line,) = lines(stream)
    assert (line["event"], line["level"]) == ("real", "info")
    assert (line["event_"], line["level_"]) == ("false", "error")


def test_nan_in_a_field_does_not_make_invalid_json() -> None:
    stream = io.StringIO()
    set_up("info", "json", stream)

    get_logger("server").info("odd", value=float("nan"))

    def no_constants(name: str) -> None:
        raise AssertionError(name)

    json.loads(stream.getvalue(), parse_constant=no_constants)


def test_percent_sign_in_an_event_is_harmless() -> None:
    stream = io.StringIO()
    set_up("info", "json", stream)

    get_logger("server").info("100 %s done")

    assert lines(stream)[0]["event"] == "100 %s done"


def test_level_bounds_what_is_logged_and_can_be_changed() -> None:
    stream = io.StringIO()
    log = get_logger("server")

    set_up("warning", "json", stream)
    log.info("unseen")
    log.warning("seen")
    set_up("debug", "json", stream)
    log.debug("seen too")

    assert [line["event"] for line in lines(stream)] == ["seen", "seen too"]


def test_auto_is_human_on_a_terminal_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()

    set_up("info", "auto", terminal)
    get_logger("server").info("listening", endpoint="tcp://127.0.0.1:5570")
    set_up("info", "auto", pipe)
    get_logger("server").info("listening", endpoint="tcp://127.0.0.1:5570")

    assert "listening" in terminal.getvalue()
    assert "endpoint=tcp://127.0.0.1:5570" in terminal.getvalue()
    assert lines(pipe)[0]["endpoint"] == "tcp://127.0.0.1:5570"


def test_human_line_without_color_for_who_sets_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    set_up("info", "human", terminal)

    get_logger("server").error("broken", why="two words")

    assert "\x1b" not in terminal.getvalue()
    assert 'why="two words"' in terminal.getvalue()


def test_exception_is_told_with_its_traceback() -> None:
    stream = io.StringIO()
    set_up("info", "json", stream)

    try:
        raise RuntimeError("boom")
    except RuntimeError:
        get_logger("server").exception("turn failed")

    assert "RuntimeError: boom" in lines(stream)[0]["exception"]


def test_closed_stream_breaks_nothing() -> None:
    stream = io.StringIO()
    set_up("info", "json", stream)
    stream.close()

    get_logger("server").info("into the void")


def test_without_set_up_fields_are_in_the_record(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger=logs.ROOT):
        get_logger("server").info("worker joined", worker="w1")

    (record,) = caplog.records
    assert record.getMessage() == "worker joined"
    assert record.fields == {"worker": "w1"}  # type: ignore[attr-defined]
