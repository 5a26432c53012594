"""What operations cost: counted in lines carried out, not in time, so that all machines agree."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from broker.core.records import Record
from tests.core.box import Box
from worker_sdk.messages import Dependency, NewJob

SMALL, LARGE = 400, 2000


def steps_of(action: Callable[[], object]) -> int:
    """Count the lines of Python that `action` carries out."""
    count = 0

    def tracer(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def box_with(jobs: int, **terms: Any) -> tuple[Box, list[str]]:
    box = Box(checked=False)
    specs = [box.spec(**terms) for _ in range(jobs)]
    box.enqueue_all(*specs)
    return box, [spec.id for spec in specs]


# ---- one operation among many jobs ---------------------------------------------------------------


def enqueue(box: Box, ids: list[str]) -> None:
    box.enqueue()


def enqueue_dependent(box: Box, ids: list[str]) -> None:
    box.enqueue(after=[ids[5]])


def cancel(box: Box, ids: list[str]) -> None:
    box.cancel(ids[len(ids) // 2])


def status(box: Box, ids: list[str]) -> None:
    box.status(ids[len(ids) // 2])


def worker_comes_and_goes(box: Box, ids: list[str]) -> None:
    box.worker("work", "other", credit=2).bye()


def run_one(box: Box, ids: list[str]) -> None:
    worker = box.worker(credit=1)
    worker.finish(worker.got()[0], credit=0)
    worker.bye()


def claim_one(box: Box, ids: list[str]) -> None:
    worker = box.worker(credit=0)
    worker.claim(ids[-1])
    worker.fail(ids[-1])


def one_second(box: Box, ids: list[str]) -> None:
    box.advance(1)


def stats(box: Box, ids: list[str]) -> None:
    box.engine.stats()


def wait(box: Box, ids: list[str]) -> None:
    box.wait(ids[3], timeout=5)


def first_page(box: Box, ids: list[str]) -> None:
    box.list(limit=10)


@pytest.mark.parametrize(
    "operation",
    [
        enqueue,
        enqueue_dependent,
        cancel,
        status,
        worker_comes_and_goes,
        run_one,
        claim_one,
        one_second,
        stats,
        wait,
        first_page,
    ],
)
@pytest.mark.parametrize("terms", [{}, {"expires": 1e6}, {"delay": 1e6}], ids=str)
def test_operation_costs_the_same_among_many_jobs(
    operation: Callable[[Box, list[str]], None], terms: dict[str, Any]
) -> None:
    if "delay" in terms and operation in (run_one, claim_one):
        terms = {"delay": 0.0}  # else nothing is ready
    few, many = box_with(SMALL, **terms), box_with(LARGE, **terms)

    cost_among_few = steps_of(lambda: operation(*few))
    cost_among_many = steps_of(lambda: operation(*many))

    assert cost_among_many < cost_among_few * 1.3 + 50


# ---- many operations -----------------------------------------------------------------------------


def chain(box: Box, length: int) -> list[NewJob]:
    specs = [box.spec()]
    for _ in range(length - 1):
        specs.append(box.spec(after=[specs[-1].id]))
    return specs


def canceled_chain(length: int) -> Callable[[], object]:
    box = Box(checked=False)
    specs = chain(box, length)
    box.enqueue_all(*specs)
    return lambda: box.cancel(specs[0].id)


def retried_chain(length: int) -> Callable[[], object]:
    box = Box(checked=False)
    specs = chain(box, length)
    box.enqueue_all(*specs)
    box.cancel(specs[0].id)
    return lambda: box.retry(specs[0].id)


def run_chain(length: int) -> Callable[[], object]:
    box = Box(checked=False)
    specs = chain(box, length)
    box.enqueue_all(*specs)
    worker = box.worker()

    def run() -> None:
        for spec in specs:
            worker.finish(spec.id)

    return run


def enqueued_fan(width: int) -> Callable[[], object]:
    box = Box(checked=False)
    root = box.spec()
    leaves = [box.spec(after=[root.id]) for _ in range(width)]
    sink = box.spec(after=[Dependency(leaf.id, "ended") for leaf in leaves])
    return lambda: box.enqueue_all(root, *leaves, sink)


def canceled_leaves(width: int) -> Callable[[], object]:
    box = Box(checked=False)
    root = box.spec()
    leaves = [box.spec(after=[root.id]) for _ in range(width)]
    box.enqueue_all(root, *leaves)
    return lambda: [box.cancel(leaf.id) for leaf in leaves]


def run_fan(width: int) -> Callable[[], object]:
    box = Box(checked=False)
    root = box.spec()
    leaves = [box.spec(after=[root.id]) for _ in range(width)]
    box.enqueue_all(root, *leaves, box.spec(after=[leaf.id for leaf in leaves]))
    worker = box.worker(credit=100)

    def run() -> None:
        while worker.held:
            worker.finish(*worker.held)

    return run


def canceled_queue(length: int) -> Callable[[], object]:
    box, ids = box_with(length)
    return lambda: [box.cancel(id) for id in reversed(ids)]


def canceled_timers(length: int) -> Callable[[], object]:
    box, ids = box_with(length, expires=1e6)
    return lambda: [box.cancel(id) for id in ids]


def priorities(count: int) -> Callable[[], object]:
    box = Box(checked=False)
    specs = [box.spec(priority=(n * 7919) % count) for n in range(count)]
    worker = box.worker(credit=0)

    def run() -> None:
        box.enqueue_all(*specs)
        worker.heartbeat(credit=count)
        worker.finish(*worker.got())

    return run


def lost_worker(jobs: int) -> Callable[[], object]:
    box, _ = box_with(jobs)
    box.worker(credit=jobs)
    return lambda: box.jump(60)


def two_workers_take_turns(jobs: int) -> Callable[[], object]:
    box, _ = box_with(jobs)
    workers = [box.worker(credit=3), box.worker(credit=5)]

    def run() -> None:
        while any(worker.held for worker in workers):
            for worker in workers:
                worker.finish(*worker.held)

    return run


def light_worker_beside_one_that_is_heavily_loaded(load: int) -> Callable[[], object]:
    box, _ = box_with(load)
    box.worker(credit=2 * load)
    light = box.worker(credit=1)

    def run() -> None:
        for _ in range(load):
            id = box.enqueue()
            if id in light.held:
                light.finish(id)

    return run


def pruned(jobs: int) -> Callable[[], object]:
    box, ids = box_with(jobs)
    box.cancel(*ids)
    box.limits = box.engine.limits = replace(box.limits, retention=0.0)
    return lambda: box.advance(2)


def false_claims(count: int) -> Callable[[], object]:
    box, ids = box_with(count)
    box.cancel(*ids)
    counted = CountedFinds(box)

    def come() -> None:
        box.worker(running=[(id, 1) for id in ids])
        assert counted.finds <= 2

    return come


class CountedFinds:
    """How often the store was asked for ended jobs since this was made."""

    def __init__(self, box: Box) -> None:
        self.finds = 0
        read = box.store.read

        def counted(ids: Sequence[str]) -> Iterator[Record]:
            self.finds += 1
            return read(ids)

        box.store.read = counted  # type: ignore[method-assign]


def waits_given_up(count: int) -> Callable[[], object]:
    box, ids = box_with(3)
    for _ in range(count):
        box.wait(*ids, timeout=5)
    return lambda: box.jump(5)


@pytest.mark.parametrize(
    "prepare",
    [
        canceled_chain,
        retried_chain,
        run_chain,
        enqueued_fan,
        run_fan,
        canceled_leaves,
        canceled_queue,
        canceled_timers,
        priorities,
        lost_worker,
        two_workers_take_turns,
        light_worker_beside_one_that_is_heavily_loaded,
        pruned,
        waits_given_up,
        false_claims,
    ],
)
def test_cost_grows_with_the_number_of_jobs_and_not_with_its_square(
    prepare: Callable[[int], Callable[[], object]],
) -> None:
    small = steps_of(prepare(SMALL))
    large = steps_of(prepare(LARGE))

    assert large < small * (LARGE / SMALL) * 1.6
