"""What a worker refuses before it runs, with what would be right."""

import math
from typing import Any

import pytest

from worker_sdk import Job, Worker


def test_mistakes_in_setting_up_a_worker_are_told() -> None:
    worker = Worker()
    worker.add("t", lambda job: None)

    async def handle(job: Job) -> None: ...

    with pytest.raises(ValueError, match="has a handler already"):
        worker.add("t", lambda job: None)
    with pytest.raises(ValueError, match="1 to 200 characters"):
        worker.add("", lambda job: None)
    with pytest.raises(ValueError, match="is async"):
        worker.add("u", handle, executor="process")
    with pytest.raises(ValueError, match="top level of a module"):
        worker.add("u", lambda job: None, executor="process")
    with pytest.raises(ValueError, match="concurrency"):
        Worker(concurrency=0)
    with pytest.raises(ValueError, match="channel"):
        Worker(channels=[])
    with pytest.raises(RuntimeError, match="no handlers"):
        Worker().start()
    worker.endpoint = "nonsense"
    with pytest.raises(ValueError, match="not an endpoint"):
        worker.start()


@pytest.mark.parametrize("concurrency", [0, -1, 10_001, 1.5, True, "4", None])
def test_a_concurrency_is_a_whole_number_from_1_to_10000(concurrency: Any) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 10000, not {concurrency!r}"):
        Worker(concurrency=concurrency)


@pytest.mark.parametrize("limit", [0, 1.5, True, "4"])
def test_a_type_s_concurrency_is_a_whole_number_from_1_on(limit: Any) -> None:
    with pytest.raises(ValueError, match=f"concurrency of 't' .* from 1 on, not {limit!r}"):
        Worker().add("t", lambda job: None, concurrency=limit)


@pytest.mark.parametrize("grace", [-1, math.nan, True, "30", None])
def test_a_grace_is_a_number_of_seconds_from_0_on(grace: Any) -> None:
    with pytest.raises(ValueError, match=f"grace is .* from 0 on, not {grace!r}"):
        Worker(grace=grace)


@pytest.mark.parametrize("name", [5, "x" * 201, b"x"])
def test_a_name_is_a_text_of_1_to_200_characters(name: Any) -> None:
    said = f"of 1 to 200 characters, not {name!r}"

    with pytest.raises(ValueError, match=said):
        Worker(name=name)
    with pytest.raises(ValueError, match=said):
        Worker(channels=["default", name])
    with pytest.raises(ValueError, match=said):
        Worker().add(name, lambda job: None)


def test_a_name_that_no_message_can_carry_is_refused_where_it_comes_in() -> None:
    said = r"is Unicode text, and 'a\\ud800' holds half a character"

    with pytest.raises(ValueError, match=f"worker's name {said}"):
        Worker(name="a\ud800")
    with pytest.raises(ValueError, match=f"channel {said}"):
        Worker(channels=["a\ud800"])
    with pytest.raises(ValueError, match=f"job type {said}"):
        Worker().add("a\ud800", lambda job: None)


def test_an_endpoint_that_is_no_text_of_unicode_is_refused_when_the_worker_starts() -> None:
    worker = Worker("tcp://\ud800:1")
    worker.add("t", lambda job: None)

    with pytest.raises(ValueError, match="not an endpoint"):
        worker.start()
