"""Waits are answered when all of their jobs have ended, or their time is over."""

import sys

import msgspec
import pytest
from msgspec import Raw

from tests.core.box import CLIENT, Box, Denied
from worker_sdk.messages import Enqueue, Wait


def test_wait_is_answered_when_the_last_job_ends(box: Box) -> None:
    one, two = box.enqueue(), box.enqueue()
    worker = box.worker(credit=2)
    wait = box.wait(two, one)

    worker.finish(one, result=1)
    assert not wait.is_answered
    worker.finish(two, result=2)

    assert wait.done
    assert [(job.id, job.state) for job in wait.jobs] == [(two, "finished"), (one, "finished")]
    assert [bytes(job.result) for job in wait.jobs] == [b"2", b"1"]  # type: ignore[arg-type]


def test_wait_for_ended_jobs_is_answered_at_once(box: Box) -> None:
    job = box.enqueue()
    box.cancel(job)

    wait = box.wait(job)

    assert wait.done
    assert wait.states == ["canceled"]


def test_wait_for_nothing_is_answered_at_once(box: Box) -> None:
    assert box.wait().done


def test_wait_without_patience_is_answered_at_once(box: Box) -> None:
    wait = box.wait(box.enqueue(), timeout=0)

    assert not wait.done
    assert wait.states == ["ready"]


def test_wait_is_answered_when_its_time_is_over(box: Box) -> None:
    ended, live = box.enqueue(), box.enqueue()
    box.cancel(ended)
    wait = box.wait(ended, live, timeout=5)

    box.advance(4.9)
    assert not wait.is_answered
    box.advance(0.1)

    assert not wait.done
    assert wait.states == ["canceled", "ready"]


def test_wait_without_a_time_is_answered_within_an_hour(box: Box) -> None:
    wait = box.wait(box.enqueue())

    box.jump(3599)
    assert not wait.is_answered
    box.jump(1)

    assert not wait.done


def test_wait_for_a_job_named_twice_shows_it_twice(box: Box) -> None:
    job = box.enqueue()
    wait = box.wait(job, job)

    box.cancel(job)

    assert wait.states == ["canceled", "canceled"]
    assert len(box.engine.life.waits) == 0


def test_unknown_ids_are_refused_at_once_and_named(box: Box) -> None:
    live, ended = box.enqueue(), box.enqueue()
    box.cancel(ended)
    one, two = box.new_id(), box.new_id()

    for timeout in (0, 60, None):
        with pytest.raises(Denied, match="not_exist") as denied:
            box.wait(one, live, ended, two, one, timeout=timeout)
        assert denied.value.ids == [one, two]
    assert len(box.engine.life.waits) == 0


def test_wait_goes_on_through_retries(box: Box) -> None:
    job = box.enqueue(backoff=0)
    wait = box.wait(job)
    worker = box.worker()

    worker.fail(job)
    assert not wait.is_answered
    worker.finish(job)

    assert wait.done


def test_wait_ends_with_a_cascade(box: Box) -> None:
    first = box.enqueue()
    second = box.enqueue(after=[first])
    wait = box.wait(second)

    box.cancel(first)

    assert wait.states == ["canceled"]


def test_many_wait_for_one_job(box: Box) -> None:
    job = box.enqueue()
    waits = [box.wait(job, timeout=timeout) for timeout in (1, 2, 60, 60)]

    box.advance(1.5)
    assert [wait.is_answered for wait in waits] == [True, False, False, False]
    box.cancel(job)

    assert [wait.done for wait in waits] == [False, True, True, True]
    assert not box.engine.life.waits.by_job


def test_wait_and_the_end_in_one_turn_meet_in_either_order(box: Box) -> None:
    one, two = box.enqueue(), box.enqueue()
    waits = []

    with box.together():
        waits.append(box.wait(one))
        box.cancel(one, two)
        waits.append(box.wait(two))

    assert [wait.done for wait in waits] == [True, True]


def test_end_that_comes_with_the_end_of_patience_counts(box: Box) -> None:
    job = box.enqueue()
    wait = box.wait(job, timeout=5)
    box.now += 5

    box.cancel(job)

    assert wait.is_answered
    assert wait.states == ["canceled"]


def test_more_waits_than_there_may_be_are_refused_as_busy() -> None:
    box = Box(max_waits=2)
    job = box.enqueue()
    box.wait(job, timeout=5)
    box.wait(job)

    with pytest.raises(Denied, match="busy: 2 waits are open"):
        box.wait(job)
    assert box.wait(job, timeout=0).is_answered
    box.advance(5)

    assert not box.wait(job).is_answered


def test_waits_for_very_many_jobs_are_refused_as_busy_beside_others() -> None:
    box = Box(max_waits=2)
    jobs = [box.enqueue() for _ in range(25)]

    alone = box.wait(*jobs)
    with pytest.raises(Denied, match="busy: open waits are for 25 jobs"):
        box.wait(*jobs[:11], timeout=5)
    assert not box.wait(*jobs[:10], timeout=5).is_answered
    box.cancel(*jobs)
    assert alone.done

    jobs = [box.enqueue() for _ in range(25)]
    box.wait(*jobs[:19], timeout=5)
    box.wait(jobs[0])
    box.cancel(jobs[0])
    box.advance(5)
    assert box.engine.life.waits.awaited == 0


@pytest.mark.parametrize("kind", [Wait, Enqueue])
def test_wait_keeps_no_whole_message(box: Box, kind: type[Wait] | type[Enqueue]) -> None:
    # It may lie here for an hour, and the message that it came in be large.
    spec = box.spec()
    box.enqueue_all(spec)
    request = Wait((spec.id,)) if kind is Wait else Enqueue((spec,), wait=60)
    request.req = Raw(b"12345")
    text = msgspec.json.encode(request)
    alone = sys.getrefcount(text)

    box.ask(CLIENT, msgspec.json.decode(text, type=kind), req=False)

    assert len(box.engine.life.waits) == 1
    assert sys.getrefcount(text) == alone
