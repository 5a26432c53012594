"""One run of the simulation, from a plan to what came of it."""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass, field

from broker import __version__
from broker.server import limits_of
from tests.simulation.broker import BrokerHost, config_of
from tests.simulation.crew import Crew
from tests.simulation.ledger import Ledger
from tests.simulation.model import Model
from tests.simulation.network import Network
from tests.simulation.plan import Plan
from tests.simulation.referee import Referee
from tests.simulation.violation import Violation
from tests.simulation.workload import Workload
from tests.simulation.world import World


@dataclass(slots=True)
class Report:
    """What came of a run."""

    plan: Plan
    steps: int
    turns: int
    jobs: int
    starts: int
    virtual_s: float
    faults: Counter[str]
    failure: str | None = None
    where: str = ""
    story: list[str] = field(default_factory=list)


def run(plan: Plan, *, tell: bool = False) -> Report:
    """Carry out a plan; never raises for what the system does wrong."""
    world = World(plan, tell=tell)
    network = Network(world)
    ledger = Ledger(world)
    config = config_of(world)
    model = Model(limits_of(config), config.inputs_limit, __version__)
    referee = Referee(world, model)
    host = BrokerHost(world, network, referee)
    crew = Crew(world, network, ledger)
    workload = Workload(world, network, crew, ledger)

    def calm() -> None:
        world.is_rough = False
        world.tell("faults stop")
        network.heal()
        crew.heal()
        world.after(0.5, look, world.now + plan.patience)

    def look(until: float) -> None:
        crew.heal()
        if not model.live and workload.is_settled and crew.is_settled:
            host.is_over = True
        elif world.now >= until:
            left = {id: job.state for id, job in model.live.items()}
            hands = [each.hands() for each in crew.workers.values() if not each.is_settled]
            waits = [client for client in workload.clients if client.open]
            raise Violation(
                f"not at its end {plan.patience:g} s after the last fault: "
                f"live {left}, in hands {hands}, unanswered {waits}"
            )
        else:
            world.after(0.5, look, until)

    world.at(min(plan.length, plan.until), calm)
    report = Report(plan, 0, 0, 0, 0, 0.0, world.faults)
    try:
        host.run()
    except Exception as error:  # noqa: BLE001  (whatever it is, it is what the run found)
        report.failure = world.named(f"{type(error).__name__}: {error}")
        report.where = world.named("".join(traceback.format_exception(error)[-12:]))
    report.steps = world.steps
    report.turns = referee.turns
    report.jobs = model.admitted
    report.starts = host.starts
    report.virtual_s = world.now
    report.story = [world.named(line) for line in world.story or ()]
    return report
