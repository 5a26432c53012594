"""W6: a thousand workers and many job types, against two workers and one type.

The workers are bare sockets that speak the protocol, some hundred in each of two processes: what
is measured is the broker. They hold as many jobs as an SDK worker with short handlers asks for,
finish all that one message brings by one message, and send heartbeats, their own and ZeroMQ's, when
an SDK worker does.
"""

import asyncio
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack
from heapq import heappush, heapreplace

import msgspec
import zmq

from scripts.bench.clients import ARGS, CHUNK_JOBS, CHUNKS_UNDER_WAY, TIMEOUT_S
from scripts.bench.crew import BrokerProcess
from scripts.bench.figures import Figure, at_least, no_more_than
from scripts.bench.processes import CpuMeter, Say, cpu_s, run, start
from scripts.bench.setting import Setting
from worker_sdk import AsyncClient, JobSpec
from worker_sdk.heartbeats import next_beat
from worker_sdk.messages import PROTOCOL, Finish, Heartbeat, Hello, Jobs, Outcome, Welcome

PROCESSES = 2
CREDITS = (512, 1)
"""Half of what the SDK's Worker asks for at most, for handlers that take no time; and one job at a
time."""
RATE_FACTOR = 0.8
"""Within 20 %."""
IDLE_PERCENT = 2.0
FEWER = 10
"""One job at a time, two workers would take a minute for all of them: so many times fewer."""


def crowd(setting: Setting) -> Iterator[Figure]:
    """W6, with the first of the stores."""
    sizes = setting.sizes
    store = setting.stores[0]
    for credit in CREDITS:
        few = _rate(setting, store, workers=PROCESSES, types=1, credit=credit)
        many = _rate(
            setting, store, workers=sizes.crowd_workers, types=sizes.crowd_types, credit=credit
        )
        yield Figure(
            workload="W6 crowd",
            case=f"{store}, {sizes.crowd_workers:,} workers with {sizes.crowd_types} types, "
            f"credit {credit}",
            unit="jobs/s",
            value=many["jobs_per_s"],
            bar=at_least(RATE_FACTOR, few["jobs_per_s"], of="2 workers with 1 type"),
            details={f"few: {name}": value for name, value in few.items()} | many,
        )
    yield Figure(
        workload="W6 crowd",
        case=f"{store}, idle broker with {sizes.crowd_workers:,} workers",
        unit="% of a core",
        value=many["idle %"],
        bar=no_more_than(IDLE_PERCENT, f"<= {IDLE_PERCENT:g} %"),
        details={name: value for name, value in many.items() if name.startswith("idle")},
    )


def _rate(
    setting: Setting, store: str, *, workers: int, types: int, credit: int
) -> dict[str, float]:
    sizes = setting.sizes
    jobs = sizes.crowd_jobs // (FEWER if credit == 1 else 1)
    with ExitStack() as stack:
        broker = stack.enter_context(BrokerProcess(setting.folder, store, setting.transports[0]))
        crowds = [
            stack.enter_context(
                start(
                    "scripts.bench.crowd:work",
                    broker.folder,
                    endpoint=broker.endpoint,
                    types=[f"type-{worker % types}" for worker in range(first, workers, PROCESSES)],
                    credit=credit,
                )
            )
            for first in range(PROCESSES)
        ]
        for each in crowds:
            each.hear()
        meter = CpuMeter(broker=broker.pid, workers=crowds[0].pid)
        seconds = run(
            "scripts.bench.crowd:enqueue",
            broker.folder,
            endpoint=broker.endpoint,
            jobs=jobs,
            types=types,
        )
        used = meter.us_per_job(jobs)
        return {"jobs_per_s": jobs / seconds} | _idle(broker, sizes.idle_s) | used


def _idle(broker: BrokerProcess, seconds: float) -> dict[str, float]:
    """How much of a core the broker uses while there is nothing to do, in percent."""
    before = cpu_s(broker.pid)
    time.sleep(seconds)
    used = {part: now_s - before[part] for part, now_s in cpu_s(broker.pid).items()}
    percent = {f"idle {part} %": 100 * used_s / seconds for part, used_s in used.items()}
    return percent | {"idle %": sum(percent.values())}


