"""The wire, version 1: one struct a message, both directions, and nothing else.

Every message is one JSON object with an ``op``, sent as the frames ``[empty] [b"PM1"] [JSON]``.
``docs/protocol.md`` is the specification; these structs are the same thing for programs, and the
one place where both sides of this project take the names, types and bounds of fields from.

Durations are seconds, times are seconds since the Unix epoch (UTC), ids are UUIDs in their
canonical lower-case form. ``args`` and ``result`` are JSON that nobody between the two ends of a
job ever interprets: they are carried as the bytes that came in.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

PROTOCOL = b"PM1"
"""The second frame of every message: the name and version of the protocol."""

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5570"
DEFAULT_CHANNEL = "default"
DEFAULT_MESSAGE_LIMIT_BYTES = 16 * 1024 * 1024

JSON_NULL = Raw(b"null")

Name = Annotated[str, Meta(min_length=1, max_length=200)]
"""A job type or a channel: 1 to 200 characters."""

Id = Annotated[str, Meta(min_length=36, max_length=36)]
"""A UUID in canonical form; that it is one is checked a whole message at a time, see decode."""

Seconds = Annotated[float, Meta(ge=0, le=10 * 365 * 86400)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=10 * 365 * 86400)]
AttemptNumber = Annotated[int, Meta(ge=1, le=2**53)]
Condition = Literal["finished", "ended"]


class Message(Struct, tag_field="op", omit_defaults=True, kw_only=True, gc=False):
    """What every message has: its ``op`` (the tag) and, if the sender wants it echoed, ``req``."""

    req: Raw | UnsetType = UNSET


# ---- parts that several messages are made of -------------------------------------------------


class Dependency(Struct, omit_defaults=True, frozen=True, gc=False):
    """A dependency with its condition; a bare id string means the condition ``finished``."""

    id: Id
    condition: Condition = "finished"


class Backoff(Struct, omit_defaults=True, frozen=True, gc=False):
    """How long to wait before retry n (n = 1, 2, …).

    ``min(first * factor ** (n - 1), limit)`` seconds, lengthened or shortened at random by up to
    the share ``jitter``.
    """

    first: Seconds = 1.0
    factor: Annotated[float, Meta(ge=1, le=100)] = 2.0
    limit: Seconds = 300.0
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.1


class NewJob(Struct, omit_defaults=True, gc=False):
    """A job as a client enqueues it."""

    id: Id
    type: Name
    args: Raw = JSON_NULL
    dependencies: tuple[Id | Dependency, ...] = ()
    channel: Name = DEFAULT_CHANNEL
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] = 0
    """Higher runs first."""
    delay: Seconds = 0.0
    """From enqueue until the job may start at the earliest."""
    timeout: PositiveSeconds | None = None
    """The longest that one attempt may run."""
    expires: PositiveSeconds | None = None
    """From enqueue until the job must have started for the first time, else it is canceled."""
    max_attempts: Annotated[int, Meta(ge=1, le=1_000_000)] = 3
    backoff: Backoff | Seconds | None = None
    """A number stands for ``Backoff(first=number)``."""
    inputs: bool = True
    """Whether the job is dispatched together with the results of its dependencies."""


class JobInfo(Struct, omit_defaults=True, gc=False):
    """A job as ``status``, ``wait`` and ``list`` show it. A field that is left out is null."""

    id: str
    type: str
    state: str
    queued: float
    channel: str = DEFAULT_CHANNEL
    priority: int = 0
    attempt: int = 0
    """The number of the newest attempt; 0 before the first."""
    max_attempts: int = 3
    started: float | None = None
    """When the newest attempt was dispatched."""
    finished: float | None = None
    """When the job finished or failed."""
    canceled: bool = False
    ended: float | None = None
    """When the job finished, failed or was canceled."""
    due: float | None = None
    """While scheduled: when the job becomes ready."""
    dependencies: tuple[str | Dependency, ...] = ()
    dependents: tuple[str, ...] = ()
    """In answers to ``status`` only."""
    result: Raw | UnsetType = UNSET
    error: str | None = None
    reason: str | None = None
    """Why a job was canceled: ``request``, ``dependency`` or ``expired``."""
    culprit: str | None = None
    """With the reason ``dependency``: the id of the dependency whose end canceled the job."""
    progress: Raw | UnsetType = UNSET
    args: Raw | UnsetType = UNSET


class Assignment(Struct, omit_defaults=True, gc=False):
    """A job as a worker gets it: one attempt. ``id`` and ``attempt`` together are its token."""

    id: str
    attempt: int
    type: str
    args: Raw = JSON_NULL
    channel: str = DEFAULT_CHANNEL
    dependencies: tuple[str, ...] = ()
    inputs: dict[str, Raw] | None = None
    """Dependency id -> result, for each dependency that finished."""
    inputs_left_out: bool = False
    """The results exceed the broker's bound for one dispatch: ask for them with ``inputs``."""
    timeout: float | None = None


