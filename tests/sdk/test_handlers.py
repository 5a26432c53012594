"""What becomes of a job when its handler has been run, whatever that returns or raises."""

from typing import Any

import pytest

from worker_sdk.handlers import Failed, Succeeded, run
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


def outcome_of(handler: Any) -> Any:
    try:
        return run(handler, Job(Assignment(new_id(), 1, "t"), NoDesk()))  # type: ignore[arg-type]
    except BaseException as error:  # noqa: BLE001 - pytest cannot write some of these down either
        return f"raised {type(error).__name__}"


@pytest.mark.parametrize(("value", "result"), [(None, b"null"), ({"x": [1]}, b'{"x":[1]}')])
def test_what_a_handler_returns_is_the_result(value: Any, result: bytes) -> None:
    assert outcome_of(lambda job: value) == Succeeded(result)


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