# ---- the processes ---------------------------------------------------------------------------


def enqueue(say: Say, endpoint: str, jobs: int, types: int) -> None:
    """Enqueue jobs of all types in turns, as W1 bulk does; the seconds until all have finished."""
    asyncio.run(_enqueue(say, endpoint, jobs, types))


async def _enqueue(say: Say, endpoint: str, jobs: int, types: int) -> None:
    starts = iter(range(0, jobs, CHUNK_JOBS))
    async with AsyncClient(endpoint, timeout=TIMEOUT_S) as client:

        async def caller() -> None:
            for start in starts:
                numbers = range(start, min(start + CHUNK_JOBS, jobs))
                await client.enqueue_many([JobSpec(f"type-{n % types}", ARGS) for n in numbers])

        before = (await client.stats())["totals"]["finished"]
        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CHUNKS_UNDER_WAY)))
        while (await client.stats())["totals"]["finished"] - before < jobs:
            await asyncio.sleep(0.001)
        say(time.perf_counter() - began)


# An enum costs more than the look, and so does an exception when nothing is there.
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_decode = msgspec.json.Decoder(Jobs | Welcome | Heartbeat).decode
_encode = msgspec.json.Encoder().encode


def work(say: Say, endpoint: str, types: list[str], credit: int) -> None:
    """As many workers as there are types here, until killed; says when all are welcome."""
    _Crowd(say, endpoint, types, credit).run()


class _Crowd:
    """Many workers, each with its own socket, in one thread."""

    def __init__(self, say: Say, endpoint: str, types: list[str], credit: int) -> None:
        self._say = say
        self._strangers = len(types)
        # When the next heartbeat of each worker that is welcome is due, monotonic seconds, with
        # its socket's descriptor and the interval.
        self._beats: list[tuple[float, int, float]] = []
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        context.set(zmq.MAX_SOCKETS, len(types) + 10)
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        # Its cost does not grow with the number of sockets, as that of a zmq.Poller does.
        self._poll = select.epoll()
        for type in types:
            dealer = context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.HEARTBEAT_IVL, 10_000)
            dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15_000)
            dealer.connect(endpoint)
            descriptor = dealer.fileno()
            self._sockets[descriptor] = dealer
            self._poll.register(descriptor, select.EPOLLIN)
            _send(dealer, Hello(types=(type,), credit=credit))

    def run(self) -> None:
        while True:
            beat_at = self._beats[0][0] if self._beats else time.monotonic() + 1.0
            for descriptor, _ in self._poll.poll(max(0.0, beat_at - time.monotonic())):
                self._take_all(descriptor)
            now = time.monotonic()
            while self._beats and self._beats[0][0] <= now:
                _, descriptor, interval_s = self._beats[0]
                heapreplace(self._beats, (next_beat(now, interval_s), descriptor, interval_s))
                _send(self._sockets[descriptor], Heartbeat())
                self._take_all(descriptor)

    def _take_all(self, descriptor: int) -> None:
        """Take and answer all that came. Sending, too, uses up what the descriptor has to tell,
        so this ends only when a look at the socket finds nothing.
        """
        dealer = self._sockets[descriptor]
        while int(dealer.getsockopt(_EVENTS)) & _POLLIN:
            frames = dealer.recv_multipart(zmq.NOBLOCK)
            message = _decode(frames[-1])
            if isinstance(message, Jobs):
                outcomes = tuple([Outcome(job.id, job.attempt) for job in message.jobs])
                _send(dealer, Finish(jobs=outcomes))
            elif isinstance(message, Welcome):
                # They all came at once; in life, each comes at a time of its own.
                came = time.monotonic() - message.heartbeat * self._strangers / len(self._sockets)
                beat = next_beat(came, message.heartbeat), descriptor, message.heartbeat
                heappush(self._beats, beat)
                self._strangers -= 1
                if not self._strangers:
                    self._say("ready")


def _send(dealer: zmq.Socket[bytes], message: msgspec.Struct) -> None:
    dealer.send(b"", zmq.SNDMORE)
    dealer.send(PROTOCOL, zmq.SNDMORE)
    dealer.send(_encode(message))