class Claim(Struct, array_like=True, frozen=True, gc=False):
    """The token of an attempt: ``[id, attempt]``."""

    id: Id
    attempt: AttemptNumber


class Outcome(Struct, array_like=True, gc=False):
    """``[id, attempt, result]``."""

    id: Id
    attempt: AttemptNumber
    result: Raw = JSON_NULL


class Failure(Struct, omit_defaults=True, gc=False):
    """An attempt that failed. ``retry`` false: no more attempts."""

    id: Id
    attempt: AttemptNumber
    error: str = ""
    retry: bool = True


class Step(Struct, array_like=True, gc=False):
    """``[id, attempt, value]``: how far an attempt has come, any JSON value."""

    id: Id
    attempt: AttemptNumber
    value: Raw


# ---- client to broker ------------------------------------------------------------------------


class Enqueue(Message, tag="enqueue"):
    """Enqueue all of ``jobs`` or none; a dependency exists already or stands earlier in ``jobs``.

    With ``wait`` (seconds), the answer comes when all of ``jobs`` have ended or that time is
    over, and is that of ``wait``.
    """

    jobs: tuple[NewJob, ...]
    wait: Seconds | None = None


class Status(Message, tag="status"):
    """Ask for the present state of each of ``ids``."""

    ids: tuple[Id, ...]
    args: bool = False
    """Whether to give each job's args too."""


class Wait(Message, tag="wait"):
    """Ask for the state of each of ``ids`` as soon as all have ended, or ``timeout`` is over."""

    ids: tuple[Id, ...]
    timeout: Seconds | None = None


class Cancel(Message, tag="cancel"):
    """End each of ``ids`` that has not ended."""

    ids: tuple[Id, ...]


class Retry(Message, tag="retry"):
    """Run failed and canceled jobs again, and their dependents that were canceled with them."""

    ids: tuple[Id, ...]


class Delete(Message, tag="delete"):
    """Forget ended jobs that no live job depends on."""

    ids: tuple[Id, ...]


class List(Message, tag="list"):
    """Ask for a page of jobs: live ones first, then ended ones, each newest first."""

    state: str | tuple[str, ...] | None = None
    type: str | None = None
    channel: str | None = None
    roots: bool = False
    """Only jobs without dependencies."""
    since: float | None = None
    """Only jobs queued at or after this time."""
    until: float | None = None
    """Only jobs queued before this time."""
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
    after: str | None = None
    """Where the page before this one ended: its answer's ``after``."""


class Stats(Message, tag="stats"):
    """Ask for the broker's counts."""


class Ping(Message, tag="ping"):
    """Ask whether the broker is there."""


# ---- worker to broker ------------------------------------------------------------------------


class Hello(Message, tag="hello"):
    """Become a worker on this connection, or say anew what kind of worker this is.

    ``credit`` is the number of jobs that the worker will hold at a time, over and above none:
    each dispatch takes one, each outcome gives one back. ``running`` are the attempts that the
    worker holds already: it goes on with them, and is told by ``cancel`` which are no longer its.
    ``session`` is a word that the worker made up once and keeps over reconnects, so that the
    broker knows the connection that this one replaces.
    """

    types: tuple[Name, ...]
    channels: tuple[Name, ...] = (DEFAULT_CHANNEL,)
    credit: Annotated[int, Meta(ge=0, le=100_000)] = 1
    name: Annotated[str, Meta(max_length=200)] = ""
    session: Annotated[str, Meta(max_length=200)] = ""
    running: tuple[Claim, ...] = ()


