"""A broker that starts on what an earlier one kept goes on as if nothing had happened."""

import msgspec
import pytest
from msgspec import Raw

from tests.core.box import START_WALL, Box, BoxWorker, Denied
from tests.core.invariants import check_empty
from worker_sdk.messages import Backoff, Dependency, Enqueue, JobInfo

# ---- what waits ----------------------------------------------------------------------------------


def test_every_state_is_as_it_was(lasting: Box) -> None:
    box = lasting
    finished, failed, canceled = (box.enqueue("now") for _ in range(3))
    running = box.enqueue("now")
    worker = box.worker("now", credit=4)
    worker.finish(finished, result=[1])
    worker.fail(failed, "it broke", retry=False)
    box.cancel(canceled)
    ready = box.enqueue(priority=4, channel="c")
    scheduled = box.enqueue(delay=50)
    blocked = box.enqueue(after=[ready, Dependency(failed, "ended")])
    ids = [finished, failed, canceled, running, ready, scheduled, blocked]
    before = box.status(*ids, args=True)

    box.restart()

    assert [info.state for info in before] == [
        "finished", "failed", "canceled", "running", "ready", "scheduled", "blocked",
    ]  # fmt: skip
    after = box.status(*ids, args=True)
    assert [plain(info) for info in after] == [plain(info) for info in before]


def plain(info: JobInfo) -> dict[str, object]:
    fields = msgspec.structs.asdict(info)
    return {name: bytes(it) if isinstance(it, Raw) else it for name, it in fields.items()}


def test_order_of_ready_jobs_is_kept(lasting: Box) -> None:
    jobs = [lasting.enqueue(type, priority=p) for p in (0, 5, 0, -5) for type in ("a", "b")]

    lasting.restart()

    order = lasting.worker("a", "b", credit=20).got()
    assert order == [jobs[n] for n in (2, 3, 0, 1, 4, 5, 6, 7)]


def test_attempt_that_never_reached_its_worker_is_free_as_soon_as_that_is_back(
    lasting: Box,
) -> None:
    known, unknown = lasting.enqueue(max_attempts=1), lasting.enqueue(max_attempts=1)
    lasting.worker(credit=2, session="it")

    lasting.restart()
    other = lasting.worker(credit=1, session="another")
    assert other.got() == []
    lasting.worker(credit=1, session="it", running=[(known, 1)])

    assert lasting.states_of(known, unknown) == ["running", "running"]
    assert other.got() == [unknown]
    assert lasting.info(unknown).attempt == 2


def test_blocked_job_becomes_ready_after_the_restart(lasting: Box) -> None:
    first = lasting.enqueue()
    second = lasting.enqueue(after=[first])

    lasting.restart()
    worker = lasting.worker()
    worker.finish(first, result="kept", credit=0)
    lasting.restart()

    worker = lasting.worker()
    inputs = worker.held[second].inputs
    assert inputs is not None
    assert {id: bytes(raw) for id, raw in inputs.items()} == {first: b'"kept"'}


def test_cascade_goes_through_after_the_restart(lasting: Box) -> None:
    first = lasting.enqueue()
    second = lasting.enqueue(after=[first])
    third = lasting.enqueue(after=[second])
    cleanup = lasting.enqueue(after=[Dependency(third, "ended")])

    lasting.restart()
    lasting.cancel(first)

    states = lasting.states_of(first, second, third, cleanup)
    assert states == ["canceled"] * 3 + ["ready"]


def test_ended_jobs_that_live_ones_need_are_held_after_the_restart(lasting: Box) -> None:
    first = lasting.enqueue()
    second = lasting.enqueue("later", after=[first])
    lasting.worker().finish(first)

    lasting.restart()

    with pytest.raises(Denied, match="conflict"):
        lasting.delete(first)
    lasting.cancel(second)
    assert lasting.delete(first) == [first]


def test_delayed_job_keeps_its_time(lasting: Box) -> None:
    job, passed = lasting.enqueue(delay=50), lasting.enqueue(delay=10)

    lasting.restart(down=20)

    assert lasting.states_of(job, passed) == ["scheduled", "ready"]
    assert lasting.info(job).due == START_WALL + 50
    lasting.advance(29.9)
    assert lasting.state_of(job) == "scheduled"
    lasting.advance(0.2)
    assert lasting.state_of(job) == "ready"


