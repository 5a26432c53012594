"""The broker as a process of its own: start, signals, end.

SIGTERM and SIGINT drain: no new jobs go out, running ones may finish within the setting ``drain``,
then the process exits with 0. A second one hurries: what was received is committed, and the broker
leaves at once. SIGHUP reads the configuration again; one that is wrong changes nothing.
"""

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import zmq

from broker import exposure, policy
from broker import log as logs
from broker.config import Config, ConfigError, reloaded
from broker.log import get_logger
from broker.server import Server
from broker.store import StoreError, open_store
from worker_sdk.keys import KeyFileError, check_curve, read_pair

EXIT_OK = 0
EXIT_FAILED = 1
"""The broker could not start (endpoint in use, store locked or foreign), or had to stop."""
EXIT_CONFIG = 2
"""The configuration is wrong; starting again without changing it is no use."""

ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
WATCHED = ENDING | {signal.SIGHUP}

log = get_logger("daemon")


class StartError(Exception):
    """The broker could not start; the message is for the person who starts it."""


def serve(
    config: Config,
    *,
    reload: Callable[[], Config] | None = None,
    ready_file: Path | None = None,
) -> int:
    """Run a broker until it is told to leave; the exit code of the process.

    ``reload`` reads the configuration again for SIGHUP. As soon as the broker takes messages,
    ``ready_file`` holds the endpoints that it is bound to, one a line, with their real ports; it
    is removed at the end. Raises StartError, and ConfigError for what must not be started.
    """
    logs.set_up(config.log_level, config.log_format)
    _raise_descriptor_limit()
    signals = _Signals(config, reload)
    signals.take()
    # Before the store is made or touched.
    check(config)
    try:
        store = open_store(config.store)
    except StoreError as error:
        raise StartError(f"store {config.store}: {error}") from error
    with contextlib.closing(store):
        try:
            server = Server(config, store)
        except (zmq.ZMQError, OSError) as error:
            raise StartError(f"cannot listen on {error}") from error
        except StoreError as error:
            raise StartError(f"store {config.store}: {error}") from error
        return _run(server, config, signals, ready_file)


def check(config: Config) -> None:
    """Raise ConfigError for all that is wrong before the store and the endpoints are opened."""
    exposure.check(config)
    if not config.key:
        return
    try:
        check_curve()
        read_pair(config.key)
    except KeyFileError as error:
        raise ConfigError(f"key: {error}") from None
    policy.load(config.policy)


def _raise_descriptor_limit() -> None:
    """Take as many file descriptors as the system lets us have: each connection needs one.

    The usual soft limit of 1,024 is for programs that use `select`; beyond it, peers would wait
    outside without a word.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run(server: Server, config: Config, signals: "_Signals", ready_file: Path | None) -> int:
    # Before anybody learns that the broker is there, and sends it a signal.
    signals.watch(server)
    with _ready(ready_file, server.endpoints):
        log.info("listening", endpoints=server.endpoints, store=config.store, pid=os.getpid())
        try:
            server.run()
        except StoreError as error:
            log.error("stopped: the store failed", store=config.store, error=str(error))
            return EXIT_FAILED
        except Exception:  # a fault of the program itself: told, whatever it is
            log.exception("stopped: a fault in the broker")
            return EXIT_FAILED
    log.info("left")
    return EXIT_OK


@contextlib.contextmanager
def _ready(file: Path | None, endpoints: list[str]) -> Iterator[None]:
    """Keep the endpoints in ``file`` as long as the broker takes messages."""
    if file is None:
        yield
        return
    if not file.name:
        raise StartError(f"ready file {file}: that is no file's name")
    # Whoever waits for the file finds it whole: it appears under its name only when written.
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        draft.write_text("".join(f"{each}\n" for each in endpoints), encoding="utf-8")
        draft.replace(file)
    except OSError as error:
        raise StartError(f"ready file {file}: {error.strerror or error}") from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


class _Signals:
    """Takes the process's signals in a thread of its own, so that none interrupts the loop.

    The signals are blocked in every other thread, and stay so until the process ends: one that
    comes when all is done already must not spoil its exit code. Those that arrive before there is
    a server (a large store takes seconds to load) take effect as soon as there is one.
    """

    def __init__(self, config: Config, reload: Callable[[], Config] | None) -> None:
        self._config = config
        """What the server runs with at present."""
        self._reload = reload
        self._lock = threading.Lock()
        self._server: Server | None = None
        """Set once the server stands."""
        self._drains = 0
        """How many signals to leave have come."""

    def take(self) -> None:
        """Start to take signals; before any other thread starts, which would not block them."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        threading.Thread(target=self._take, name="signals", daemon=True).start()

    def watch(self, server: Server) -> None:
        """Hand on to ``server`` what comes from now on, and what has come already."""
        with self._lock:
            self._server = server
            for _ in range(self._drains):
                server.drain()

    def _take(self) -> None:
        while True:
            number = signal.sigwait(WATCHED)
            with self._lock:
                if number in ENDING:
                    self._leave(signal.Signals(number).name)
                else:
                    self._read_again()

    def _leave(self, name: str) -> None:
        self._drains += 1
        if self._drains == 1:
            log.info("told to leave", signal=name, drain=self._config.drain)
        else:
            log.info("told to leave at once", signal=name)
        if self._server is not None:
            self._server.drain()

    def _read_again(self) -> None:
        if self._reload is None or self._server is None:
            log.warning("nothing to reload", signal="SIGHUP")
            return
        try:
            config, needs_restart = reloaded(self._config, self._reload())
            self._server.reload(config)
        except ConfigError as error:
            log.error("configuration not reloaded", error=str(error))
            return
        if needs_restart:
            log.warning("settings that only a restart changes", settings=needs_restart)
        logs.set_up(config.log_level, config.log_format)
        self._config = config
        log.info("configuration reloaded")
