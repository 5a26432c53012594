"""Every setting of the broker, once: its name, default, unit, range and meaning.

The fields of `Config` are the table; all else here reads it. A value may come from a TOML file,
an environment variable (``POINTSMAN_<NAME>``, but for `OTHER_VARIABLES`) or a flag; a flag wins
over the environment, the environment over the file, the file over the default. Each value is
checked where it comes in, and a wrong one is refused by an error that names the setting, the
source, the value and what would be right.
"""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.kinds import (
    Choice,
    Count,
    Duration,
    Endpoints,
    FileMode,
    FilePath,
    Kind,
    Size,
    StoreUrl,
    Switch,
)
from worker_sdk.messages import DEFAULT_ENDPOINT, DEFAULT_MESSAGE_LIMIT_BYTES

ENVIRONMENT_PREFIX = "POINTSMAN_"
CONFIG_VARIABLE = "POINTSMAN_CONFIG"
OTHER_VARIABLES = {"key": "POINTSMAN_SERVER_KEY"}
"""Settings whose variable has another name: theirs is a client's."""
NOT_SETTINGS = frozenset(
    {CONFIG_VARIABLE, "POINTSMAN_BROKER", "POINTSMAN_KEY", "POINTSMAN_BROKER_KEY"}
)
"""Variables with the prefix that mean something else: the file, and whom clients find where, with
which key.
"""


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it, its source and what would be right."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one setting besides its default."""

    name: str
    kind: Kind
    meaning: str
    reload: bool
    """Whether SIGHUP can change it while the broker runs."""

    @property
    def flag(self) -> str:
        """The flag of ``pointsman serve`` that sets it."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return OTHER_VARIABLES.get(self.name, ENVIRONMENT_PREFIX + self.name.upper())


def _setting(default: object, kind: Kind, meaning: str, *, reload: bool = True) -> Any:
    """A field of `Config` that carries its own documentation and checks."""
    return field(default=default, metadata={"kind": kind, "meaning": meaning, "reload": reload})


@dataclass(frozen=True, slots=True)
class Config:
    """The broker's settings, checked: seconds, bytes and counts as plain numbers."""

    bind: tuple[str, ...] = _setting(
        (DEFAULT_ENDPOINT,),
        Endpoints(),
        "the endpoints to listen on; port * lets the system choose one",
        reload=False,
    )
    key: str = _setting(
        "",
        FilePath(),
        "the broker's secret key; with it, only keys of the policy can connect, encrypted "
        "(in the environment: POINTSMAN_SERVER_KEY)",
        reload=False,
    )
    policy: str = _setting(
        "",
        FilePath(),
        "which key may do what; goes together with key",
    )
    allow_unencrypted_network: bool = _setting(
        False,
        Switch(),
        "listen beyond this machine without keys: whoever reaches the port may do and read all",
        reload=False,
    )
    ipc_mode: int = _setting(
        0o600,
        FileMode(),
        "who may connect to ipc endpoints: the mode of their socket files",
        reload=False,
    )
    store: str = _setting(
        "sqlite:pointsman.db",
        StoreUrl(),
        "where jobs are kept",
        reload=False,
    )
    heartbeat_limit: float = _setting(
        10.0,
        Duration(0.05, 3600),
        "a worker that is silent for longer than this loses its jobs",
    )
    grace: float = _setting(
        10.0,
        Duration(0, 3600),
        "how long after a restart running attempts wait for their workers to claim them",
        reload=False,
    )
    retention: float = _setting(
        86_400.0,
        Duration(0, 10 * 365 * 86_400),
        "how long an ended job is kept",
    )
    max_ended: int = _setting(
        1_000_000,
        Count(0, 1_000_000_000),
        "how many ended jobs are kept at most; the oldest go first",
    )
    max_jobs: int = _setting(
        5_000_000,
        Count(1, 1_000_000_000),
        "how many live jobs there may be; beyond, enqueue is answered with busy",
    )
    max_bytes: int = _setting(
        4 * 1024**3,
        Size(1024, 1024**5),
        "how much the args of live jobs may take; beyond, enqueue is answered with busy",
    )
    max_message: int = _setting(
        DEFAULT_MESSAGE_LIMIT_BYTES,
        Size(1024, 1024**3),
        "the largest message that is taken",
        reload=False,
    )
    max_workers: int = _setting(
        10_000,
        Count(1, 1_000_000),
        "how many workers may be connected at a time",
    )
    max_waits: int = _setting(
        100_000,
        Count(1, 10_000_000),
        "how many requests may wait for jobs to end at a time, for ten jobs each on average",
    )
    max_queued: int = _setting(
        256 * 1024**2,
        Size(1024**2, 1024**5),
        "how much memory messages may take that came in and were not read, or went out and were "
        "not taken; beyond, the connections that hold the most are cut off (tcp, on Linux)",
    )
    inputs_limit: int = _setting(
        1024**2,
        Size(0, 1024**3),
        "how many bytes of its dependencies' results a job is dispatched with; "
        "beyond, its worker fetches them",
    )
    drain: float = _setting(
        10.0,
        Duration(0, 86_400),
        "how long running jobs may go on after SIGTERM before the broker leaves",
    )
    busy_poll: float = _setting(
        0.0005,
        Duration(0, 0.1),
        "how long the broker waits awake for the next message while messages come in as short a "
        "time; 0 lets it sleep at once",
        reload=False,
    )
    log_level: str = _setting(
        "info",
        Choice("debug", "info", "warning", "error"),
        "the least important events that are logged",
    )
    log_format: str = _setting(
        "auto",
        Choice("auto", "human", "json"),
        "how events are logged; auto is human on a terminal, else JSON lines",
    )

    def __post_init__(self) -> None:
        """Check each value, so that a Config made by hand is as sound as a loaded one."""
        for setting in settings():
            value = _checked(setting, getattr(self, setting.name), "argument")
            object.__setattr__(self, setting.name, value)


