"""The order in which jobs start: higher priority first, then first ready, first out."""

import random
from collections import deque
from typing import Any

import pytest

from broker.core.job import READY, RUNNING, Job, Terms
from broker.core.lanes import Lane
from broker.core.terms import StoredTerms
from tests.core.box import Box, BoxWorker
from tests.core.invariants import check_empty
from worker_sdk.messages import Backoff

MANY = 100_000


def run_all(worker: BoxWorker) -> list[str]:
    """Finish whatever comes until nothing comes any more; give the ids in order."""
    order: list[str] = []
    while got := worker.got():
        order += got
        worker.finish(*got)
    return order


# ---- one lane ----------------------------------------------------------------------------------


def test_first_ready_is_first_out(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(5)]

    assert run_all(box.worker()) == jobs


def test_higher_priority_goes_first(box: Box) -> None:
    low = box.enqueue(priority=-1)
    normal = box.enqueue()
    high = box.enqueue(priority=2**31 - 1)
    low_too = box.enqueue(priority=-1)

    assert run_all(box.worker()) == [high, normal, low, low_too]


def test_order_is_that_of_becoming_ready_not_of_enqueue(box: Box) -> None:
    first = box.enqueue("first")
    freed = box.enqueue(after=[first])
    plain = box.enqueue()
    box.worker("first").finish(first)

    assert run_all(box.worker()) == [plain, freed]


def test_job_that_is_handed_back_is_first_of_its_priority(box: Box) -> None:
    one, two = box.enqueue(), box.enqueue()
    urgent = box.enqueue(priority=1)
    worker = box.worker(credit=3)
    worker.got()

    worker.release(one, two, urgent, credit=0)
    three = box.enqueue()
    worker.heartbeat(credit=1)

    assert run_all(worker) == [urgent, one, two, three]


def test_job_that_is_retried_stands_at_the_end_again(box: Box) -> None:
    one = box.enqueue(backoff=1)
    two, three = box.enqueue(), box.enqueue()
    worker = box.worker()
    worker.got()
    worker.fail(one, credit=0)
    box.advance(2)

    worker.heartbeat(credit=1)

    assert run_all(worker) == [two, three, one]


def test_job_that_was_claimed_and_retried_starts_once(box: Box) -> None:
    jobs = [box.enqueue(backoff=0) for _ in range(3)]
    worker = box.worker(credit=0)
    for _ in range(3):
        worker.claim(jobs[1])
        worker.release(jobs[1])
    worker.got()

    worker.heartbeat(credit=1)

    assert run_all(worker) == [jobs[1], jobs[0], jobs[2]]


def test_canceled_jobs_are_skipped(box: Box) -> None:
    jobs = [box.enqueue(priority=number % 3) for number in range(12)]
    for number in (2, 5, 8, 11, 1, 3):
        box.cancel(jobs[number])

    assert run_all(box.worker()) == [jobs[n] for n in (4, 7, 10, 0, 6, 9)]


def test_urgent_job_behind_a_canceled_more_urgent_one_is_seen(box: Box) -> None:
    worker = box.worker(credit=0)
    most = box.enqueue(priority=9)
    plain = box.enqueue()
    box.cancel(most)
    urgent = box.enqueue(priority=5)

    worker.heartbeat(credit=1)

    assert run_all(worker) == [urgent, plain]


def test_places_of_canceled_jobs_are_swept_out(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(300)]
    for id in jobs[:-1]:
        box.cancel(id)

    (lane,) = box.engine.life.lanes

    assert lane.ready == 1
    assert lane._places < 100


def test_each_of_many_priorities_is_served_in_turn(box: Box) -> None:
    priorities = list(range(-50, 50))
    random.Random(3).shuffle(priorities)
    jobs = {priority: box.enqueue(priority=priority) for priority in priorities}

    assert run_all(box.worker()) == [jobs[priority] for priority in range(49, -51, -1)]


@pytest.mark.timeout(15)
def test_no_number_of_priorities_makes_a_queue_slow() -> None:
    # In a list kept in order, each of these would move all that are there.
    lane = Lane("default", "work")
    jobs = []
    for number in range(MANY):
        terms = Terms(lane, b"", -number, 0.0, None, None, 1, Backoff(), True)
        jobs.append(Job(str(number), number, terms, b"", (), 0.0, READY))

    for job in jobs:
        lane.push(job)

    for job in jobs:
        assert lane.take(1) == [job]
        job.state = RUNNING


class Watched(deque[Job]):
    """A queue that counts how many of its places are looked at, and in which none is closed."""

    looked = 0

    def __getitem__(self, index: Any) -> Any:
        self.looked += 1
        return super().__getitem__(index)

    def remove(self, value: Job) -> None:
        raise AssertionError("that moves all that are behind it")


