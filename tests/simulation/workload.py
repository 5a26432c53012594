"""What clients ask for: graphs of all shapes, and everything that can be asked about them."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any
from uuid import UUID

from tests.simulation.clients import Done, SimClient
from tests.simulation.crew import CHANNELS, TYPES, Crew
from tests.simulation.ledger import Ledger
from tests.simulation.network import Network
from tests.simulation.world import World
from worker_sdk import requests
from worker_sdk.errors import JobNotExist, PointsmanError
from worker_sdk.graph import Dependency, JobSpec
from worker_sdk.limit import MessageLimit
from worker_sdk.messages import Backoff, Enqueue, NewJob, Ok
from worker_sdk.status import JobStatus


class Workload:
    """All requests of a run, spread over its clients and its length."""

    def __init__(self, world: World, network: Network, crew: Crew, ledger: Ledger) -> None:
        self.world = world
        self.network = network
        self.crew = crew
        self.ledger = ledger
        plan = world.plan
        self._dice = world.dice("workload")
        self._versions = 7 if self._dice.random() < 0.7 else 4
        self._made = 0
        self._limit = MessageLimit(plan.max_message)
        # Every id that was ever used, and whole graphs, to be sent again.
        self.ids: list[UUID] = []
        self._graphs: list[list[JobSpec]] = []
        self._crashes = 0
        self.clients = [SimClient(world, network, f"c{n}") for n in range(plan.clients)]
        for number in range(1, plan.ops + 1):
            at = self._dice.uniform(0, plan.length)
            seed = self._dice.random()
            if number not in plan.skip_ops and at <= plan.until:
                world.at(at, self._op, number, seed)
        world.now_and_then("client_crash", self._crash_client)

    def _op(self, number: int, seed: float) -> None:
        dice = random.Random(seed)
        client = self.clients[dice.randrange(len(self.clients))]
        [kind] = dice.choices(list(_OPS), list(_OPS.values()))
        self.world.tell(f"request {number} of {client}: {kind.__name__.strip('_')}")
        kind(self, client, dice)

    def _crash_client(self) -> None:
        at = self._dice.randrange(len(self.clients))
        self.clients[at].crash()
        self._crashes += 1
        self.clients[at] = SimClient(self.world, self.network, f"c{at}.{self._crashes}")

    @property
    def is_settled(self) -> bool:
        """Whether every question has been answered."""
        return not any(client.open for client in self.clients)

    # ---- making jobs -------------------------------------------------------------------------

    def _new_id(self, dice: random.Random) -> UUID:
        if self._versions == 4:
            return UUID(int=dice.getrandbits(128), version=4)
        self._made += 1
        ms = int(1000 * self.world.now) + 1_700_000_000_000
        high = ms << 80 | 7 << 76 | (self._made & 0xFFF) << 64
        return UUID(int=high | 0b10 << 62 | dice.getrandbits(62))

    def _spec(self, dice: random.Random, dependencies: list[Any]) -> JobSpec:
        does = dice.choices(
            ("ok", "flaky", "fail", "final", "poison", "progress"), (60, 8, 5, 4, 2, 8)
        )[0]
        args: dict[str, Any] = {
            "does": does,
            "takes": round(10 ** dice.uniform(-4, 0), 4) if dice.random() < 0.8 else 0.0,
        }
        if does == "flaky":
            args["fails"] = dice.randint(1, 3)
        takes = float(args["takes"])
        options: dict[str, Any] = {}
        if dice.random() < 0.15:
            options["priority"] = dice.choice((-1, 1, 5))
        if dice.random() < 0.1:
            options["delay"] = round(dice.uniform(0, 5), 3)
        if dice.random() < 0.1:
            options["timeout"] = round(dice.choice((0.5, 2.0)) * takes + 0.001, 4)
        if dice.random() < 0.1:
            options["expires"] = round(10 ** dice.uniform(-2, 1), 3)
        if dice.random() < 0.3:
            options["max_attempts"] = dice.randint(1, 4)
        if dice.random() < 0.1:
            options["inputs"] = False
        first = dice.choice((0.0, 0.01, 0.5))
        options["backoff"] = Backoff(first=first, limit=2.0) if dice.random() < 0.5 else first
        channel = CHANNELS[dice.random() < 0.2]
        id = self._new_id(dice)
        self.world.name(str(id))
        self.ledger.dependencies[str(id)] = {
            str(each.id if isinstance(each, Dependency) else each) for each in dependencies
        }
        return JobSpec(
            dice.choice(TYPES), args, id=id, dependencies=dependencies, channel=channel, **options
        )

    def _graph(self, dice: random.Random) -> list[JobSpec]:
        size = dice.randint(1, self.world.plan.graph)
        shape = dice.choice(("chain", "fan out", "fan in", "diamond", "roots", "random"))
        specs: list[JobSpec] = []
        for at in range(size):
            if not at or shape == "roots":
                on: list[int] = []
            elif shape == "chain":
                on = [at - 1]
            elif shape == "fan out" or (shape == "diamond" and at < size - 1):
                on = [0]
            elif shape == "fan in":
                on = list(range(at)) if at == size - 1 else []
            elif shape == "diamond":
                on = list(range(at))
            else:
                on = dice.sample(range(at), min(at, dice.randint(0, 3)))
            dependencies: list[Any] = [self._condition(dice, specs[each].id) for each in on]
            if self.ids and dice.random() < 0.1:
                dependencies.append(self._condition(dice, dice.choice(self.ids[-20:])))
            specs.append(self._spec(dice, dependencies))
        return specs

    @staticmethod
    def _condition(dice: random.Random, id: UUID) -> UUID | Dependency:
        return Dependency(id, "ended") if dice.random() < 0.25 else id

    def _some(self, dice: random.Random, most: int = 3) -> list[UUID]:
        """Give ids, mostly known ones."""
        some = [dice.choice(self.ids) for _ in range(dice.randint(1, most)) if self.ids]
        if dice.random() < 0.05 or not some:
            some.append(self._new_id(dice))
        return list(dict.fromkeys(some))

    # ---- requests ----------------------------------------------------------------------------

    def _enqueue(self, client: SimClient, dice: random.Random) -> None:
        specs = self._graph(dice)
        self.ids += [spec.id for spec in specs]
        self._graphs.append(specs)
        self._send(client, specs)

    def _send(self, client: SimClient, specs: list[JobSpec]) -> None:
        def done(value: Any) -> None:
            if not isinstance(value, PointsmanError):
                for spec in specs:
                    self.ledger.acknowledged[str(spec.id)] = spec

        client.ask(requests.enqueue_many(specs, self._limit), done)

    def _enqueue_again(self, client: SimClient, dice: random.Random) -> None:
        if self._graphs:
            self._send(client, dice.choice(self._graphs))

    def _enqueue_other(self, client: SimClient, dice: random.Random) -> None:
        """Use an id again for something else."""
        if self.ids:
            id, other = dice.choice(self.ids), dice.choice(self.ids)
            # The other may well have depended on what had this id before.
            after = [other] if other != id and dice.random() < 0.5 else []
            spec = JobSpec("fetch", id=id, dependencies=after)
            spec.args = {"does": "ok", "takes": dice.random()}
            client.ask(requests.enqueue(spec, self._limit), self._ignore)

    def _enqueue_in_disorder(self, client: SimClient, dice: random.Random) -> None:
        """Name a dependency that comes later, or the job itself, or one that nobody knows."""
        first, second = str(self._new_id(dice)), str(self._new_id(dice))
        wrong = dice.choice((first, second, str(self._new_id(dice))))
        jobs = (NewJob(first, "fetch", dependencies=(wrong,)), NewJob(second, "fetch"))

        def steps() -> Generator[Any, Any, object]:
            return (yield requests.Request(Enqueue(jobs=jobs), lambda ok: ok))

        def done(value: Any) -> None:
            if isinstance(value, Ok):
                raise AssertionError(f"a graph in disorder was taken: {value}")

        client.ask(steps(), done)

    def _run(self, client: SimClient, dice: random.Random) -> None:
        spec = self._spec(dice, [])
        self.ids.append(spec.id)
        timeout = dice.choice((0.1, 5.0))
        clock = self._clock
        client.ask(requests.run(spec, timeout, self._limit, clock), self._ignore)

    def _status(self, client: SimClient, dice: random.Random) -> None:
        steps = requests.status(self._some(dice, 10), dice.random() < 0.3, self._limit)
        client.ask(steps, self._sees())

    def _wait(self, client: SimClient, dice: random.Random) -> None:
        timeout = dice.choice((0.0, 0.5, 10.0))
        steps = requests.wait(self._some(dice, 5), timeout, self._limit, self._clock)
        client.ask(steps, self._sees())

    def _cancel(self, client: SimClient, dice: random.Random) -> None:
        def done(value: Any) -> None:
            if isinstance(value, list):
                for id in value:
                    self.ledger.canceled_by_request(str(id))

        ids = self._some(dice)
        client.ask(requests.cancel(ids, self._limit), done)

    def _retry(self, client: SimClient, dice: random.Random) -> None:
        ids = self._some(dice)
        self.ledger.may_be_retried.update(map(str, ids))
        client.ask(requests.retry(ids, self._limit), self._ignore)

    def _delete(self, client: SimClient, dice: random.Random) -> None:
        ids = self._some(dice)
        self.ledger.may_be_gone.update(map(str, ids))
        client.ask(requests.delete(ids, self._limit), self._ignore)

    def _list(self, client: SimClient, dice: random.Random) -> None:
        filters: dict[str, Any] = {"limit": dice.choice((1, 3, 100))}
        if dice.random() < 0.3:
            filters["state"] = dice.choice(("ready", "finished", ["blocked", "running"]))
        if dice.random() < 0.3:
            filters["type"] = dice.choice(TYPES)
        if dice.random() < 0.3:
            filters["channel"] = dice.choice(CHANNELS)
        filters["roots"] = dice.random() < 0.3
        self._page(client, filters, None)

    def _page(self, client: SimClient, filters: dict[str, Any], after: str | None) -> None:
        def done(value: Any) -> None:
            if isinstance(value, requests.Page):
                self._saw(list(value))
                if value.after is not None:
                    self.world.after(0.01, self._page, client, filters, value.after)

        if not client.is_gone and self.world.is_rough:
            client.ask(requests.list_jobs(**filters, after=after), done)

    def _stats(self, client: SimClient, dice: random.Random) -> None:
        client.ask(requests.stats(), self._ignore)

    def _ping(self, client: SimClient, dice: random.Random) -> None:
        client.ask(requests.ping(), self._ignore)

    def _claim(self, client: SimClient, dice: random.Random) -> None:
        self.crew.claim(str(self._some(dice, 1)[0]))

    def _sees(self) -> Done:
        """Give what becomes of an answer to a question that is asked now."""
        known = set(self.ledger.acknowledged)

        def done(value: Any) -> None:
            if isinstance(value, JobNotExist):
                self.ledger.missing([str(id) for id in value.ids if str(id) in known])
            self._saw(value)

        return done

    def _saw(self, value: Any) -> None:
        for status in value if isinstance(value, list) else [value]:
            if isinstance(status, JobStatus):
                self.ledger.saw(status)

    def _ignore(self, value: Any) -> None:
        pass

    def _clock(self) -> float:
        return self.world.now


_Op = Callable[[Workload, SimClient, random.Random], None]
_OPS: dict[_Op, int] = {
    Workload._enqueue: 30,
    Workload._enqueue_again: 6,
    Workload._enqueue_other: 3,
    Workload._enqueue_in_disorder: 2,
    Workload._run: 5,
    Workload._status: 10,
    Workload._wait: 8,
    Workload._cancel: 10,
    Workload._retry: 6,
    Workload._delete: 4,
    Workload._list: 5,
    Workload._stats: 3,
    Workload._ping: 2,
    Workload._claim: 6,
}
