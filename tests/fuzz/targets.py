"""What is fuzzed, each with what must hold whatever comes in."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import click
import msgspec
from msgspec import UNSET, Raw

from broker.cli.commands import cli
from broker.cli.options import CommandError, Invocation
from broker.codec import Malformed, decode, encode
from broker.config import Config, ConfigError, load, settings, show
from broker.core.engine import Command, Engine, Undelivered
from broker.core.limits import Limits
from broker.core.workers import Origin
from broker.queries import Queries
from broker.store import open_store
from tests.core.invariants import check
from tests.fuzz import inputs
from worker_sdk.encoding import unpack_reply, unpack_worker_event
from worker_sdk.errors import ProtocolError
from worker_sdk.messages import Delete, Enqueue, Error, Message, Retry, Wait

MESSAGE_LIMIT_BYTES = 100_000


def fuzz_codec(rng: Random) -> str:
    """Any frames: a message that stays the same when it is written and read again, or Malformed."""
    frames = inputs.frames(rng)
    try:
        origin, message = decode(frames, MESSAGE_LIMIT_BYTES)
    except Malformed as malformed:
        return _check_refusal(malformed, frames)
    assert list(origin) == frames[:-2]
    written = encode(message)
    if len(written) <= MESSAGE_LIMIT_BYTES:
        again = decode([*origin, b"PM1", written], MESSAGE_LIMIT_BYTES)
        assert again == (origin, message)
        assert encode(again[1]) == written
    return "read"


def _check_refusal(malformed: Malformed, frames: list[bytes]) -> str:
    assert malformed.origin[0] == frames[0]
    answer = msgspec.json.decode(encode(malformed.error), type=Error)
    assert answer.code in ("invalid", "unsupported", "too_large")
    return answer.code


def fuzz_sdk(rng: Random) -> str:
    """Any frames from a broker: what the SDK can take for one of its messages, or ProtocolError."""
    frames = inputs.frames(rng)[1:]
    if rng.random() < 0.5:
        op = rng.choice(("ok", "error", "welcome", "jobs", "cancel", "heartbeat"))
        body: Any = {"op": op, "code": "busy", "message": "m", "ids": inputs.some(rng)}
        body |= {"version": "1", "heartbeat": 1.0, "heartbeat_limit": 2.0, "message_limit": 9}
        body |= {"reason": "lost", "jobs": [{"id": inputs.IDS[0], "attempt": 1, "type": "a"}]}
        payload = inputs.text_of(inputs.twisted(rng, body) if rng.random() < 0.7 else body)
        frames = [b"", b"PM1", inputs.scrambled(rng, payload) if rng.random() < 0.5 else payload]
    read = 0
    for unpack in (unpack_reply, unpack_worker_event):
        try:
            unpack(frames)
            read += 1
        except ProtocolError:
            pass
    return f"read by {read}"


class FuzzEngine:
    """A broker without sockets that is told anything by anybody, over and over."""

    CONNECTIONS = tuple(b"connection-%d" % number for number in range(6))

    def __init__(self, seed: int, *, store: str = "memory", restarts: float = 0.01) -> None:
        self.limits = Limits(
            heartbeat_limit=5.0,
            grace=2.0,
            retention=20.0,
            max_ended=30,
            max_jobs=40,
            max_bytes=20_000,
            max_message=16 * 1024**2,
            max_workers=4,
            max_waits=5,
        )
        self._seed = seed
        # How often a turn is the first after a restart.
        self._restarts = restarts
        self.store = open_store(store)
        self.now = 0.0
        self._undelivered: list[Command] = []
        # Requests that are to be answered: the op of each, by connection and `req`.
        self.owed: dict[tuple[bytes, bytes], str] = {}
        self._requests = 0
        self._start()

    def _start(self) -> None:
        store = self.store
        self.engine = Engine(
            store, self.limits, seed=self._seed, last_seq=store.last_seq, version="fuzz"
        )
        self.engine.restore(store.load(), self.now, 1e9 + self.now)
        self.queries = Queries(self.engine, store, 200)
        self._undelivered.clear()
        self.owed.clear()

    def stop(self) -> None:
        """Let go of live jobs: the garbage collector does not see the circles they stand in."""
        for lane in self.engine.life.lanes:
            lane._queues.clear()
            lane._terms.clear()
        for job in self.engine.life.jobs.values():
            job.run = job.timer = job.dependents = None

    def turn(self, rng: Random, messages: int) -> str:
        """Carry out one turn with so many messages; AssertionError for what must not be."""
        if rng.random() < self._restarts:
            self.stop()
            self._start()
        self.now += rng.choice((0, 0, 0.001, 0.3, 3))
        commands, self._undelivered = self._undelivered, []
        for _ in range(messages):
            connection = rng.choice(self.CONNECTIONS)
            try:
                origin, message = decode(inputs.frames(rng, connection), MESSAGE_LIMIT_BYTES)
            except Malformed:
                continue
            commands.append((origin, message))
            # What may be answered later has one, so that no answer is missed.
            if message.req is not UNSET or isinstance(message, Wait | Enqueue | Retry | Delete):
                self._requests += 1
                message.req = Raw(b"%d" % self._requests)
                self.owed[connection, bytes(message.req)] = str(message.__struct_config__.tag)
        effects = self.engine.apply(commands, self.now, 1e9 + self.now)
        if effects.writes:
            self.store.commit(effects.writes)
        for origin, message in effects.replies:
            self._send(origin, message)
        for dispatch in effects.dispatches:
            for assigned, jobs in self.queries.assignments(dispatch):
                self._send(dispatch.origin, assigned)
                if rng.random() < 0.1:
                    lost = Undelivered(dispatch.origin[0], tuple(job.id for job in jobs))
                    self._undelivered.append((dispatch.origin, lost))
        for origin, request in (*effects.over, *effects.reads):
            self._send(origin, self.queries.answer(request))
        # Progress is answered only if something is wrong with it.
        for key in [key for key, op in self.owed.items() if op == "progress"]:
            del self.owed[key]
        return "turn"

    def _send(self, origin: Origin, message: Message) -> None:
        assert encode(message)
        assert origin[0] in self.CONNECTIONS
        if isinstance(message, Error):
            assert message.code not in ("internal",)
        if message.req is not UNSET:
            answered = self.owed.pop((origin[0], bytes(message.req)), None)
            assert answered is not None, f"a second answer, or one to nothing: {message}"

    def check(self) -> None:
        """See that the state is whole, and that every request is answered once, or open."""
        check(self.engine)
        open_requests = len(self.engine.life.waits) + len(self.engine._postponed)
        assert len(self.owed) == open_requests, self.owed


def fuzz_config(rng: Random, folder: Path) -> str:
    """Any file, variables and flags: a Config that can be shown and read again, or ConfigError."""
    known = list(settings())
    file = None
    if rng.random() < 0.6:
        file = folder / "fuzz.toml"
        lines = [
            f"{_name(rng, [each.name for each in known])} = {_toml_value(rng)}"
            for _ in range(rng.randint(0, 3))
        ]
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
        file.write_bytes(inputs.scrambled(rng, text) if rng.random() < 0.3 else text)
    environment = {
        _name(rng, [each.variable for each in known]): _setting_text(rng)
        for _ in range(rng.choice((0, 0, 1, 2)))
    }
    flags = {
        _name(rng, [each.name for each in known]): rng.choice(
            (None, _setting_text(rng), (), 1, 1.5)
        )
        for _ in range(rng.choice((0, 0, 1, 2)))
    }
    try:
        config = load(flags, file=file, environment=environment)
    except ConfigError:
        return "refused"
    for setting in known:
        shown = setting.kind.show(getattr(config, setting.name))
        assert setting.kind.show(setting.kind.parse(shown)) == shown, setting.name
    assert show(config).keys() == {each.name for each in known}
    assert isinstance(config, Config)
    return "taken"


def _name(rng: Random, names: list[str]) -> str:
    name = rng.choice(names)
    return name if rng.random() < 0.85 else inputs.scrambled(rng, name.encode()).decode("latin-1")


_SETTINGS = (
    *(
        "1",
        "0",
        "-1",
        "10s",
        "1.5d",
        "10 ms",
        "1e9",
        "1e999",
        "nan",
        "inf",
        "16MiB",
        "0.5KiB",
        "1_000",
    ),
    *("memory", "sqlite:x", "sqlite:", "tcp://127.0.0.1:1", "tcp://*:*", "ipc://", "ipc:///tmp/x"),
    *(
        "tcp://[::1]:5",
        "tcp://a:99999",
        "debug",
        "JSON",
        "",
        " ",
        "\u0000",
        "9" * 400,
        "0600",
        "true",
    ),
    *("tcp://127.0.0.1:1,ipc://x", "[1]", "\ud800", "١٢", "1__0", "0x10", "1s2m", "999999999999d"),
)


def _setting_text(rng: Random) -> str:
    text = rng.choice(_SETTINGS)
    if rng.random() < 0.2:
        text = inputs.scrambled(rng, text.encode("utf-8", "replace")).decode("latin-1")
    return text


def _toml_value(rng: Random) -> str:
    quoted = '"' + _setting_text(rng).replace("\\", "").replace('"', "") + '"'
    odd = (
        "1",
        "1.5",
        "nan",
        "-inf",
        "true",
        "[]",
        '["a", 1]',
        "{}",
        "1979-05-27",
        "''",
        "0x10",
        "9" * 400,
        "0x" + "f" * 9000,
        "",
    )
    return quoted if rng.random() < 0.5 else rng.choice(odd)


def fuzz_cli(rng: Random) -> str:
    """Any arguments: a command that could be run, or an error of the command line's own kinds."""
    arguments = [_as_given(_argument(rng)) for _ in range(rng.randint(0, 6))]
    if rng.random() < 0.9:
        arguments.insert(0, rng.choice(sorted(cli.commands)))
    invocation = Invocation()
    try:
        with cli.make_context("pointsman", list(arguments), obj=invocation) as context:
            rest = [*context._protected_args, *context.args]
            if not rest:
                return "no command"
            name, command, rest = cli.resolve_command(context, rest)
            assert command is not None
            with command.make_context(name, rest, parent=context):
                return "taken"
    except (click.ClickException, click.exceptions.Exit, ConfigError, CommandError):
        return "refused"


def _as_given(argument: str) -> str:
    """Give an argument as a program gets it: bytes without NUL, decoded in the system's way."""
    try:
        given = argument.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        given = argument.encode("utf-8", "surrogatepass")
    return os.fsdecode(given.replace(b"\0", b""))


_OPTIONS = sorted(
    {
        option
        for command in cli.commands.values()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-")
    }
)


def _argument(rng: Random) -> str:
    what = rng.random()
    if what < 0.4:
        option = rng.choice(_OPTIONS)
        return option if rng.random() < 0.8 else f"{option}={_setting_text(rng)}"
    if what < 0.6:
        return rng.choice(inputs.IDS)
    if what < 0.8:
        return inputs.payload(rng).decode("utf-8", "surrogateescape")
    return _setting_text(rng)


def config_folder() -> Path:
    """Give a folder for configuration files of a run."""
    return Path(tempfile.mkdtemp(prefix="pointsman-fuzz-"))