def test_job_is_taken_from_the_middle_of_a_queue_at_few_looks() -> None:
    lane = Lane("default", "work")
    terms = Terms(lane, b"", 0, 0.0, None, None, 1, Backoff(), True)
    jobs = [Job(str(n), n, terms, b"", (), 0.0, READY, order=n) for n in range(10_000)]
    for job in jobs:
        lane.push(job)
    queue = lane._queues[0] = Watched(lane._queues[0])

    for job in jobs[5000:5100]:
        lane.remove(job)

    assert queue.looked <= 100 * 20
    assert lane.ready == 9_900
    assert lane.take(20_000) == jobs[:5000] + jobs[5100:]


def test_claimed_job_that_comes_back_is_first_and_has_one_place(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(5)]
    worker = box.worker(credit=0)
    for job in (jobs[3], jobs[1], jobs[3]):
        assert worker.claim(job) is not None
        worker.release(job)

    assert run_all(box.worker()) == [jobs[3], jobs[1], jobs[0], jobs[2], jobs[4]]


# ---- several lanes -----------------------------------------------------------------------------


def test_worker_with_several_types_gets_the_best_head_among_them(box: Box) -> None:
    a1, b1 = box.enqueue("a"), box.enqueue("b")
    b2, a2 = box.enqueue("b", priority=1), box.enqueue("a", priority=1)
    c1 = box.enqueue("c", priority=5)

    assert run_all(box.worker("a", "b", "c")) == [c1, b2, a2, a1, b1]


def test_order_holds_over_channels(box: Box) -> None:
    one = box.enqueue(channel="x")
    two = box.enqueue(channel="y")
    three = box.enqueue(channel="x")

    assert run_all(box.worker(channels=("y", "x"))) == [one, two, three]


def test_lane_shared_by_workers_of_several_kinds_loses_nothing(box: Box) -> None:
    wide, narrow = box.worker("a", "b", credit=1), box.worker("a", credit=1)
    other = box.worker("b", "c", credit=1)
    jobs = [box.enqueue(type, priority=priority) for priority in (0, 2, 1) for type in "abcab"]

    done: set[str] = set()
    for _ in range(20):
        for worker in (wide, narrow, other):
            for id in worker.got():
                worker.finish(id)
                done.add(id)

    assert done == set(jobs)


def test_jobs_handed_back_by_types_do_not_collide(box: Box) -> None:
    worker = box.worker("a", "b", "c", credit=6)
    jobs = [box.enqueue(type) for type in "abcabc"]

    worker.bye()

    assert sorted(run_all(box.worker("a", "b", "c"))) == sorted(jobs)


@pytest.mark.parametrize("seed", range(5))
def test_order_is_right_whatever_comes_between(seed: int) -> None:
    # Against a list that is sorted anew for each start.
    dice = random.Random(seed)
    box = Box()
    worker = box.worker("a", "b", "c", credit=0)
    waiting: dict[str, tuple[int, int]] = {}
    for step in range(300):
        what = dice.random()
        if what < 0.55:
            priority = dice.choice((0, 0, 0, 1, 5, -3))
            id = box.enqueue(dice.choice("abc"), priority=priority)
            waiting[id] = (-priority, step)
        elif what < 0.7 and waiting:
            id = dice.choice(list(waiting))
            del waiting[id]
            box.cancel(id)
        elif waiting:
            best = min(waiting, key=waiting.__getitem__)
            worker.heartbeat(credit=1)
            assert worker.got() == [best]
            del waiting[best]
            worker.finish(best, credit=0)
    box.cancel(*waiting)
    worker.bye()
    check_empty(box.engine)


# ---- lanes come and go -------------------------------------------------------------------------


def test_lane_goes_with_its_last_job_and_worker(box: Box) -> None:
    job = box.enqueue("rare", channel="remote")
    worker = box.worker("rare", channels=("remote",))
    worker.finish(job)
    assert len(box.engine.life.lanes) == 1

    worker.bye()

    check_empty(box.engine)


def test_lane_that_came_back_serves_its_worker(box: Box) -> None:
    worker = box.worker("rare")
    box.cancel(box.enqueue("rare"))
    worker.bye()
    box.cancel(box.enqueue("rare"))

    worker.got()
    worker.hello("rare")
    job = box.enqueue("rare")

    assert worker.got() == [job]


def test_equal_terms_are_kept_once(box: Box) -> None:
    one, two, other = (box.enqueue(priority=priority) for priority in (1, 1, 2))
    jobs = box.engine.life.jobs

    assert jobs[one].terms is jobs[two].terms
    assert jobs[one].terms is not jobs[other].terms


def test_terms_that_are_never_the_same_do_not_pile_up() -> None:
    lane = Lane("default", "work")

    for number in range(5000):
        lane.terms(StoredTerms(priority=number))

    assert len(lane._terms) <= 1000
