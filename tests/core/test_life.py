"""Whatever happens, in whatever order: the core's state stays whole, and nothing is left behind."""

import random
from contextlib import suppress

import pytest

from tests.core.box import Box, BoxWorker, Denied
from tests.core.invariants import check_empty
from worker_sdk.messages import Backoff, Dependency, NewJob

TYPES = ("a", "b", "c")


class Walk:
    """Does things at random, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.box = Box(seed=seed, retention=60, max_ended=200)
        self.ids: list[str] = []
        self.workers: list[BoxWorker] = []
        self.sessions = 0

    def step(self) -> None:
        if self.dice.random() < 0.3:
            with self.box.together():
                for _ in range(self.dice.randint(2, 5)):
                    self.do_something()
        else:
            self.do_something()

    def do_something(self) -> None:
        what = self.dice.choices(
            (self.enqueue, self.work, self.cancel, self.come_and_go, self.retry, self.delete,
             self.wait, self.pause, self.claim, self.cut),
            (30, 40, 6, 6, 5, 3, 3, 6, 3, 1),
        )[0]  # fmt: skip
        # Most of what is done at random is refused with good reason.
        with suppress(Denied):
            what()

    def enqueue(self) -> None:
        dice = self.dice
        specs: list[NewJob] = []
        for _ in range(dice.choice((1, 1, 1, 4))):
            known = [*self.ids[-40:], *[spec.id for spec in specs]]
            after: list[str | Dependency] = []
            for id in dice.sample(known, min(len(known), dice.choice((0, 0, 1, 2, 3)))):
                after.append(id if dice.random() < 0.7 else Dependency(id, "ended"))
            specs.append(
                self.box.spec(
                    dice.choice(TYPES),
                    dice.randint(0, 9),
                    after,
                    channel=dice.choice(("default", "default", "other")),
                    priority=dice.choice((0, 0, 0, 1, 5, -3)),
                    delay=dice.choice((0.0, 0.0, 0.0, 2.0)),
                    timeout=dice.choice((None, None, 3.0)),
                    expires=dice.choice((None, None, None, 6.0)),
                    max_attempts=dice.choice((1, 2, 3)),
                    backoff=dice.choice((None, Backoff(first=0.0), Backoff(first=1.0))),
                )
            )
        self.ids += [spec.id for spec in specs]
        self.box.enqueue_all(*specs)
        if dice.random() < 0.1:
            self.box.enqueue_all(*specs)

    def work(self) -> None:
        busy = [worker for worker in self.workers if worker.held]
        if not busy:
            return
        worker = self.dice.choice(busy)
        id = self.dice.choice(list(worker.held))
        credit = self.dice.choice((None, None, None, 0, 1, 4))
        what = self.dice.random()
        if what < 0.6:
            worker.finish(id, result=1, credit=credit)
        elif what < 0.8:
            worker.fail(id, retry=self.dice.random() < 0.8, credit=credit)
        elif what < 0.9:
            worker.release(id, credit=credit)
        else:
            worker.progress(id, 0.5)

    def some_ids(self) -> list[str]:
        if not self.ids:
            return []
        return [self.dice.choice(self.ids[-60:]) for _ in range(self.dice.randint(1, 3))]

    def cancel(self) -> None:
        self.box.cancel(*self.some_ids())

    def retry(self) -> None:
        self.box.retry(*self.some_ids())

    def delete(self) -> None:
        self.box.delete(*self.some_ids()[:1])

    def wait(self) -> None:
        self.box.wait(*self.some_ids(), timeout=self.dice.choice((0, 3, None)))

    def pause(self) -> None:
        if self.box._together is None:
            self.box.advance(self.dice.choice((0.1, 1, 1, 4)))
            for worker in self.workers:
                if self.dice.random() < 0.9:
                    worker.heartbeat(credit=self.dice.choice((None, None, 2)))

    def claim(self) -> None:
        if self.workers and self.ids:
            self.dice.choice(self.workers).claim(self.dice.choice(self.ids[-20:]))

    def cut(self) -> None:
        if self.workers:
            worker = self.dice.choice(self.workers)
            (self.box.cut if self.dice.random() < 0.5 else self.box.mend)(worker)

    def come_and_go(self) -> None:
        dice, what = self.dice, self.dice.random()
        types = dice.sample(TYPES, dice.randint(1, 3))
        channels = dice.choice((("default",), ("default", "other")))
        if what < 0.4 or not self.workers:
            self.sessions += 1
            session = dice.choice(("", f"s{self.sessions}", "shared"))
            worker = self.box.worker(
                *types, channels=channels, credit=dice.randint(0, 4), session=session
            )
            self.workers.append(worker)
        elif what < 0.7:
            worker = dice.choice(self.workers)
            worker.hello(*types, channels=channels, credit=2, running=worker.tokens())
        elif self.box._together is None:
            worker = self.workers.pop(dice.randrange(len(self.workers)))
            if what < 0.85:
                worker.bye()


@pytest.mark.parametrize("seed", range(12))
def test_state_is_whole_after_each_of_many_random_steps(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(250):
        walk.step()

    box = walk.box
    while len(box.engine.life.jobs):
        box.cancel(*box.engine.life.jobs)
    box.advance(90)

    check_empty(box.engine)
    assert box.store.ended_count == 0


def test_everything_ends_well_if_workers_go_on() -> None:
    walk = Walk(99)
    for _ in range(150):
        walk.step()
    box = walk.box
    worker = box.worker(*TYPES, channels=("default", "other"), credit=50)

    for _ in range(200):
        for id in list(worker.held):
            worker.finish(id)
        box.advance(2)
        worker.heartbeat()

    assert not box.engine.life.jobs


def test_totals_count_what_happened(box: Box) -> None:
    first = box.enqueue(backoff=0)
    box.enqueue(after=[first])
    third = box.enqueue()
    worker = box.worker()
    worker.fail(first)
    worker.fail(first, retry=False)
    worker.finish(third)

    stats = box.engine.stats()

    assert stats["totals"] == {
        "enqueued": 3,
        "dispatched": 3,
        "finished": 1,
        "failed": 1,
        "canceled": 1,
        "retried": 1,
        "workers_lost": 0,
    }