def test_retry_keeps_its_time_and_its_count(lasting: Box) -> None:
    job = lasting.enqueue(max_attempts=2, backoff=Backoff(first=50, jitter=0))
    lasting.worker().fail(job)

    lasting.restart(down=20)

    assert (lasting.info(job).state, lasting.info(job).attempt) == ("scheduled", 1)
    lasting.advance(30.01)
    worker = lasting.worker()
    assert worker.attempt_of(job) == 2
    worker.fail(job)
    assert lasting.state_of(job) == "failed"


def test_expiry_keeps_its_time(lasting: Box) -> None:
    soon, passed = lasting.enqueue(expires=50), lasting.enqueue(expires=10)
    blocked = lasting.enqueue(after=[soon], expires=40)

    lasting.restart(down=20)

    assert lasting.states_of(soon, passed, blocked) == ["ready", "canceled", "blocked"]
    lasting.advance(21)
    assert lasting.states_of(soon, blocked) == ["ready", "canceled"]
    lasting.advance(10)
    assert lasting.state_of(soon) == "canceled"


def test_delay_and_expiry_that_both_passed_meanwhile_are_an_expiry(lasting: Box) -> None:
    job = lasting.enqueue(delay=5, expires=10)

    lasting.restart(down=20)

    assert lasting.state_of(job) == "canceled"
    assert lasting.worker().got() == []


def test_enqueue_sent_again_after_the_restart_is_the_same(lasting: Box) -> None:
    dependency = lasting.spec()
    spec = lasting.spec(
        "work",
        {"a": [1, "\u0000"]},
        after=[Dependency(dependency.id, "ended")],
        backoff=Backoff(first=3.0),
        timeout=1.5,
        priority=-7,
        channel="x",
    )
    lasting.enqueue_all(dependency, spec)

    lasting.restart()

    assert lasting.enqueue_all(dependency, spec).ids == [dependency.id, spec.id]
    lasting.cancel(dependency.id, spec.id)
    lasting.restart()
    assert lasting.enqueue_all(dependency, spec).ids == [dependency.id, spec.id]
    spec.priority = 0
    with pytest.raises(Denied, match="conflict"):
        lasting.enqueue_all(spec)


def test_numbers_go_on_where_they_ended(lasting: Box) -> None:
    first = lasting.enqueue()
    lasting.restart()

    second = lasting.enqueue()

    assert lasting.worker(credit=5).got() == [first, second]
    jobs = lasting.engine.life.jobs
    assert jobs[first].seq < jobs[second].seq


# ---- what runs -----------------------------------------------------------------------------------


def running_job(box: Box, **terms: object) -> tuple[str, BoxWorker]:
    job = box.enqueue(**terms)  # type: ignore[arg-type]
    worker = box.worker(session="s")
    assert worker.held.keys() == {job}
    return job, worker


def test_claimed_attempt_goes_on(lasting: Box) -> None:
    job, old = running_job(lasting)

    lasting.restart(down=3)
    worker = lasting.worker(session="s", running=old.tokens())

    assert worker.canceled() == []
    assert lasting.info(job).started == START_WALL
    lasting.advance(9)
    worker.heartbeat()
    lasting.advance(9)
    worker.finish(job, attempt=1)
    assert lasting.state_of(job) == "finished"


def test_any_worker_may_claim_what_it_runs(lasting: Box) -> None:
    # Its session may be a new one: what counts is the attempt.
    job, old = running_job(lasting)

    lasting.restart()
    worker = lasting.worker("other", session="new", running=old.tokens())

    worker.finish(job, attempt=1)
    assert lasting.state_of(job) == "finished"


def test_claimed_attempts_count_against_credit(lasting: Box) -> None:
    _, old = running_job(lasting)
    second = lasting.enqueue()

    lasting.restart()
    worker = lasting.worker(credit=1, running=old.tokens())

    assert worker.got() == []
    assert lasting.state_of(second) == "ready"


def test_unclaimed_attempt_runs_anew_after_the_time_of_grace(lasting: Box) -> None:
    job, _ = running_job(lasting)

    lasting.restart()
    worker = lasting.worker()
    lasting.advance(9.9)
    worker.heartbeat()
    assert lasting.state_of(job) == "running"
    assert worker.got() == []
    lasting.advance(0.1)

    assert worker.attempt_of(job) == 2


def test_unclaimed_attempt_was_one_of_them_all(lasting: Box) -> None:
    job, _ = running_job(lasting, max_attempts=1)

    lasting.restart()
    lasting.advance(10)

    info = lasting.info(job)
    assert info.state == "failed"
    assert info.error == "the worker did not come back after the broker's restart"


