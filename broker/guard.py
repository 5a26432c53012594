"""Who is let in, and what each may do: stands between the socket and the engine if there are keys.

Three duties. It answers libzmq's question whether a key may connect (ZAP, RFC 27), and has libzmq
note on each message which key it came with. It holds each message against the policy at the moment
when the engine takes it up, when all that came before has been carried out. And it sees to it that
answers do not speak of jobs that their receiver may not know of.

To a key, jobs outside its channels and types do not exist. Whether a job is hidden or missing must
make no difference to what it hears; so wherever one of them is refused here, the other is too.

A message's key stays with it all the way: the connection, first frame of its origin, is a `Peer`.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import zmq
from msgspec import UNSET
from zmq.utils import z85

from broker.config import Config, ConfigError
from broker.core.engine import Command, Engine, Expel, SignOfLife
from broker.core.graph import name_of
from broker.core.refusal import ASTRAY, Faults, Refused, astray, listed, not_exist
from broker.core.workers import Origin
from broker.cutting import Heard
from broker.log import get_logger
from broker.policy import ADMIN, CANCEL, ENQUEUE, READ, WORK, Grant, Policy, load
from broker.queries import Queries
from worker_sdk.keys import KeyFileError, KeyPair, check_curve, read_pair
from worker_sdk.messages import (
    Bye,
    Cancel,
    CancelRunning,
    Claiming,
    Delete,
    Enqueue,
    Error,
    Fail,
    Finish,
    Heartbeat,
    Hello,
    Inputs,
    List,
    Message,
    NewJob,
    Ok,
    Ping,
    Progress,
    Release,
    Retry,
    Stats,
    Status,
    Wait,
)

log = get_logger("guard")

ROLE_FOR: dict[type, str | None] = {
    Enqueue: ENQUEUE,
    Retry: ENQUEUE,
    Status: READ,
    Wait: READ,
    List: READ,
    Stats: READ,
    Cancel: CANCEL,
    Delete: ADMIN,
    Ping: None,
    Hello: WORK,
    Finish: WORK,
    Fail: WORK,
    Release: WORK,
    Progress: WORK,
    Claiming: WORK,
    Inputs: WORK,
    Heartbeat: WORK,
    Bye: WORK,
}
"""Which role each request takes; one that does not stand here takes an admin."""

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_DOMAIN = b"pointsman"
_ASKED_MOST = 100  # questions of libzmq in one turn
_TOLD_MOST = 1_000  # refused keys that are logged as a warning, each once
_UUIDS = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_UNKNOWN = "this key is not known, or was revoked"


class Peer(bytes):
    """A connection, as the ROUTER numbers it, together with the key that it was let in with.

    Two of them are the same only if both are: a number that another key has taken over is
    another connection.
    """

    key: str
    chose_its_id: bool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Peer) and self.key == other.key and bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return bytes.__hash__(self)


class Guard:
    """Enforces a policy for one ROUTER socket."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        key: KeyPair,
        policy: Policy,
        engine: Engine,
        faults: Counter[str],
    ) -> None:
        self._key = key
        self._policy = policy
        self._engine = engine
        self._faults = faults
        # Open connections, as far as anything came over them.
        self.heard = Heard()
        # Refused keys that the log has been told of.
        self._told: set[str] = set()
        # There before the ROUTER listens: libzmq lets everybody in whom nobody can judge.
        self.zap = context.socket(zmq.ROUTER)
        self.zap.bind(_ZAP_ENDPOINT)

    @classmethod
    def of(
        cls,
        context: zmq.Context[zmq.Socket[bytes]],
        config: Config,
        engine: Engine,
        faults: Counter[str],
    ) -> Guard | None:
        """The guard that the settings ask for, if they do; raises ConfigError."""
        if not config.key:
            return None
        try:
            check_curve()
            key = read_pair(config.key)
        except KeyFileError as error:
            raise ConfigError(f"key: {error}") from None
        return cls(context, key, load(config.policy), engine, faults)

    # ---- connections ----

    def secure(self, router: zmq.Socket[bytes]) -> None:
        """Have a socket that is not bound yet take encrypted connections alone, of known keys."""
        router.set(zmq.CURVE_SERVER, 1)
        router.set(zmq.CURVE_SECRETKEY, self._key.secret.encode())
        router.set(zmq.ZAP_DOMAIN, _DOMAIN)
        router.set(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def let_in(self) -> None:
        """Answer what libzmq asks: whether a key may connect."""
        for _ in range(_ASKED_MOST):
            try:
                frames = self.zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            empty = frames.index(b"")
            envelope, (_, request, *question) = frames[: empty + 1], frames[empty + 1 :]
            key = self._judge(question)
            status = [b"200", b"OK"] if key else [b"400", b"no key that this broker knows"]
            answer = [*envelope, b"1.0", request, *status, key.encode(), b""]
            self.zap.send_multipart(answer, zmq.NOBLOCK)

    def _judge(self, question: Sequence[bytes]) -> str:
        """Give the key that may connect, nothing if it may not."""
        domain, address, _, mechanism, *credentials = question
        if domain != _DOMAIN or mechanism != b"CURVE" or len(credentials) != 1:
            return ""
        key = z85.encode(credentials[0]).decode()
        if self._policy.grant(key) is not None:
            return key
        self._faults["key refused"] += 1
        if key not in self._told and len(self._told) < _TOLD_MOST:
            self._told.add(key)
            log.warning("key refused", key=key, address=address.decode(errors="replace"))
        return ""

    def sender(self, identity: bytes, frame: zmq.Frame) -> Peer:
        """Give who sent a message, by its first frame and its last."""
        peer = Peer(identity)
        try:
            peer.key = str(frame.get("User-Id"))
            peer.chose_its_id = bool(frame.get("Identity"))
        except zmq.ZMQError:
            # libzmq says so of a connection that was not judged. There are none; if ever, it is
            # nobody's.
            peer.key, peer.chose_its_id = "", True
        with contextlib.suppress(zmq.ZMQError):  # not every system tells; cutting off is an extra
            self.heard.note(int(frame.get(zmq.SRCFD)), peer.key)
        return peer

    # ---- requests ----

    def admit(
        self, commands: Iterable[Command], refusals: list[tuple[Origin, Message]]
    ) -> Iterator[Command]:
        """Give the commands that the policy allows, each when it is asked for; refuse the others.

        Whoever carries them out does so one by one, so that each is judged by what there is then.
        """
        for origin, message in commands:
            if isinstance(origin[0], Peer) and isinstance(message, Message):
                try:
                    self._check(origin, origin[0], message, refusals)
                except Refused as refused:
                    self._faults["refused by policy"] += 1
                    error = Error(refused.code, refused.message, refused.ids, req=message.req)
                    refusals.append((origin, error))
                    yield origin, SignOfLife(origin[0])
                    continue
            yield origin, message

    def _check(
        self,
        origin: Origin,
        peer: Peer,
        message: Message,
        refusals: list[tuple[Origin, Message]],
    ) -> None:
        grant = self._policy.grant(peer.key)
        if grant is None:
            raise Refused("denied", _UNKNOWN)
        if peer.chose_its_id:
            # Whoever has it after this connection would be taken for it.
            raise Refused("denied", "a connection must not choose a routing id of its own")
        op = str(message.__struct_config__.tag)
        role = ROLE_FOR.get(type(message), ADMIN)
        if role is not None and not grant.has(role):
            raise Refused("denied", f"{op} needs the role {role}, and {grant.name} has it not")
        match message:
            case Enqueue():
                self._check_enqueue(grant, message)
            case Status() | Wait() | Cancel() | Retry() | Delete():
                self._check_seen(grant, message.ids)
            case Hello():
                self._check_hello(origin, grant, message, refusals)
            case Claiming() | Inputs():
                unseen = self._unseen(grant, [message.id])
                if unseen:
                    raise astray({message.id: "not_exist"})

    def _check_enqueue(self, grant: Grant, message: Enqueue) -> None:
        if message.wait is not None and not grant.has(READ):
            raise Refused("denied", f"to wait needs the role read, and {grant.name} has it not")
        if grant.is_everywhere:
            return
        wrong = [job for job in message.jobs if not grant.covers(job.channel, job.type)]
        if wrong:
            job = wrong[0]
            text = f"{grant.name} may not enqueue type {job.type!r} on channel {job.channel!r}"
            raise Refused("denied", text, [each.id for each in wrong])
        self._check_dependencies(grant, message.jobs)

    def _check_dependencies(self, grant: Grant, jobs: Sequence[NewJob]) -> None:
        own = {job.id for job in jobs}
        named = {name_of(each): None for job in jobs for each in job.dependencies}
        unseen = set(self._unseen(grant, [id for id in named if id not in own]))
        if not unseen:
            return
        faults = Faults()
        for job in jobs:
            for id in map(name_of, job.dependencies):
                if id in unseen:
                    faults.blame_dependency(job.id, id)
        faults.refuse_if_any()

    def _check_seen(self, grant: Grant, ids: Sequence[str]) -> None:
        unseen = self._unseen(grant, ids)
        if unseen:
            raise not_exist(unseen)

    def _check_hello(
        self,
        origin: Origin,
        grant: Grant,
        message: Hello,
        refusals: list[tuple[Origin, Message]],
    ) -> None:
        if not self._may_work(grant, message.channels, message.types):
            raise Refused(
                "denied",
                f"{grant.name} may not work on type {listed(message.types)} "
                f"of channel {listed(message.channels)}",
            )
        # Nobody comes in another key's place, whatever it knows of that one's session.
        if message.session:
            message.session = f"{grant.public_key} {message.session}"
        unseen = set(self._unseen(grant, [claim.id for claim in message.running]))
        if unseen:
            message.running = tuple(each for each in message.running if each.id not in unseen)
            refusals.append((origin, CancelRunning(tuple(unseen), "lost")))

    @staticmethod
    def _may_work(grant: Grant, channels: Iterable[str], types: Iterable[str]) -> bool:
        types = list(types)
        return all(grant.covers(channel, type) for channel in channels for type in types)

    def _unseen(self, grant: Grant, ids: Sequence[str]) -> list[str]:
        """Give those of `ids` that are hidden from a key, or are no jobs at all."""
        if grant.is_everywhere:
            return []
        lanes = self._engine.lanes_of(ids)
        return [id for id in ids if id not in lanes or not grant.covers(*lanes[id])]

    def _hidden(self, grant: Grant, ids: Sequence[str]) -> set[str]:
        """Give those of `ids` that are jobs, and hidden from a key."""
        return {id for id, lane in self._engine.lanes_of(ids).items() if not grant.covers(*lane)}

    # ---- answers ----

    def answer(self, queries: Queries, origin: Origin, request: Message) -> Message:
        """Give the answer to a request that changes nothing, as far as its sender may know it."""
        grant = self._grant(origin)
        if grant is None:
            # Revoked while the request waited.
            return Error("denied", _UNKNOWN, req=request.req)
        return queries.answer(request, None if grant.is_everywhere else grant.covers)

    def veil(self, origin: Origin, message: Message) -> Message:
        """Give an answer of the engine without the jobs that its receiver may not know of."""
        grant = self._grant(origin)
        if grant is None or grant.is_everywhere:
            return message
        if isinstance(message, Ok) and message.ids is not UNSET:
            hidden = self._hidden(grant, message.ids)
            if hidden:
                message.ids = tuple([id for id in message.ids if id not in hidden])
        elif isinstance(message, Error) and message.code in ASTRAY:
            self._veil_astray(grant, message)
        elif isinstance(message, Error) and message.code == "conflict":
            others = set(_UUIDS.findall(message.message)).difference(message.ids)
            for id in self._hidden(grant, list(others)):
                message.message = message.message.replace(id, "another's")
        return message

    def _veil_astray(self, grant: Grant, error: Error) -> None:
        hidden = self._hidden(grant, error.ids)
        if hidden:
            codes = error.codes or (error.code,) * len(error.ids)
            by_id = dict(zip(error.ids, codes, strict=True))
            refused = astray(by_id | dict.fromkeys(hidden, "not_exist"))
            error.code, error.message = refused.code, refused.message
            error.codes = refused.codes
            error.recorded = tuple([id for id in error.recorded if id not in hidden])

    def _grant(self, origin: Origin) -> Grant | None:
        return self._policy.grant(origin[0].key) if isinstance(origin[0], Peer) else None

    # ---- changes ----

    def adopt(self, policy: Policy) -> list[Command]:
        """Go by another policy from now on; give what is to be done about present workers.

        A worker whose key may no longer do what it came for loses its jobs, as by silence.
        """
        self._policy = policy
        self._told.clear()
        cut_off = self.heard.cut_off(lambda key: policy.grant(key) is None)
        if cut_off:
            log.warning("connections cut off: their keys are not known any more", count=cut_off)
        expelled: list[Command] = []
        for worker in self._engine.crew.workers.values():
            grant = self._grant(worker.origin)
            if grant is None or not grant.has(WORK) or not self._may_work(grant, *worker.pool.key):
                log.warning("worker shut out", worker=worker.name)
                expelled.append((worker.origin, Expel(worker.connection)))
        return expelled
