"""Workers come, say again who they are, go silent, leave; and who of them gets a job."""

from collections.abc import Callable

import pytest

from broker.core import service
from broker.core.engine import SignOfLife
from tests.core.box import Box, Denied
from tests.core.invariants import check_empty
from worker_sdk.messages import Heartbeat, Ping, Stats, Welcome

# ---- credit and load ---------------------------------------------------------------------------


def test_worker_gets_no_more_than_its_credit(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(5)]

    worker = box.worker(credit=3)

    assert worker.got() == jobs[:3]


def test_outcome_makes_room_for_the_next_job(box: Box) -> None:
    first, second = box.enqueue(), box.enqueue()
    worker = box.worker(credit=1)
    assert worker.got() == [first]

    worker.finish(first)

    assert worker.got() == [second]


def test_credit_of_zero_gets_nothing_until_it_is_raised(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker(credit=0)
    assert worker.got() == []

    worker.heartbeat(credit=1)

    assert worker.got() == [job]


def test_lowered_credit_takes_nothing_away_and_gives_nothing_new(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(4)]
    worker = box.worker(credit=3)

    worker.heartbeat(credit=1)
    worker.finish(jobs[0])
    worker.finish(jobs[1])
    assert worker.got() == jobs[:3]
    worker.finish(jobs[2])

    assert worker.got() == jobs[3:]


def test_credit_in_an_outcome_counts_before_the_next_dispatch(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(4)]
    worker = box.worker(credit=1)

    worker.finish(jobs[0], credit=2)
    assert worker.got() == jobs[:3]
    worker.fail(jobs[1], retry=False, credit=0)
    worker.release(jobs[2], credit=0)

    assert worker.got() == []


def test_cancel_gives_credit_back(box: Box) -> None:
    first, second = box.enqueue(), box.enqueue()
    worker = box.worker(credit=1)
    assert worker.got() == [first]

    box.cancel(first)

    assert worker.got() == [second]


def test_least_loaded_worker_gets_the_job(box: Box) -> None:
    busy, idle = box.worker(credit=5), box.worker(credit=0)
    box.enqueue()
    box.enqueue()
    idle.heartbeat(credit=5)

    job = box.enqueue()

    assert len(busy.got()) == 2
    assert idle.got() == [job]


def test_jobs_are_spread_over_workers_with_equal_load(box: Box) -> None:
    workers = [box.worker(credit=10) for _ in range(4)]

    with box.together():
        for _ in range(8):
            box.enqueue()

    assert [len(worker.got()) for worker in workers] == [2, 2, 2, 2]


def test_load_counts_across_workers_of_different_types(box: Box) -> None:
    narrow, wide = box.worker("a", credit=5), box.worker("a", "b", credit=5)
    with box.together():
        box.enqueue("a")
        box.enqueue("a")
        box.enqueue("a")
        box.enqueue("a")

    assert len(narrow.got()) == len(wide.got()) == 2


def test_free_worker_is_not_given_less_urgent_work_because_it_is_less_loaded(box: Box) -> None:
    # The narrow worker could take the plain job as well; the wide one is wanted for the urgent.
    narrow, wide = box.worker("a", credit=2), box.worker("a", "b", credit=1)
    with box.together():
        box.enqueue("a")
        box.enqueue("a")
    assert (len(narrow.got()), len(wide.got())) == (1, 1)
    wide.finish(next(iter(wide.held)))

    with box.together():
        plain = box.enqueue("a", priority=0)
        urgent = box.enqueue("b", priority=9)

    assert wide.got() == [urgent]
    assert narrow.got() == [plain]


def test_busiest_of_workers_with_far_apart_loads_gets_the_job_only_if_it_must(box: Box) -> None:
    heavy = box.worker(credit=50)
    for _ in range(40):
        box.enqueue()
    heavy.got()
    light = box.worker(credit=1)

    first, second = box.enqueue(), box.enqueue()

    assert light.got() == [first]
    assert heavy.got() == [second]


# ---- types and channels ------------------------------------------------------------------------


def test_worker_gets_only_jobs_of_its_types(box: Box) -> None:
    mine, others = box.enqueue("mine"), box.enqueue("others")

    worker = box.worker("mine", credit=5)

    assert worker.got() == [mine]
    assert box.state_of(others) == "ready"


def test_worker_gets_only_jobs_of_its_channels(box: Box) -> None:
    box.enqueue(channel="elsewhere")
    here, there = box.enqueue(channel="here"), box.enqueue(channel="there")

    worker = box.worker(channels=("here", "there"), credit=5)

    assert worker.got() == [here, there]


def test_type_or_channel_named_twice_counts_once(box: Box) -> None:
    worker = box.worker("a", "a", channels=("default", "default"), credit=5)

    job = box.enqueue("a")

    assert worker.got() == [job]


def test_hello_without_types_or_channels_is_invalid(box: Box) -> None:
    with pytest.raises(Denied, match="invalid: hello needs at least one type"):
        box.worker("x", channels=())


def test_hello_with_more_lanes_than_the_bound_is_invalid(box: Box) -> None:
    types = [f"type-{number}" for number in range(200)]

    with pytest.raises(Denied, match="invalid: hello names 12000 pairs") as denied:
        box.worker(*types, channels=tuple(f"channel-{number}" for number in range(60)))

    assert denied.value.ids == []
    assert len(box.engine.life.lanes) == 0


# ---- hello again, sessions ---------------------------------------------------------------------


def test_hello_is_answered_by_welcome(box: Box) -> None:
    worker = box.worker()

    assert worker.welcomes == [
        Welcome(
            version="box",
            heartbeat=2.5,
            heartbeat_limit=10.0,
            message_limit=16 * 1024**2,
            req=worker.welcomes[0].req,
        )
    ]


def test_worker_that_says_hello_again_still_gets_jobs(box: Box) -> None:
    worker = box.worker()

    worker.hello()

    job = box.enqueue()
    assert worker.got() == [job]


def test_hello_again_on_the_same_connection_keeps_what_is_held(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker(credit=2)

    worker.hello(credit=2)

    assert box.state_of(job) == "running"
    worker.finish(job)
    assert box.state_of(job) == "finished"


def test_hello_again_of_a_peer_with_an_id_of_its_own_keeps_only_what_it_names(box: Box) -> None:
    # A process that crashed, and the next one under the same id: the broker sees one connection.
    named, other = box.enqueue(), box.enqueue()
    worker = box.worker(credit=2, connection=b"mine")

    worker.held.clear()
    worker.hello(credit=1, running=[(named, 1)])

    assert box.states_of(named, other) == ["running", "ready"]
    assert box.worker().attempt_of(other) == 2


def test_pairs_of_types_and_channels_are_bounded_in_all(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_LANES_IN_ALL_MOST", 10)
    first = box.worker(*"abcdef")

    with pytest.raises(Denied, match="busy: with this one, workers would name 11 pairs"):
        box.worker(*"ghijk")

    first.hello(*"abcdef")
    other = box.worker(*"ghij")
    other.bye()
    # Jobs of their own types do not count: somebody must be able to run them.
    for type in "mnopqrstuvw":
        box.enqueue(type)
    box.worker(*"mnop")


def test_hello_again_changes_types_and_credit(box: Box) -> None:
    box.enqueue("a")
    worker = box.worker("a", credit=1)
    box.enqueue("a")

    worker.hello("b", credit=3)

    first, second = box.enqueue("b"), box.enqueue("b")
    box.enqueue("b")
    assert worker.got()[1:] == [first, second]


def test_attempt_on_its_way_is_not_taken_back_by_an_older_claim(box: Box) -> None:
    # The time-out, the next attempt and the hello with the old attempt cross on the wire.
    job = box.enqueue(timeout=5, backoff=0)
    worker = box.worker()
    old = worker.tokens()
    box.advance(5)
    assert worker.attempt_of(job) == 2
    worker.canceled()

    worker.hello(running=old)

    assert worker.canceled() == []
    worker.finish(job)
    assert box.state_of(job) == "finished"


def test_new_connection_of_a_session_takes_its_jobs_over(box: Box) -> None:
    job = box.enqueue()
    old = box.worker(session="s")

    new = box.worker(session="s", running=old.tokens())

    assert new.canceled() == []
    assert box.info(job).attempt == 1
    new.finish(job, attempt=1)
    assert box.state_of(job) == "finished"


def test_new_connection_of_a_session_still_gets_jobs(box: Box) -> None:
    box.worker(session="s")

    new = box.worker(session="s")

    job = box.enqueue()
    assert new.got() == [job]


def test_what_a_new_connection_of_a_session_does_not_claim_is_ready_at_once(box: Box) -> None:
    kept, left = box.enqueue(), box.enqueue()
    old = box.worker(session="s", credit=2)
    tokens = old.tokens()

    new = box.worker(session="s", credit=2, running=tokens[:1])

    assert new.got() == [left]
    assert new.attempt_of(left) == 2
    assert box.info(kept).attempt == 1


def test_what_a_session_leaves_uses_up_no_attempt(box: Box) -> None:
    job = box.enqueue(max_attempts=1)
    box.worker(session="s")

    new = box.worker(session="s")

    new.fail(job)
    assert box.state_of(job) == "failed"
    assert box.info(job).attempt == 2


def test_old_connection_of_a_session_is_no_worker_any_more(box: Box) -> None:
    old = box.worker(session="s")
    box.worker(session="s")

    with pytest.raises(Denied, match="unsupported"):
        old.heartbeat()


def test_session_that_changes_on_one_connection_is_not_remembered(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker(session="first")
    worker.hello(session="second")

    other = box.worker(session="first")

    assert other.got() == []
    worker.finish(job)
    assert box.state_of(job) == "finished"


def test_workers_without_a_session_do_not_replace_each_other(box: Box) -> None:
    job = box.enqueue()
    one = box.worker()
    box.worker()

    one.finish(job)

    assert box.state_of(job) == "finished"


def test_claim_of_an_attempt_that_another_worker_holds_is_lost(box: Box) -> None:
    job = box.enqueue()
    holder = box.worker()

    thief = box.worker(running=[(job, 1)])

    assert thief.canceled() == [(job, "lost")]
    holder.finish(job)
    assert box.state_of(job) == "finished"


def test_claims_that_do_not_hold_are_told_with_the_reason(box: Box) -> None:
    holder = box.worker(credit=3)
    root = box.enqueue()
    canceled, finished = box.enqueue(), box.enqueue()
    dependent = box.enqueue("other", after=[root])
    holder.fail(root, retry=False)
    box.cancel(canceled)
    holder.finish(finished)
    unknown = box.new_id()

    worker = box.worker(
        running=[(canceled, 1), (dependent, 1), (finished, 1), (root, 1), (unknown, 1)]
    )

    assert sorted(worker.canceled()) == sorted(
        [
            (canceled, "request"),
            (dependent, "dependency"),
            (finished, "lost"),
            (root, "lost"),
            (unknown, "lost"),
        ]
    )


# ---- leaving and silence -----------------------------------------------------------------------


def test_bye_hands_back_what_is_held_without_using_up_attempts(box: Box) -> None:
    jobs = [box.enqueue(max_attempts=1) for _ in range(3)]
    worker = box.worker(credit=3)

    worker.bye()

    assert box.states_of(*jobs) == ["ready"] * 3
    assert box.worker(credit=3).got() == jobs


def test_after_bye_the_connection_is_no_worker(box: Box) -> None:
    worker = box.worker()
    worker.bye()

    with pytest.raises(Denied, match="unsupported"):
        worker.heartbeat()
    with pytest.raises(Denied, match="unsupported"):
        worker.bye()


def test_silent_worker_loses_its_jobs_after_the_limit_and_not_before(box: Box) -> None:
    job = box.enqueue()
    box.worker()

    box.advance(9.99)
    assert box.state_of(job) == "running"
    box.advance(0.01)

    assert box.state_of(job) == "ready"


def test_any_message_is_a_sign_of_life(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker(credit=2)

    for _ in range(5):
        box.advance(9)
        worker.progress(job, 0.5)
        box.advance(9)
        worker.heartbeat()

    assert box.state_of(job) == "running"


def test_message_that_is_refused_is_a_sign_of_life_too(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker()

    for _ in range(5):
        box.advance(9)
        with pytest.raises(Denied, match="unsupported"):
            worker.tell(Ping())
        box.advance(9)
        box.turn(((worker.connection, b""), SignOfLife(worker.connection)))

    assert box.state_of(job) == "running"


def test_lost_worker_uses_up_an_attempt(box: Box) -> None:
    job = box.enqueue(max_attempts=2)
    box.worker(name="flaky")
    box.advance(10)
    box.worker()
    box.advance(10)

    assert box.info(job).state == "failed"
    assert box.info(job).error == "worker without a name was silent for too long"


def test_silent_worker_is_named_in_the_error(box: Box) -> None:
    job = box.enqueue(max_attempts=1)
    box.worker(name="flaky")

    box.advance(10)

    assert box.info(job).error == "worker flaky was silent for too long"


def test_lost_jobs_are_first_in_line_in_their_old_order(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(5)]
    box.worker(credit=3)
    box.advance(10)

    assert box.worker(credit=5).got() == jobs


def test_worker_that_was_lost_is_told_so_when_it_comes_back(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker()
    tokens = worker.tokens()
    box.advance(11)

    with pytest.raises(Denied, match="unsupported"):
        worker.finish(job)
    worker.held.clear()
    worker.hello(running=tokens)

    assert worker.canceled() == [(job, "lost")]
    assert worker.attempt_of(job) == 2


def test_loss_of_one_worker_leaves_the_others_their_jobs(box: Box) -> None:
    first, second = box.enqueue(), box.enqueue()
    box.worker()
    lively = box.worker()

    box.advance(6)
    lively.heartbeat()
    box.advance(6)

    assert box.states_of(first, second) == ["ready", "running"]


def test_heartbeat_is_answered_by_one(box: Box) -> None:
    worker = box.worker()

    worker.heartbeat()

    assert worker.inbox[-1] == Heartbeat()


def test_broker_that_slept_does_not_take_its_own_pause_for_silence(box: Box) -> None:
    # What came meanwhile lies in the socket: it arrives with the turn after the pause.
    job = box.enqueue()
    worker = box.worker()
    box.now += 60

    worker.heartbeat()

    assert box.state_of(job) == "running"


def test_worker_that_says_bye_or_hello_after_a_pause_of_the_broker_is_not_lost(box: Box) -> None:
    first, second = box.worker(session="a"), box.worker(session="b")
    box.now += 60

    with box.together():
        first.heartbeat()
        first.bye()
        second.heartbeat()
        second.hello(session="b")
    box.advance(9)

    assert list(box.engine.crew.workers) == [second.connection]
    assert box.engine.stats()["totals"]["workers_lost"] == 0  # type: ignore[index]


# ---- what cannot be delivered ------------------------------------------------------------------


def test_job_that_cannot_be_delivered_goes_to_another_worker(box: Box) -> None:
    gone = box.worker()
    box.cut(gone)
    other = box.worker(credit=0)

    job = box.enqueue()
    assert box.state_of(job) == "ready"
    other.heartbeat(credit=1)

    assert other.got() == [job]


def test_failed_delivery_uses_up_no_attempt(box: Box) -> None:
    gone = box.worker()
    box.cut(gone)
    job = box.enqueue(max_attempts=1)

    worker = box.worker()
    worker.fail(job)

    assert worker.got() == [job]
    assert box.info(job).attempt == 2


def test_jobs_that_cannot_be_delivered_keep_their_order(box: Box) -> None:
    gone = box.worker(credit=3)
    box.cut(gone)
    with box.together():
        jobs = [box.enqueue() for _ in range(5)]

    assert box.worker(credit=5).got() == jobs


def test_worker_that_could_not_be_reached_gets_jobs_again_once_it_is_heard(box: Box) -> None:
    worker = box.worker()
    box.cut(worker)
    job = box.enqueue()
    assert worker.got() == []

    box.mend(worker)
    worker.heartbeat()

    assert worker.got() == [job]


# ---- bounds and remains ------------------------------------------------------------------------


def test_one_worker_too_many_is_told_busy() -> None:
    box = Box(max_workers=2)
    box.worker(session="s")
    second = box.worker()

    with pytest.raises(Denied, match="busy: 2 workers are connected"):
        box.worker()

    second.hello()
    box.worker(session="s", connection=b"reconnected")
    assert len(box.engine.crew.workers) == 2


def test_nothing_is_left_when_all_workers_are_gone(box: Box) -> None:
    box.worker("a", "b", credit=3, session="one")
    box.worker("b", "c", channels=("x", "default"))
    silent = box.worker("a", "b", session="two")
    box.worker("a", "b", session="one", connection=b"again").bye()
    silent.hello("z")
    jobs = [box.enqueue("a"), box.enqueue("c", channel="x")]
    box.cancel(*jobs)

    box.advance(30)

    check_empty(box.engine)


def test_worker_ops_without_hello_are_unsupported(box: Box) -> None:
    job = box.enqueue()
    stranger = box.worker()
    stranger.bye()
    token = (job, 2)

    sayings: list[Callable[[], object]] = [
        lambda: stranger.finish(job, attempt=1),
        lambda: stranger.fail(job, attempt=1),
        lambda: stranger.progress(job, 1, attempt=1),
        lambda: stranger.claim(job),
        lambda: stranger.inputs(job, attempt=1),
        stranger.heartbeat,
        stranger.bye,
    ]
    for say in sayings:
        with pytest.raises(Denied, match=r"unsupported: .* say hello first"):
            say()
    assert box.worker().tokens() == [token]


def test_client_ops_on_a_workers_connection_are_unsupported(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker(credit=0)
    as_worker = worker.connection

    requests: list[Callable[[], object]] = [
        lambda: box.status(job),
        lambda: box.cancel(job),
        lambda: box.retry(job),
        lambda: box.delete(job),
        lambda: box.wait(job),
        box.list,
        box.enqueue,
        lambda: box.demand(Ping()),
        lambda: box.demand(Stats()),
    ]
    for request in requests:
        with pytest.raises(Denied, match=r"unsupported: .* is for clients"):
            with box.speaking_as(as_worker):
                request()
    assert box.state_of(job) == "ready"
