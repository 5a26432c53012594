"""Workers that ask for many jobs ahead of time get them in runs: few and large messages."""

import random

import pytest

from tests.core.box import Box, BoxWorker
from tests.core.invariants import check_empty
from worker_sdk.messages import Jobs

AHEAD = 104
"""A credit for which a run is 10 jobs."""


def enqueue_together(box: Box, count: int, *types: str) -> list[str]:
    specs = [box.spec(types[n % len(types)] if types else "work") for n in range(count)]
    box.enqueue_all(*specs)
    return [spec.id for spec in specs]


def loads(*workers: BoxWorker) -> list[int]:
    return [len(worker.held) for worker in workers]


# ---- how many ----------------------------------------------------------------------------------


def test_jobs_go_in_runs_to_workers_that_ask_for_many(box: Box) -> None:
    workers = [box.worker(credit=AHEAD) for _ in range(3)]

    jobs = enqueue_together(box, 25)

    assert [worker.got() for worker in workers] == [jobs[:10], jobs[10:20], jobs[20:]]


@pytest.mark.parametrize("credit", [2, 16, 64, 71])
def test_jobs_go_one_by_one_to_workers_that_ask_for_fewer(box: Box, credit: int) -> None:
    workers = [box.worker(credit=credit) for _ in range(3)]

    enqueue_together(box, 6)

    assert loads(*workers) == [2, 2, 2]


def test_single_job_goes_to_the_least_loaded_worker_whatever_its_credit(box: Box) -> None:
    workers = [box.worker(credit=AHEAD) for _ in range(3)]

    for _ in range(6):
        box.enqueue()

    assert loads(*workers) == [2, 2, 2]


def test_loads_differ_by_no_more_than_a_run(box: Box) -> None:
    workers = [box.worker(credit=AHEAD) for _ in range(4)]

    for count in (7, 31, 12, 50):
        enqueue_together(box, count)

        assert max(loads(*workers)) - min(loads(*workers)) <= 10


def test_run_ends_where_the_credit_ends(box: Box) -> None:
    first, second = box.worker(credit=AHEAD), box.worker(credit=0)
    enqueue_together(box, AHEAD - 3)
    assert loads(first) == [AHEAD - 3]

    second.heartbeat(credit=1)
    enqueue_together(box, 6)

    assert loads(first, second) == [AHEAD, 1]


def test_crowd_gets_few_messages(box: Box) -> None:
    crowd = [box.worker(f"type-{n % 5}", credit=512) for n in range(100)]

    enqueue_together(box, 200, *(f"type-{n}" for n in range(5)))

    messages = [one for worker in crowd for one in worker.inbox if isinstance(one, Jobs)]
    assert sum(len(message.jobs) for message in messages) == 200
    assert len(messages) == 5


def test_backlog_fills_all_credit(box: Box) -> None:
    jobs = enqueue_together(box, 3 * AHEAD)

    workers = [box.worker(credit=AHEAD) for _ in range(2)]

    assert loads(*workers) == [AHEAD, AHEAD]
    workers[0].finish(*jobs[:100])
    assert loads(*workers) == [AHEAD, AHEAD]


# ---- which -------------------------------------------------------------------------------------


def test_run_goes_on_over_the_types_of_its_workers_in_order(box: Box) -> None:
    first, second = (box.worker("a", "b", "c", credit=AHEAD) for _ in range(2))

    jobs = enqueue_together(box, 14, "a", "b", "c", "b")

    assert first.got() == jobs[:10]
    assert second.got() == jobs[10:]


def test_most_urgent_jobs_go_first_in_a_run(box: Box) -> None:
    worker, other = box.worker("a", "b", credit=AHEAD), box.worker("a", "b", credit=AHEAD)
    specs = [box.spec("ab"[n % 2], priority=n) for n in range(12)]

    box.enqueue_all(*specs)

    by_urgency = [spec.id for spec in reversed(specs)]
    assert worker.got() == by_urgency[:10]
    assert other.got() == by_urgency[10:]


def test_run_ends_before_a_job_that_others_take_too(box: Box) -> None:
    wide, narrow = box.worker("a", "b", credit=AHEAD), box.worker("b", credit=AHEAD)

    a1, a2, b1, b2 = (box.spec(type) for type in "aabb")
    box.enqueue_all(a1, a2, b1, b2)

    assert wide.got() == [a1.id, a2.id]
    assert narrow.got() == [b1.id, b2.id]


@pytest.mark.parametrize("seed", range(10))
def test_nobody_is_overloaded_and_nothing_waits_in_vain(seed: int) -> None:
    dice = random.Random(seed)
    box = Box()
    kinds = (("a",), ("b",), ("a", "b"), ("a", "b", "c"))
    crowd = [
        (box.worker(*kind, credit=credit), kind, credit)
        for kind in kinds
        for credit in (dice.choice((1, 3, 64, 100, 144, 512)) for _ in range(4))
    ]
    for _ in range(60):
        with box.together():
            for _ in range(dice.randrange(4)):
                enqueue_together(box, dice.choice((1, 3, 30, 150)), *dice.choice(kinds))
            for worker, _, _ in dice.sample(crowd, 6):
                held = list(worker.held)
                if held:
                    worker.finish(*held[: dice.randint(1, len(held))])
        for worker, kind, credit in crowd:
            assert len(worker.held) <= credit
            if len(worker.held) < credit:
                assert not any(lane.ready for lane in box.engine.life.lanes if lane.type in kind)
    while any(worker.held for worker, _, _ in crowd):
        for worker, _, _ in crowd:
            worker.finish(*worker.held)
    for worker, _, _ in crowd:
        worker.bye()
    check_empty(box.engine)