def test_claim_after_the_time_of_grace_is_lost(lasting: Box) -> None:
    job, old = running_job(lasting)

    lasting.restart()
    lasting.advance(10)
    worker = lasting.worker(running=old.tokens())

    assert worker.canceled() == [(job, "lost")]
    assert worker.attempt_of(job) == 2


def test_second_restart_gives_grace_anew(lasting: Box) -> None:
    job, old = running_job(lasting)

    lasting.restart()
    lasting.advance(8)
    lasting.restart()
    lasting.advance(8)
    worker = lasting.worker(running=old.tokens())

    assert worker.canceled() == []
    worker.finish(job, attempt=1)


def test_attempt_that_was_taken_over_and_lost_again_can_be_lost_only_once(lasting: Box) -> None:
    job, old = running_job(lasting)

    lasting.restart()
    worker = lasting.worker(credit=0, running=old.tokens())
    worker.fail(job, attempt=1)
    lasting.advance(30)

    assert lasting.info(job).attempt == 1
    assert lasting.state_of(job) == "ready"


def test_running_attempt_nobody_claimed_yet_can_be_canceled(lasting: Box) -> None:
    job, old = running_job(lasting)

    lasting.restart()
    lasting.cancel(job)
    worker = lasting.worker(running=old.tokens())

    assert worker.canceled() == [(job, "request")]
    lasting.advance(30)
    check_empty(lasting.engine)


def test_time_out_goes_on_over_the_restart(lasting: Box) -> None:
    job, old = running_job(lasting, timeout=20, backoff=0)

    lasting.restart(down=5)
    worker = lasting.worker(running=old.tokens())
    for _ in range(7):
        lasting.advance(2)
        worker.heartbeat()
    assert worker.canceled() == []
    lasting.advance(2)

    assert worker.canceled() == [(job, "timeout")]
    assert worker.attempt_of(job) == 2


def test_attempt_that_timed_out_meanwhile_is_over(lasting: Box) -> None:
    job, old = running_job(lasting, timeout=5, backoff=100)

    lasting.restart(down=6)
    worker = lasting.worker(running=old.tokens())

    assert worker.canceled() == [(job, "lost")]
    assert lasting.state_of(job) == "scheduled"


def test_jobs_that_were_never_delivered_run_after_grace(lasting: Box) -> None:
    # The broker dies between the commit of a dispatch and its sending.
    worker = lasting.worker()
    lasting.cut(worker)
    spec = lasting.spec()
    effects = lasting.engine.apply(
        [((b"client", b""), Enqueue((spec,)))], lasting.now, START_WALL + lasting.now
    )
    lasting.store.commit(effects.writes)
    lasting.mend(worker)

    lasting.restart()
    assert lasting.state_of(spec.id) == "running"
    lasting.advance(10)

    assert lasting.worker().attempt_of(spec.id) == 2


def test_many_running_attempts_of_many_types_survive(lasting: Box) -> None:
    types = "abcdef"
    jobs = [lasting.enqueue(type, priority=n % 2) for n, type in enumerate(types * 3)]
    old = lasting.worker(*types, credit=12)
    tokens = old.tokens()

    lasting.restart()
    worker = lasting.worker(*types, credit=100, running=tokens[:6])
    lasting.advance(9)
    worker.heartbeat()
    lasting.advance(2)

    assert set(worker.got()) == set(jobs) - {id for id, _ in tokens[:6]}
    assert len(lasting.engine.crew.workers[worker.connection].running) == len(jobs)


def test_restart_again_and_again_loses_and_repeats_nothing(lasting: Box) -> None:
    box = lasting
    chain = [box.enqueue()]
    for _ in range(20):
        chain.append(box.enqueue(after=[chain[-1]]))
    finished: list[str] = []
    tokens: list[tuple[str, int]] = []
    while len(finished) < len(chain):
        box.restart(down=1)
        worker = box.worker(session="s", running=tokens)
        (id,) = worker.held or [token[0] for token in tokens]
        if len(finished) % 2:
            worker.finish(id, attempt=1)
            finished.append(id)
            tokens = worker.tokens()
        else:
            tokens = [(id, 1)]
            box.restart()
            worker = box.worker(session="s", running=tokens)
            worker.finish(id, attempt=1)
            finished.append(id)
            tokens = worker.tokens()

    assert finished == chain
    assert {info.attempt for info in box.status(*chain)} == {1}
