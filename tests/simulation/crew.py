"""All workers of a run, and what befalls them."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.ledger import Ledger
from tests.simulation.network import Network
from tests.simulation.workers import SimWorker
from tests.simulation.world import World

TYPES = ("fetch", "resize", "pack")
CHANNELS = ("default", "tenant")


class Crew:
    """Keeps so many workers at work: a new one comes for each that is gone."""

    def __init__(self, world: World, network: Network, ledger: Ledger) -> None:
        self.world = world
        self.network = network
        self.ledger = ledger
        self.workers: dict[int, SimWorker] = {}
        self._dice = world.dice("crew")
        self._lives = 0
        for place in range(world.plan.workers):
            self.hire(place)
        world.now_and_then("worker_crash", lambda: self._befall(self.crash))
        world.now_and_then("worker_leaves", lambda: self._befall(SimWorker.leave))
        longest = 3 * world.plan.heartbeat_limit
        world.now_and_then(
            "worker_pause",
            lambda: self._befall(lambda worker: worker.pause(self._dice.uniform(0, longest))),
        )

    def trade(self, place: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The types and channels of the workers at a place: the first take all."""
        dice = self.world.dice(f"trade/{place}")
        if place == 0 or dice.random() < 0.3:
            return TYPES, CHANNELS
        types = tuple(dice.sample(TYPES, dice.randint(1, len(TYPES))))
        return types, tuple(dice.sample(CHANNELS, dice.randint(1, 2)))

    def hire(self, place: int) -> None:
        """Start a worker."""
        self._lives += 1
        worker = self.workers[place] = SimWorker(self, place, self._lives)
        self.network.connect(worker)

    def crash(self, worker: SimWorker) -> None:
        """End a worker's process at once; a new one starts some time later."""
        if worker.is_gone:
            return
        self.world.tell(f"{worker} crashes")
        self.left(worker)

    def left(self, worker: SimWorker) -> None:
        """A worker is gone."""
        worker.is_gone = True
        if worker.connection is not None:
            self.network.cut(worker.connection)
        self.world.after(self._dice.uniform(0.05, 1), self.hire, worker.place)

    def claim(self, id: str) -> None:
        """Have some worker ask for one certain job."""
        self._befall(lambda worker: worker.claim(id))

    def _befall(self, do: Callable[[SimWorker], None]) -> None:
        there = [each for each in self.workers.values() if not each.is_gone]
        if there:
            do(self._dice.choice(there))

    def heal(self) -> None:
        """End what would hold for ever."""
        for worker in self.workers.values():
            if not worker.is_gone:
                worker.heal()

    @property
    def is_settled(self) -> bool:
        """Whether no worker has anything left in its hands."""
        return all(worker.is_settled for worker in self.workers.values())