class Finish(Message, tag="finish"):
    """Attempts that succeeded. Answered with ``ok`` if it has a ``req``; errors always come."""

    jobs: tuple[Outcome, ...]
    credit: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    """The worker's new credit, if it changes."""


class Fail(Message, tag="fail"):
    """Attempts that failed. Answered as ``finish`` is."""

    jobs: tuple[Failure, ...]
    credit: Annotated[int, Meta(ge=0, le=100_000)] | None = None


class Release(Message, tag="release"):
    """Hand attempts back untouched: they use up none of the job's attempts."""

    jobs: tuple[Claim, ...]
    credit: Annotated[int, Meta(ge=0, le=100_000)] | None = None


class Progress(Message, tag="progress"):
    """How far attempts have come. Never answered with ``ok``."""

    jobs: tuple[Step, ...]


class Claiming(Message, tag="claim"):
    """Ask for one certain job, beyond the credit; answered by ``jobs`` or an error."""

    id: Id


class Inputs(Message, tag="inputs"):
    """Ask for the results of an attempt's dependencies, those of ``ids``; answered by ``ok``.

    The answer's ``results`` may hold fewer than asked for, but at least one: ask again for the
    rest.
    """

    id: Id
    attempt: AttemptNumber
    ids: tuple[Id, ...]


class Heartbeat(Message, tag="heartbeat"):
    """A sign of life, both ways: the broker answers each with one of its own."""

    credit: Annotated[int, Meta(ge=0, le=100_000)] | None = None


class Bye(Message, tag="bye"):
    """Leave; what the worker still holds is handed back as by ``release``."""


# ---- broker to client and worker -------------------------------------------------------------


class Ok(Message, tag="ok"):
    """The request was carried out; each field is there where its request gives it."""

    ids: tuple[str, ...] | UnsetType = UNSET
    """enqueue: the jobs' ids; cancel, retry, delete: the ids of the jobs that it changed."""
    jobs: tuple[JobInfo, ...] | UnsetType = UNSET
    """status, wait, list."""
    done: bool | UnsetType = UNSET
    """wait: whether all have ended."""
    after: str | UnsetType | None = UNSET
    """list: where to go on, null at the end."""
    results: dict[str, Raw] | UnsetType = UNSET
    """inputs: dependency id -> result."""
    stats: Raw | UnsetType = UNSET
    """stats: an object of counts."""
    version: str | UnsetType = UNSET
    """ping: the broker's version."""
    message_limit: int | UnsetType = UNSET
    """ping: the largest JSON frame that the broker takes and sends, in bytes."""


class Error(Message, tag="error"):
    """The request was refused whole (for batches of outcomes: as far as ``ids`` says)."""

    code: str
    message: str
    ids: tuple[str, ...] = ()
    """The jobs at fault, as far as the fault is one of certain jobs."""
    codes: tuple[str, ...] = ()
    """Where not all of `ids` are at fault in the same way: the code of each, `code` the first's."""
    recorded: tuple[str, ...] = ()
    """finish, fail: those of `ids` whose outcome is this very one, which had arrived before."""


class Welcome(Message, tag="welcome"):
    """The answer to ``hello``."""

    version: str
    heartbeat: float
    """Send a sign of life at least this often, in seconds."""
    heartbeat_limit: float
    """A worker that is silent for longer than this loses its jobs, in seconds."""
    message_limit: int
    """The largest JSON frame that the broker takes, in bytes."""


class Jobs(Message, tag="jobs"):
    """Attempts to run, now."""

    jobs: tuple[Assignment, ...]


class CancelRunning(Message, tag="cancel"):
    """Stop working on ``ids``: their attempts are over.

    ``reason`` is ``request`` or ``dependency`` (the job was canceled), ``timeout`` (the attempt
    ran too long) or ``lost`` (the attempt is no longer this worker's).
    """

    ids: tuple[str, ...]
    reason: str


ClientRequest = Enqueue | Status | Wait | Cancel | Retry | Delete | List | Stats | Ping
WorkerRequest = Hello | Finish | Fail | Release | Progress | Claiming | Inputs | Heartbeat | Bye
Request = ClientRequest | WorkerRequest
Reply = Ok | Error
WorkerEvent = Welcome | Jobs | CancelRunning | Heartbeat | Ok | Error
