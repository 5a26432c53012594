"""Cancel ends what has not ended, at once and wherever it is."""

import pytest

from tests.core.box import Box, Denied
from tests.core.invariants import check_empty


def test_canceled_job_does_not_run(box: Box) -> None:
    job = box.enqueue()

    assert box.cancel(job) == [job]

    info = box.info(job)
    assert (info.state, info.canceled, info.reason) == ("canceled", True, "request")
    assert (info.finished, info.started) == (None, None)
    assert box.worker().got() == []


def test_worker_of_a_canceled_job_is_told(box: Box) -> None:
    job, other = box.enqueue(), box.enqueue()
    worker = box.worker(credit=2)

    box.cancel(job)

    assert worker.canceled() == [(job, "request")]
    assert box.states_of(job, other) == ["canceled", "running"]
    assert box.info(job).started is not None


def test_cancel_of_several_running_jobs_is_one_message_a_worker(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(4)]
    one, two = box.worker(credit=2), box.worker(credit=2)
    mine = one.got()
    before = len(one.inbox)

    box.cancel(*jobs)

    assert len(one.inbox) == before + 1
    assert one.canceled() == [(id, "request") for id in mine]
    assert len(two.canceled()) == 2


@pytest.mark.parametrize("state", ["blocked", "scheduled", "ready", "running"])
def test_job_can_be_canceled_in_each_state_before_its_end(box: Box, state: str) -> None:
    first = box.enqueue("first")
    job = {
        "blocked": lambda: box.enqueue(after=[first]),
        "scheduled": lambda: box.enqueue(delay=9),
        "ready": lambda: box.enqueue(),
        "running": lambda: box.enqueue("now"),
    }[state]()
    worker = box.worker("now")
    assert box.state_of(job) == state

    assert box.cancel(job) == [job]

    assert box.state_of(job) == "canceled"
    worker.bye()
    box.cancel(first)
    check_empty(box.engine)


@pytest.mark.parametrize("end", ["finished", "failed", "canceled"])
def test_cancel_does_nothing_to_an_ended_job(box: Box, end: str) -> None:
    job = box.enqueue()
    worker = box.worker()
    if end == "finished":
        worker.finish(job)
    elif end == "failed":
        worker.fail(job, retry=False)
    else:
        box.cancel(job)
    before = box.info(job)

    assert box.cancel(job) == []

    after = box.info(job)
    assert (after.state, after.ended) == (end, before.ended)


def test_answer_names_those_that_the_call_ended(box: Box) -> None:
    ended, live = box.enqueue(), box.enqueue()
    box.cancel(ended)

    assert box.cancel(ended, live, live) == [live]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_answer_names_asked_ones_that_went_with_another(box: Box, order: tuple[int, int]) -> None:
    first = box.enqueue()
    second = box.enqueue(after=[first])
    ids = [(first, second)[place] for place in order]

    assert box.cancel(*ids) == ids


def test_unknown_ids_are_named_and_nothing_is_done(box: Box) -> None:
    job = box.enqueue()
    one, two = box.new_id(), box.new_id()

    with pytest.raises(Denied, match="not_exist") as denied:
        box.cancel(one, job, two)

    assert denied.value.ids == [one, two]
    assert box.state_of(job) == "ready"


def test_unknown_id_named_twice_is_named_once(box: Box) -> None:
    nobody = box.new_id()

    with pytest.raises(Denied, match=f"not_exist: job {nobody} does not exist") as denied:
        box.cancel(nobody, nobody)

    assert denied.value.ids == [nobody]


def test_cancel_of_nothing_is_carried_out(box: Box) -> None:
    assert box.cancel() == []


def test_finish_and_cancel_in_one_turn_count_in_their_order(box: Box) -> None:
    one, two = box.enqueue(), box.enqueue()
    worker = box.worker(credit=2)

    with box.together():
        worker.finish(one)
        box.cancel(one, two)
        worker.finish(two)

    assert box.states_of(one, two) == ["finished", "canceled"]
    assert [error.code for error in worker.errors()] == ["canceled"]
    assert worker.canceled() == [(two, "request")]


def test_job_enqueued_and_canceled_in_one_turn_is_kept_as_canceled(box: Box) -> None:
    worker = box.worker()

    with box.together():
        job = box.enqueue()
        box.cancel(job)

    assert box.state_of(job) == "canceled"
    assert worker.got() == []


def test_canceled_job_is_not_sent_to_a_worker_that_comes_in_the_same_turn(box: Box) -> None:
    job = box.enqueue()

    with box.together():
        worker = box.worker()
        box.cancel(job)

    assert worker.got() == []


def test_worker_is_told_of_a_cancel_before_it_gets_the_retried_job(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker()
    worker.inbox.clear()

    with box.together():
        box.cancel(job)
        box.retry(job)

    assert [type(message).__name__ for message in worker.inbox] == ["CancelRunning", "Jobs"]
    assert worker.attempt_of(job) == 2
