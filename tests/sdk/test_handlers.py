"""What becomes of a job when its handler has been run, whatever that returns or raises."""

import logging
from typing import Any

import pytest

from worker_sdk.handlers import Failed, Succeeded, make_handler, reviewed, run
from worker_sdk.ids import new_id
from worker_sdk.job import Job
from worker_sdk.messages import Assignment


class Unreadable(str):
    """Text that cannot be written down."""

    error: BaseException

    def __str__(self) -> str:
        raise self.error


class WithoutNotes(Exception):
    @property
    def __notes__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no notes")


class NoDesk:
    """Of whoever runs the job: nothing that these tests need."""


def job() -> Job:
    return Job(Assignment(new_id(), 1, "t"), NoDesk())  # type: ignore[arg-type]


def outcome_of(handler: Any) -> Any:
    try:
        return run(handler, job())
    except BaseException as error:  # noqa: BLE001 - pytest cannot write some of these down either
        return f"raised {type(error).__name__}"


@pytest.mark.parametrize(("value", "result"), [(None, b"null"), ({"x": [1]}, b'{"x":[1]}')])
def test_what_a_handler_returns_is_the_result(value: Any, result: bytes) -> None:
    assert outcome_of(lambda job: value) == Succeeded(result)


async def wait_for(job: Job) -> None: ...


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (lambda job: [float("nan")], "NotEncodable: result[0] is nan"),
        (lambda job: {"x": {1: object()}}, "NotEncodable: result.x.1 is of type object"),
        (wait_for, "NotEncodable: result is of type coroutine, which JSON cannot carry: nothing"),
    ],
)
def test_a_result_that_json_cannot_carry_is_a_failure_for_good(handler: Any, said: str) -> None:
    verdict = outcome_of(handler)

    assert isinstance(verdict, Failed)
    assert verdict.error.startswith(said)
    assert not verdict.retry


def test_a_handler_that_returns_an_awaitable_is_told_what_would_be_right() -> None:
    verdict = outcome_of(wait_for)  # and Python gives no warning, which would be an error here

    assert verdict.error.endswith("make the handler an `async def` that does")


class AsyncCallable:
    async def __call__(self, job: Job) -> str:
        return "awaited"


def test_an_object_whose_call_is_async_is_an_async_handler() -> None:
    handler = make_handler("t", AsyncCallable(), None, "thread", None)

    assert handler.executor == "async"
    with pytest.raises(ValueError, match="is async"):
        make_handler("t", AsyncCallable(), "process", "thread", None)


LIMIT_BYTES = 10_000


def test_a_result_too_large_for_the_broker_is_a_failure_for_good() -> None:
    verdict = reviewed(job(), Succeeded(b"1" * LIMIT_BYTES), LIMIT_BYTES)

    assert isinstance(verdict, Failed)
    assert not verdict.retry


def test_a_failure_is_logged_in_one_line_with_the_traceback_for_who_looks_closer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = job()

    with caplog.at_level(logging.DEBUG, logger="worker_sdk"):
        reviewed(failing, run(raising(ValueError("bad\nluck")), failing), LIMIT_BYTES)

    headline, details = caplog.records
    assert headline.levelno == logging.WARNING
    assert (
        headline.getMessage()
        == f"job {failing.id} of type 't' failed in attempt 1: ValueError: bad"
    )
    assert details.levelno == logging.DEBUG
    assert "ValueError: bad\nluck\n" in details.getMessage()
    assert "in handler" in details.getMessage()


def test_what_comes_of_a_canceled_attempt_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    canceled = job()
    canceled._stop("request")

    reviewed(canceled, Failed("whatever"), LIMIT_BYTES)

    assert not caplog.records


def raising(error: BaseException) -> Any:
    def handler(job: Job) -> None:
        raise error

    return handler


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(3), "SystemExit: 3\n"),
        (MemoryError(), "MemoryError: \n"),
        # What a parser of one's own may raise, and Python cannot write down.
        (SyntaxError("bad", ("x", 1, "seven", "text")), "SyntaxError: bad"),  # type: ignore[arg-type]
        (WithoutNotes("bad"), "WithoutNotes: bad"),
    ],
)
def test_whatever_a_handler_raises_is_its_outcome(error: BaseException, said: str) -> None:
    verdict = outcome_of(raising(error))

    assert isinstance(verdict, Failed)
    assert verdict.error.startswith(said)
    assert verdict.retry


@pytest.mark.parametrize("error", [RuntimeError("no text"), MemoryError(), SystemExit(3)])
def test_a_value_that_breaks_its_encoding_fails_the_attempt(error: BaseException) -> None:
    value = Unreadable("x")
    value.error = error

    verdict = outcome_of(lambda job: [value])

    assert isinstance(verdict, Failed)
    assert verdict.error.startswith(f"{type(error).__name__}: {error}\n")