def settings() -> Iterator[Setting]:
    """Every setting, in the order of the table."""
    for each in dataclasses.fields(Config):
        yield Setting(each.name, **each.metadata)


def load(
    flags: Mapping[str, object] | None = None,
    *,
    file: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """The configuration from all of its sources; raises ConfigError for the first wrong value.

    ``flags`` maps names of settings to values, None standing for a flag that was not given.
    Without ``file``, the environment's POINTSMAN_CONFIG names it, if it is set.
    """
    env = os.environ if environment is None else environment
    path = file if file is not None else env.get(CONFIG_VARIABLE) or None
    values: dict[str, object] = {}
    if path is not None:
        values |= _from_file(Path(path))
    values |= _from_environment(env)
    values |= _from_flags(flags or {})
    return Config(**values)  # type: ignore[arg-type]


def reloaded(running: Config, new: Config) -> tuple[Config, list[str]]:
    """What a running broker can take over from ``new``, and the names that need a restart."""
    fixed = [setting.name for setting in settings() if not setting.reload]
    changed = [name for name in fixed if getattr(new, name) != getattr(running, name)]
    return dataclasses.replace(new, **{name: getattr(running, name) for name in fixed}), changed


def describe() -> str:
    """The table of settings as Markdown, for the documentation."""
    rows = ["| setting | default | values | reload | meaning |", "| --- | --- | --- | --- | --- |"]
    for each in dataclasses.fields(Config):
        setting = Setting(each.name, **each.metadata)
        reload = "yes" if setting.reload else "no"
        default = setting.kind.show(each.default)
        rows.append(
            f"| `{setting.name}` | `{default}` | {setting.kind.right} | {reload} | "
            f"{setting.meaning} |"
        )
    return "\n".join(rows) + "\n"


def show(config: Config) -> dict[str, str]:
    """Each setting's value as a person would write it."""
    return {each.name: each.kind.show(getattr(config, each.name)) for each in settings()}


def _checked(setting: Setting, value: object, source: str) -> object:
    try:
        return setting.kind.parse(value)
    except ValueError as error:
        reason = f" ({error})" if str(error) else ""
        raise ConfigError(
            f"{setting.name} ({source}): {_shown(value)} is not right{reason}; "
            f"it must be {setting.kind.right}"
        ) from None


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # Python does not write numbers of thousands of digits
        return "a number so long"


def _from_file(path: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # broken text, or thousands of digits
        raise ConfigError(f"configuration file {path} is not TOML: {error}") from None
    known = {setting.name: setting for setting in settings()}
    values: dict[str, object] = {}
    for name, value in table.items():
        if name not in known:
            raise ConfigError(f"configuration file {path}: {_unknown(name, list(known))}")
        values[name] = _checked(known[name], value, f"file {path}")
    return values


def _from_environment(env: Mapping[str, str]) -> dict[str, object]:
    """The settings among the environment's variables; an empty one counts as not set.

    A name that is nearly a setting's is refused as a slip of the pen. Others are left alone:
    Kubernetes, for one, gives every container POINTSMAN_PORT beside a service of that name.
    """
    known = {setting.variable: setting for setting in settings()}
    values: dict[str, object] = {}
    for variable, text in env.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in NOT_SETTINGS or not text:
            continue
        if variable in known:
            values[known[variable].name] = _checked(
                known[variable], text, f"environment variable {variable}"
            )
        elif difflib.get_close_matches(variable, known, cutoff=0.85):
            raise ConfigError(f"environment: {_unknown(variable, list(known))}")
    return values


def _from_flags(flags: Mapping[str, object]) -> dict[str, object]:
    known = {setting.name: setting for setting in settings()}
    values: dict[str, object] = {}
    for name, value in flags.items():
        if value is None or value == ():
            continue
        if name not in known:
            raise ConfigError(_unknown(name, list(known)))
        values[name] = _checked(known[name], value, f"flag {known[name].flag}")
    return values


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; the settings are {', '.join(known)}"
    return f"there is no setting {name}{hint}"
