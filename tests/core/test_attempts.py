"""Attempts: who may report one, what its failure leads to, how long it may take."""

import sys
from collections.abc import Callable

import msgspec
import pytest

from tests.core.box import START_WALL, Box, BoxWorker, Denied
from worker_sdk.messages import Backoff, Claim, Finish, Outcome, Progress, Release

# ---- outcomes and their token --------------------------------------------------------------------


def test_finished_job_shows_its_result_and_times(box: Box) -> None:
    job = box.enqueue()
    box.advance(3)
    worker = box.worker()
    box.advance(4)

    worker.finish(job, result={"n": 1})

    info = box.info(job)
    assert (info.state, info.canceled, info.attempt) == ("finished", False, 1)
    assert (info.queued, info.started, info.finished) == (
        START_WALL,
        START_WALL + 3,
        START_WALL + 7,
    )
    assert info.ended == info.finished
    assert bytes(info.result) == b'{"n":1}'  # type: ignore[arg-type]


def test_running_job_shows_when_it_started_and_how_far_it_is(box: Box) -> None:
    job = box.enqueue()
    box.advance(3)
    worker = box.worker()

    worker.progress(job, {"done": 0.5})

    info = box.info(job)
    assert (info.state, info.started, info.attempt) == ("running", START_WALL + 3, 1)
    assert bytes(info.progress) == b'{"done":0.5}'  # type: ignore[arg-type]


