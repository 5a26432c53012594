"""What must be true of the core's state between turns, said the slow and simple way."""

from __future__ import annotations

from collections import Counter

from broker.core.engine import Engine
from broker.core.graph import Dependents, name_of
from broker.core.job import BLOCKED, READY, RUNNING, SCHEDULED
from broker.core.workers import Pool


def check(engine: Engine) -> None:
    """Compare every count and index with what it stands for; O(jobs + workers)."""
    _check_jobs(engine)
    _check_graph(engine)
    _check_lanes(engine)
    _check_workers(engine)
    _check_timers(engine)


def check_empty(engine: Engine) -> None:
    """See that nothing is left behind when no job is live and no worker connected."""
    life, crew = engine.life, engine.crew
    check(engine)
    assert not life.jobs
    assert not len(life.lanes), [lane.type for lane in life.lanes]
    assert not life.graph._held
    assert not life.waits.by_job
    assert not len(life.waits)
    assert not crew.workers
    assert not crew.sessions
    assert not crew.pools
    assert not life.args_bytes
    assert not life.running
    assert not life.scheduled
    # The one that prunes, and the end of grace as long as that lies ahead.
    assert len(life.timers) <= 2
    assert len(life.timers._heap) <= 2 + 64 + 1, "canceled timers pile up"


def _check_jobs(engine: Engine) -> None:
    life = engine.life
    states = Counter(job.state for job in life.jobs.values())
    assert set(states) <= {BLOCKED, SCHEDULED, READY, RUNNING}
    assert life.running == states[RUNNING]
    assert life.scheduled == states[SCHEDULED]
    assert life.args_bytes == sum(len(job.args) for job in life.jobs.values())
    for id, job in life.jobs.items():
        assert job.id == id
        assert job.outcome is None
        assert (job.run is not None) == (job.state is RUNNING)
        assert (job.state is BLOCKED) == bool(job.waiting), (id, job.state, job.waiting)
        assert (job.due is not None) or job.state is not SCHEDULED
        assert 0 <= job.spared <= job.attempt
        assert not job.unsaved
        assert job.terms.lane is life.lanes.get(job.terms.lane.channel, job.terms.lane.type)
    seqs = [job.seq for job in life.jobs.values()]
    assert len(seqs) == len(set(seqs))


def _check_graph(engine: Engine) -> None:
    life = engine.life
    held: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    for job in life.jobs.values():
        for dependency in job.dependencies:
            other = life.jobs.get(name_of(dependency))
            if other is None:
                held[name_of(dependency)] += 1
            else:
                waiting[job.id] += 1
                assert other.seq < job.seq
                assert other.dependents is not None
                side = other.dependents
                if isinstance(side, Dependents):
                    assert job in (side.if_finished if type(dependency) is str else side.if_ended)
                else:
                    assert side is job
                    assert type(dependency) is str
    assert life.graph._held == held
    for job in life.jobs.values():
        assert job.waiting == waiting[job.id]


def _check_lanes(engine: Engine) -> None:
    life = engine.life
    live = Counter(job.terms.lane for job in life.jobs.values())
    ready = Counter(job.terms.lane for job in life.jobs.values() if job.state is READY)
    for lane in life.lanes:
        assert lane.live == live[lane]
        assert lane.ready == ready[lane]
        assert lane.live or lane.pools, "a lane that nobody needs"
        queued = Counter(
            job.id for queue in lane._queues.values() for job in set(queue) if job.state is READY
        )
        assert queued.total() == len(queued) == lane.ready
        assert sum(map(len, lane._queues.values())) == lane._places
        assert sorted(lane._queues) == sorted(-rank for rank in lane._ranks)
        for queue in lane._queues.values():
            orders = [job.order for job in queue]
            assert orders == sorted(orders), "a job whose place and order do not agree"
            assert len(set(queue)) == len(queue), "a job with two places"
    places = {(job.order, job.terms.lane) for job in life.jobs.values() if job.state is READY}
    assert len(places) == len({order for order, _ in places}), "two lanes with one place"


def _check_workers(engine: Engine) -> None:
    life, crew = engine.life, engine.crew
    running = Counter(
        job.run.worker for job in life.jobs.values() if job.run is not None and job.run.worker
    )
    sizes = Counter(worker.pool for worker in crew.workers.values())
    for connection, worker in crew.workers.items():
        assert worker.connection == connection
        assert running.pop(worker, 0) == len(worker.running)
        assert not worker.outgoing
        assert crew.pools.get(worker.pool.key) is worker.pool, "a worker of a forgotten pool"
        for id, job in worker.running.items():
            assert life.jobs[id] is job
            assert job.run is not None
            assert job.run.worker is worker
        if not engine.draining and not worker.stalled and len(worker.running) < worker.credit:
            left = [lane.type for lane in worker.pool.lanes if lane.ready]
            assert not left, f"jobs of {left} are ready and {worker.connection!r} is free"
    assert not running, "jobs run on workers that are gone"
    for session, worker in crew.sessions.items():
        assert worker.session == session
        assert crew.workers.get(worker.connection) is worker
    room: Counter[Pool] = Counter()
    for worker in crew.workers.values():
        if not worker.stalled:
            room[worker.pool] += max(0, worker.credit - len(worker.running))
    assert crew.lanes == sum(len(pool.lanes) for pool in crew.pools.values())
    for pool in crew.pools.values():
        assert pool._room == room[pool] or engine.draining
        assert pool.size == sizes[pool]
        assert pool.size
        for lane in pool.lanes:
            assert pool in lane.pools
            assert life.lanes.get(lane.channel, lane.type) is lane
    for lane in life.lanes:
        for pool in lane.pools:
            assert crew.pools.get(pool.key) is pool
    assert not life.moved
    assert not life.stirred
    assert not life.stops


def _check_timers(engine: Engine) -> None:
    life, crew = engine.life, engine.crew
    timers = [job.timer for job in life.jobs.values() if job.timer is not None]
    timers += [worker.timer for worker in crew.workers.values() if worker.timer is not None]
    assert all(timer.call is not None for timer in timers)
    assert life.waits.awaited == sum(map(len, life.waits.by_job.values()))
    # Besides: every wait, the one that prunes, and the end of grace.
    others = len(life.timers) - len(timers) - len(life.waits)
    assert 1 <= others <= 2
    for job in life.jobs.values():
        assert (job.state is SCHEDULED) <= (job.timer is not None)
        if job.state is RUNNING:
            assert (job.terms.timeout is not None) == (job.timer is not None)
        elif job.terms.expires is not None and not job.attempt:
            assert job.timer is not None
