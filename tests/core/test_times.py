"""What waits for a time: delays and expiry."""

import random

import pytest

from broker.core.timers import Timers
from tests.core.box import START_WALL, Box
from tests.core.invariants import check_empty

# ---- delay -------------------------------------------------------------------------------------


def test_delayed_job_is_scheduled_until_its_time(box: Box) -> None:
    job = box.enqueue(delay=5)
    worker = box.worker()

    info = box.info(job)
    assert (info.state, info.due) == ("scheduled", START_WALL + 5)
    box.advance(4.99)
    assert worker.got() == []
    box.advance(0.01)

    assert worker.got() == [job]


def test_delay_counts_from_enqueue_while_dependencies_run(box: Box) -> None:
    first = box.enqueue()
    early, late = box.enqueue("x", after=[first], delay=3), box.enqueue("x", after=[first], delay=8)
    worker = box.worker()

    box.advance(5)
    assert box.states_of(early, late) == ["blocked", "blocked"]
    worker.finish(first)
    assert box.states_of(early, late) == ["ready", "scheduled"]
    box.advance(3)

    assert box.states_of(early, late) == ["ready", "ready"]


def test_jobs_become_ready_in_the_order_of_their_times(box: Box) -> None:
    late, early, same = box.enqueue(delay=5), box.enqueue(delay=3), box.enqueue(delay=3)

    box.jump(60)

    assert box.worker(credit=5).got() == [early, same, late]


def test_scheduled_job_can_be_canceled(box: Box) -> None:
    job = box.enqueue(delay=5)

    box.cancel(job)
    box.advance(6)

    assert box.state_of(job) == "canceled"
    check_empty(box.engine)


def test_clock_that_is_set_back_does_not_hold_up_a_delayed_job(box: Box) -> None:
    # Deadlines go by the monotonic clock once they are set.
    job = box.enqueue(delay=5)

    box.engine.apply((), 5.0, START_WALL - 1000)

    assert box.state_of(job) == "ready"


# ---- expiry ------------------------------------------------------------------------------------


def test_job_that_has_not_started_in_time_is_canceled(box: Box) -> None:
    job = box.enqueue(expires=5)

    box.advance(4.99)
    assert box.state_of(job) == "ready"
    box.advance(0.02)

    info = box.info(job)
    assert (info.state, info.reason, info.culprit) == ("canceled", "expired", None)


def test_job_that_started_in_time_does_not_expire(box: Box) -> None:
    job = box.enqueue(expires=5, backoff=0)
    worker = box.worker()

    box.advance(6)
    worker.fail(job, credit=0)
    box.advance(6)

    assert box.state_of(job) == "ready"


def test_job_that_was_handed_back_does_not_expire(box: Box) -> None:
    job = box.enqueue(expires=5)
    box.worker().bye()

    box.advance(10)

    assert box.state_of(job) == "ready"


def test_blocked_job_expires_and_takes_its_dependents_along(box: Box) -> None:
    first = box.enqueue()
    second = box.enqueue(after=[first], expires=5)
    third = box.enqueue(after=[second])

    box.advance(5.01)

    assert box.states_of(first, second, third) == ["ready", "canceled", "canceled"]
    assert box.info(third).culprit == second


def test_job_that_becomes_ready_keeps_its_expiry(box: Box) -> None:
    first = box.enqueue("first")
    second = box.enqueue(after=[first], expires=5)
    box.advance(3)
    box.worker("first").finish(first)
    assert box.state_of(second) == "ready"

    box.advance(2.01)

    assert box.state_of(second) == "canceled"


@pytest.mark.parametrize(
    ("delay", "expires", "at_4", "at_7"),
    [
        (3, 5, "ready", "canceled"),
        (5, 3, "canceled", "canceled"),
        (6, 100, "scheduled", "ready"),
        (100, 6, "scheduled", "canceled"),
    ],
)
def test_delay_and_expiry_together(
    box: Box, delay: float, expires: float, at_4: str, at_7: str
) -> None:
    job = box.enqueue(delay=delay, expires=expires)

    box.advance(4)
    assert box.state_of(job) == at_4
    box.advance(3)

    assert box.state_of(job) == at_7


def test_expiry_is_over_once_the_job_waits_for_a_retry(box: Box) -> None:
    job = box.enqueue(expires=5, backoff=30)
    worker = box.worker()
    worker.fail(job)

    box.advance(9)

    assert box.state_of(job) == "scheduled"


def test_all_that_is_due_happens_after_a_long_pause(box: Box) -> None:
    delayed, expired = box.enqueue(delay=5), box.enqueue(expires=6)
    delayed_and_expired = box.enqueue(delay=5, expires=10)

    box.jump(1000)

    states = box.states_of(delayed, expired, delayed_and_expired)
    assert states == ["ready", "canceled", "canceled"]


# ---- the heap ----------------------------------------------------------------------------------


def fire(timers: Timers, now: float) -> None:
    for call in timers.due(now):
        call()


def test_timers_fire_in_the_order_of_time_then_of_setting() -> None:
    timers, fired = Timers(), list[str]()
    for at, name in ((2, "c"), (1, "a"), (2, "d"), (1, "b"), (3, "e")):
        timers.set(at, lambda name=name: fired.append(name))  # type: ignore[misc]

    fire(timers, 2)

    assert fired == ["a", "b", "c", "d"]
    assert timers.next_at() == 3


def test_canceled_timer_does_not_fire() -> None:
    timers, fired = Timers(), list[int]()
    first = timers.set(1, lambda: fired.append(1))
    timers.set(2, lambda: fired.append(2))

    timers.cancel(first)
    timers.cancel(first)
    assert len(timers) == 1
    fire(timers, 5)

    assert fired == [2]
    assert (len(timers), timers.next_at()) == (0, None)


def test_timer_may_set_and_cancel_others_when_it_fires() -> None:
    timers, fired = Timers(), list[str]()
    victim = timers.set(2, lambda: fired.append("victim"))

    def first() -> None:
        timers.cancel(victim)
        timers.set(1, lambda: fired.append("at once"))
        timers.set(9, lambda: fired.append("later"))

    timers.set(1, first)
    fire(timers, 5)

    assert fired == ["at once"]


def test_cancel_of_a_timer_that_fired_does_nothing() -> None:
    timers = Timers()
    timer = timers.set(1, lambda: None)
    other = timers.set(2, lambda: None)
    fire(timers, 1)

    timers.cancel(timer)

    assert len(timers) == 1
    timers.cancel(other)
    assert len(timers) == 0


def test_canceled_timers_are_swept_out() -> None:
    timers = Timers()
    keep = [timers.set(at, lambda: None) for at in range(10)]
    for _ in range(10_000):
        timers.cancel(timers.set(100, lambda: None))

    assert len(timers) == len(keep)
    assert len(timers._heap) < 200


def test_timers_fire_in_order_after_a_sweep() -> None:
    timers, fired = Timers(), list[int]()
    dice = random.Random(1)
    times = list(range(300))
    dice.shuffle(times)
    set_ones = {at: timers.set(at, lambda at=at: fired.append(at)) for at in times}  # type: ignore[misc]
    for at in times[:200]:
        timers.cancel(set_ones[at])

    fire(timers, 300)

    assert fired == sorted(times[200:])