def test_first_accepted_outcome_stays(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker()
    worker.finish(job, result=1)

    with pytest.raises(Denied, match="not_running"):
        worker.finish(job, result=2, attempt=1)
    with pytest.raises(Denied, match="not_running"):
        worker.fail(job, attempt=1)

    assert bytes(box.info(job).result) == b"1"  # type: ignore[arg-type]


def test_same_attempt_twice_in_one_message_counts_once(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker()

    with pytest.raises(Denied, match="not_running") as denied:
        worker.finish(job, job, attempt=1)

    assert denied.value.ids == [job]
    assert box.state_of(job) == "finished"


def test_only_the_worker_that_holds_an_attempt_can_report_it(box: Box) -> None:
    job = box.enqueue()
    box.worker()
    other = box.worker()

    reports: list[Callable[[], object]] = [
        lambda: other.finish(job, attempt=1),
        lambda: other.fail(job, attempt=1),
        lambda: other.progress(job, 1, attempt=1),
        lambda: other.tell(Release((Claim(job, 1),))),
    ]
    for report in reports:
        with pytest.raises(Denied, match="not_running"):
            report()
    assert box.state_of(job) == "running"


def test_only_the_running_attempt_can_be_reported(box: Box) -> None:
    job = box.enqueue(backoff=0)
    worker = box.worker()
    worker.fail(job)

    for attempt in (1, 3):
        with pytest.raises(Denied, match="not_running"):
            worker.finish(job, attempt=attempt)

    worker.finish(job, attempt=2)
    assert box.state_of(job) == "finished"


def test_report_of_a_job_that_waits_is_refused(box: Box) -> None:
    job = box.enqueue("other")
    worker = box.worker()

    with pytest.raises(Denied, match="not_running"):
        worker.finish(job, attempt=1)


def test_report_of_a_canceled_job_is_refused_as_canceled(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker()
    box.cancel(job)

    reports: list[Callable[[], object]] = [
        lambda: worker.finish(job, attempt=1),
        lambda: worker.fail(job, attempt=1),
        lambda: worker.progress(job, 1, attempt=1),
    ]
    for report in reports:
        with pytest.raises(Denied, match=r"canceled: .* was canceled"):
            report()


def test_report_of_an_unknown_job_is_refused_as_such(box: Box) -> None:
    worker = box.worker()

    with pytest.raises(Denied, match="not_exist"):
        worker.finish(box.new_id(), attempt=1)


def test_refusals_in_a_batch_name_the_code_of_each_and_the_others_are_accepted(box: Box) -> None:
    good, late, gone = (box.enqueue() for _ in range(3))
    worker = box.worker(credit=3)
    box.cancel(gone)
    worker.finish(late)
    nobody = box.new_id()

    with pytest.raises(Denied):
        worker.finish(good, late, gone, nobody, attempt=1)

    (error,) = worker.errors()
    assert error.code == "not_running"
    assert dict(zip(error.ids, error.codes, strict=True)) == {
        late: "not_running",
        gone: "canceled",
        nobody: "not_exist",
    }
    assert box.state_of(good) == "finished"


def test_refusals_name_attempts_in_the_order_of_the_message(box: Box) -> None:
    gone, late = box.enqueue(), box.enqueue()
    worker = box.worker(credit=2)
    box.cancel(gone)
    worker.finish(late)
    nobody = box.new_id()

    with pytest.raises(Denied) as denied:
        worker.tell(Release((Claim(gone, 1), Claim(nobody, 1), Claim(late, 1))))

    assert denied.value.code == "canceled"
    assert denied.value.ids == [gone, nobody, late]


def test_report_without_req_is_answered_only_if_it_is_refused(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker()
    before = len(worker.inbox)

    box.ask(worker.connection, Finish((Outcome(job, 1),)), req=False)
    assert len(worker.inbox) == before
    box.ask(worker.connection, Finish((Outcome(job, 1),)), req=False)

    assert [error.code for error in worker.errors()] == ["not_running"]


# ---- failures and retries ------------------------------------------------------------------------


def test_failed_attempt_is_followed_by_another(box: Box) -> None:
    job = box.enqueue(backoff=0)
    worker = box.worker()

    worker.fail(job, "first try")

    assert worker.attempt_of(job) == 2
    worker.finish(job)
    assert box.state_of(job) == "finished"


def test_job_fails_with_its_last_attempt(box: Box) -> None:
    job = box.enqueue(max_attempts=3, backoff=0)
    worker = box.worker()

    for number in (1, 2, 3):
        worker.fail(job, f"error {number}")

    info = box.info(job)
    assert (info.state, info.error, info.attempt) == ("failed", "error 3", 3)
    assert (info.canceled, info.finished) == (False, info.ended)
    assert worker.got() == [job] * 3


def test_handler_can_say_that_there_is_no_point_in_a_retry(box: Box) -> None:
    job = box.enqueue(max_attempts=10)

    box.worker().fail(job, "hopeless", retry=False)

    assert box.info(job).state == "failed"


def test_retry_waits_for_the_backoff(box: Box) -> None:
    job = box.enqueue(backoff=Backoff(first=10, jitter=0))
    worker = box.worker()

    worker.fail(job)

    info = box.info(job)
    assert (info.state, info.due) == ("scheduled", START_WALL + 10)
    box.advance(9.99)
    worker.heartbeat()
    assert box.state_of(job) == "scheduled"
    box.advance(0.01)
    assert box.state_of(job) == "running"
    assert box.info(job).due is None


def pauses_of(box: Box, job: str, worker: BoxWorker, times: int) -> list[float]:
    pauses = []
    for _ in range(times):
        worker.fail(job)
        due = box.info(job).due
        assert due is not None
        pauses.append(due - START_WALL - box.now)
        while box.state_of(job) == "scheduled":
            worker.heartbeat()
            box.jump(min(pauses[-1], 9.0))
    return pauses


def test_backoff_grows_to_its_limit(box: Box) -> None:
    job = box.enqueue(max_attempts=9, backoff=Backoff(first=1, factor=3, limit=20, jitter=0))

    pauses = pauses_of(box, job, box.worker(), 5)

    assert pauses == pytest.approx([1, 3, 9, 20, 20], abs=1e-5)


def test_backoff_varies_by_the_jitter_and_no_more(box: Box) -> None:
    worker = box.worker(credit=200)
    backoff = Backoff(first=10, factor=1, jitter=0.5)
    jobs = [box.enqueue(backoff=backoff) for _ in range(200)]
    for job in jobs:
        worker.fail(job)

    pauses = [info.due - START_WALL for info in box.status(*jobs) if info.due is not None]

    assert 5 <= min(pauses) < 6
    assert 14 < max(pauses) <= 15


def test_jitter_is_the_same_for_the_same_seed() -> None:
    def due(seed: int) -> float | None:
        box = Box(seed=seed)
        job = box.enqueue()
        box.worker().fail(job)
        return box.info(job).due

    assert due(1) == due(1)
    assert due(1) != due(2)


def test_backoff_beyond_all_numbers_is_its_limit(box: Box) -> None:
    backoff = Backoff(first=1, factor=100, limit=1, jitter=0)
    job = box.enqueue(max_attempts=1000, backoff=backoff)
    worker = box.worker()

    pauses = pauses_of(box, job, worker, 200)

    assert max(pauses) == pytest.approx(1, abs=1e-5)


def test_release_uses_up_no_attempt(box: Box) -> None:
    job = box.enqueue(max_attempts=2, backoff=0)
    worker = box.worker()
    for _ in range(5):
        worker.release(job)
    assert worker.attempt_of(job) == 6

    worker.fail(job)
    assert box.state_of(job) == "running"
    worker.fail(job)

    assert box.state_of(job) == "failed"


def test_long_error_is_cut(box: Box) -> None:
    job = box.enqueue()

    box.worker().fail(job, "x" * 1_000_000, retry=False)

    assert box.info(job).error == "x" * 65_536


def test_progress_keeps_nothing_but_itself(box: Box) -> None:
    # The message that it came in may be large, and would be kept alive by a part of it.
    job = box.enqueue()
    worker = box.worker()
    text = msgspec.json.encode({"op": "progress", "jobs": [[job, 1, 0.5]], "more": "x" * 10_000})
    alone = sys.getrefcount(text)

    box.ask(worker.connection, msgspec.json.decode(text, type=Progress))

    assert sys.getrefcount(text) == alone


# ---- time-outs -------------------------------------------------------------------------------


def test_attempt_that_runs_too_long_is_over(box: Box) -> None:
    job = box.enqueue(timeout=5, max_attempts=1)
    worker = box.worker()

    box.advance(4.99)
    assert box.state_of(job) == "running"
    box.advance(0.02)

    assert worker.canceled() == [(job, "timeout")]
    info = box.info(job)
    assert (info.state, info.error) == ("failed", "timed out after 5 s")


def test_attempt_that_ran_too_long_is_followed_by_another(box: Box) -> None:
    job = box.enqueue(timeout=5, backoff=0)
    worker = box.worker()

    box.advance(5.01)

    assert worker.canceled() == [(job, "timeout")]
    assert worker.attempt_of(job) == 2
    with pytest.raises(Denied, match="not_running"):
        worker.finish(job, attempt=1)


def test_worker_is_told_of_the_time_out_before_it_gets_the_job_again(box: Box) -> None:
    job = box.enqueue(timeout=5, backoff=0)
    worker = box.worker()
    worker.inbox.clear()

    box.advance(5.01)

    assert [type(message).__name__ for message in worker.inbox] == ["CancelRunning", "Jobs"]
    assert box.state_of(job) == "running"


def test_each_attempt_has_the_whole_time(box: Box) -> None:
    job = box.enqueue(timeout=5, backoff=0)
    worker = box.worker()
    box.advance(4)
    worker.fail(job)

    box.advance(4)
    assert worker.attempt_of(job) == 2
    box.advance(1.01)

    assert worker.attempt_of(job) == 3


def test_time_out_of_an_attempt_that_is_over_does_nothing(box: Box) -> None:
    job = box.enqueue(timeout=5)
    worker = box.worker()
    worker.finish(job)

    box.advance(8)

    assert worker.canceled() == []
    assert box.state_of(job) == "finished"


# ---- one certain job -----------------------------------------------------------------------------


def test_worker_can_claim_one_certain_job(box: Box) -> None:
    other, wanted = box.enqueue(), box.enqueue()
    worker = box.worker(credit=0)

    job = worker.claim(wanted)

    assert job is not None
    assert (job.id, job.attempt) == (wanted, 1)
    assert box.states_of(other, wanted) == ["ready", "running"]
    worker.finish(wanted)
    assert box.state_of(wanted) == "finished"


def test_claim_goes_beyond_credit_and_type(box: Box) -> None:
    mine = box.enqueue("mine")
    wanted = box.enqueue("other", channel="elsewhere")
    worker = box.worker("mine", credit=1)

    assert worker.claim(wanted) is not None

    assert set(worker.held) == {mine, wanted}
    third = box.enqueue("mine")
    worker.finish(wanted)
    assert box.state_of(third) == "ready"
    worker.finish(mine)
    assert box.state_of(third) == "running"


def test_claim_of_a_job_that_is_not_ready_is_refused(box: Box) -> None:
    worker = box.worker(credit=1)
    running = box.enqueue()
    blocked = box.enqueue("x", after=[running])
    scheduled = box.enqueue("x", delay=5)
    failed, finished, canceled = (box.enqueue("y") for _ in range(3))
    helper = box.worker("y", credit=3)
    helper.fail(failed, retry=False)
    helper.finish(finished)
    box.cancel(canceled)

    def refusal(id: str) -> str:
        with pytest.raises(Denied) as denied:
            worker.claim(id)
        assert denied.value.ids == [id]
        return f"{denied.value.code}: {denied.value.message}"

    assert refusal(running) == f"not_ready: job {running} is running, not ready"
    assert refusal(blocked) == f"not_ready: job {blocked} is blocked, not ready"
    assert refusal(scheduled) == f"not_ready: job {scheduled} is scheduled, not ready"
    assert refusal(failed) == f"not_ready: job {failed} has ended"
    assert refusal(finished) == f"not_ready: job {finished} has ended"
    assert refusal(canceled).startswith("canceled: ")
    assert refusal(box.new_id()).startswith("not_exist: ")


def test_broker_that_drains_gives_out_no_claims(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker(credit=0)
    box.engine.draining = True

    with pytest.raises(Denied, match="busy"):
        worker.claim(job)


def test_two_claims_of_one_job_in_one_turn_give_it_to_the_first(box: Box) -> None:
    job = box.enqueue()
    one, two = box.worker(credit=0), box.worker(credit=0)

    with box.together():
        one.claim(job)
        two.claim(job)

    assert one.got() == [job]
    assert two.got() == []
    assert [error.code for error in two.errors()] == ["not_ready"]


def test_claimed_job_that_is_canceled_in_the_same_turn_is_not_sent(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker(credit=0)

    with box.together():
        worker.claim(job)
        box.cancel(job)

    assert worker.got() == []
    assert worker.held == {}
    assert [error.code for error in worker.errors()] == ["canceled"]


def test_claim_by_a_worker_that_leaves_in_the_same_turn_is_not_sent(box: Box) -> None:
    job = box.enqueue()
    one, two = box.worker(credit=0), box.worker("other", credit=1)

    with box.together():
        one.claim(job)
        one.bye()
        two.hello("work")

    assert one.got() == []
    assert two.tokens() == [(job, 1)]


def test_worker_cannot_report_an_attempt_that_it_does_not_have_yet(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker(credit=0)

    with box.together():
        worker.claim(job)
        box.ask(worker.connection, Finish((Outcome(job, 1),)))

    assert [error.code for error in worker.errors()] == ["not_running"]
    assert worker.tokens() == [(job, 1)]


def test_claim_alone_is_a_sign_of_life_after_a_pause_of_the_broker(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker(credit=0)
    box.now += 60

    worker.claim(job)

    assert worker.got() == [job]


def test_job_that_is_tried_again_tells_what_went_wrong_before(box: Box) -> None:
    id = box.enqueue(backoff=30)
    worker = box.worker()
    worker.fail(id, "first\n" + "x" * 5000)
    assert box.info(id).state == "scheduled"
    assert box.info(id).error == "first\n" + "x" * 194

    box.advance(40)
    worker = box.worker()
    assert (box.info(id).state, (box.info(id).error or "")[:5]) == ("running", "first")
    worker.finish(id)

    assert box.info(id).error is None


# ---- an outcome that is sent twice ---------------------------------------------------------------


def recorded(worker: BoxWorker) -> list[str]:
    """The ids that the last error names as recorded by the very attempt that it refuses."""
    return list(worker.errors()[-1].recorded)


def test_finish_sent_twice_is_refused_as_recorded(box: Box) -> None:
    id = box.enqueue()
    worker = box.worker()
    worker.finish(id)

    with pytest.raises(Denied, match="not_running"):
        worker.finish(id, attempt=1)

    assert recorded(worker) == [id]


def test_other_result_for_an_attempt_that_is_recorded_is_not_taken_for_recorded(box: Box) -> None:
    id = box.enqueue()
    box.worker().finish(id, result="mine")
    other = box.worker()

    with pytest.raises(Denied, match="not_running"):
        other.finish(id, attempt=1, result="not mine")

    assert recorded(other) == []


def test_finish_of_an_attempt_that_was_lost_is_not_taken_for_recorded(box: Box) -> None:
    id = box.enqueue()
    late = box.worker()
    box.advance(11)
    other = box.worker()
    assert other.attempt_of(id) == 2
    other.finish(id)
    late.hello()

    with pytest.raises(Denied, match="not_running"):
        late.finish(id, attempt=1)

    assert recorded(late) == []


def test_last_failure_sent_twice_is_refused_as_recorded_unless_it_says_something_else(
    box: Box,
) -> None:
    id = box.enqueue(max_attempts=1)
    worker = box.worker()
    worker.fail(id, "it broke")

    for error, is_recorded in (("it broke", True), ("it tore", False)):
        with pytest.raises(Denied, match="not_running"):
            worker.fail(id, error, attempt=1)
        assert bool(recorded(worker)) is is_recorded
    with pytest.raises(Denied, match="not_running"):
        worker.finish(id, attempt=1)
    assert recorded(worker) == []
