"""The commands that run something: a broker, a worker, the demo.

What they run is imported only when they do, so that the other commands start quickly.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from broker import log as logs
from broker.cli.options import (
    CommandError,
    Invocation,
    endpoint,
    json_option,
    key_options,
    signed,
)
from broker.cli.output import write_json
from broker.config import Config, load, settings, show
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
from worker_sdk import Worker
from worker_sdk.handlers import Misuse
from worker_sdk.messages import DEFAULT_ENDPOINT


def _settings_as_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``serve`` a flag for each setting of the table."""
    defaults = show(Config())
    for setting in reversed(list(settings())):
        several = setting.name == "bind"
        command = click.option(
            setting.flag,
            metavar=_metavar(setting.kind),
            multiple=several,
            is_flag=isinstance(setting.kind, Switch),
            default=None,
            help=f"{setting.meaning[0].upper()}{setting.meaning[1:]}."
            f"{' Repeatable.' if several else ''}  [default: {defaults[setting.name]}]",
        )(command)
    return command


def _metavar(kind: Kind) -> str | None:
    """What stands for the values of a kind in the help; None for a flag that takes none."""
    if isinstance(kind, Choice):
        return f"[{'|'.join(kind.words)}]"
    names: dict[type, str | None] = {
        Count: "NUMBER",
        Duration: "TIME",
        Endpoints: "URL",
        FileMode: "MODE",
        FilePath: "FILE",
        Size: "SIZE",
        StoreUrl: "memory|sqlite:PATH",
        Switch: None,
    }
    return names.get(type(kind), "VALUE")


@click.command()
@click.option("--config", metavar="FILE", help="A TOML file of settings (also: POINTSMAN_CONFIG).")
@_settings_as_flags
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the bound endpoints to FILE, one a line, as soon as the broker takes "
    "messages; removed at the end.",
)
@click.option("--check", is_flag=True, help="Check the settings, write them, and leave.")
@json_option
def serve(
    config: str | None, ready_file: Path | None, check: bool, as_json: bool, **flags: object
) -> int:
    """Run a broker until SIGTERM or Ctrl-C.

    A flag wins over the environment (POINTSMAN_<NAME>), which wins over the file. SIGHUP reads
    the settings again. --json makes the log JSON lines, and what --check writes one object. Exit
    codes: 0 left when told to, 1 could not start or had to stop, 2 wrong settings.
    """
    if as_json and flags.get("log_format") is None:
        flags["log_format"] = "json"
    for setting in settings():
        flags[setting.name] = signed(setting.kind, flags[setting.name])

    def read() -> Config:
        return load(flags, file=config)

    settled = read()

    from broker import daemon

    if check:
        daemon.check(settled)
        _write_settings(settled, as_json=as_json)
        return 0
    try:
        return daemon.serve(settled, reload=read, ready_file=ready_file)
    except daemon.StartError as error:
        raise CommandError(str(error), "start") from error


def _write_settings(config: Config, *, as_json: bool) -> None:
    """Write each setting: as a line for people, for programs as seconds, bytes and counts."""
    shown = show(config)
    if as_json:
        modes = {each.name for each in settings() if isinstance(each.kind, FileMode)}
        plain = {name: getattr(config, name) for name in shown if name not in modes}
        write_json(shown | plain)
        return
    for name, value in shown.items():
        click.echo(f"{name} = {value}")


@click.command(short_help="Run a worker from your code.")
@click.argument("target", metavar="MODULE:WORKER")
@click.option(
    "--broker",
    type=endpoint,
    metavar="URL",
    help="The broker's endpoint; left out, the one that the code names, else POINTSMAN_BROKER, "
    f"else {DEFAULT_ENDPOINT}.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least important events to log.",
)
@key_options
@json_option
def worker(target: str, broker: str | None, log_level: str, as_json: bool) -> None:
    """Run the worker that stands in MODULE under the name WORKER (left out: worker).

    MODULE is looked for in the working directory too. Ctrl-C or SIGTERM: it finishes what it
    holds within its grace time, hands back the rest, and leaves.
    """
    logs.set_up(log_level, "json" if as_json else "auto", above="")  # the user's own logs too
    sys.path.insert(0, os.getcwd())
    found = find_worker(target)
    if broker is not None:
        found.endpoint = broker
    invocation = click.get_current_context().find_object(Invocation) or Invocation()
    found.key = invocation.key or found.key
    found.broker_key = invocation.broker_key or found.broker_key
    try:
        found.run()
    except Misuse as error:
        raise click.UsageError(f"{target}: {error}") from None


def find_worker(target: str) -> Worker:
    """The Worker that ``MODULE:WORKER`` names; raises CommandError saying what is wrong."""
    module_name, colon, path = target.partition(":")
    path = path if colon else "worker"
    if not all(each.isidentifier() for each in [*module_name.split("."), *path.split(".")]):
        raise click.BadParameter(f"{target!r} is not MODULE:WORKER", param_hint="MODULE:WORKER")
    found: object = _import(module_name)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise CommandError(f"module {module_name} has no {path}") from None
    if not isinstance(found, Worker):
        kind = type(found).__name__
        raise CommandError(f"{module_name}:{path} is no worker_sdk.Worker but a {kind}")
    return found


def _import(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise CommandError(
                f"there is no module {name} in {os.getcwd()} or where Python looks for modules"
            ) from None
        raise CommandError(_why_not_imported(name, error)) from None
    except SystemExit as error:
        raise CommandError(f"module {name} left with {error.code!r} when imported") from None
    except Exception as error:  # noqa: BLE001 - the user's own code: whatever it raises, it is told
        raise CommandError(_why_not_imported(name, error)) from None


def _why_not_imported(name: str, error: Exception) -> str:
    """What happened when a module was imported, and on which line of its file or of another."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen ") and frame.filename != importlib.__file__
    ]
    place = ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}, line {error.lineno})"
        return f"module {name} cannot be imported: {type(error).__name__}: {error.msg}{place}"
    if len(frames) > 1:  # the first is this program's own
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})"
    return f"module {name} cannot be imported: {type(error).__name__}: {error}{place}"


@click.command(short_help="Run a real graph of jobs, and check the outcome.")
@click.argument(
    "folder",
    required=False,
    type=click.Path(exists=True, file_okay=False),
    metavar="[FOLDER]",
)
@click.option(
    "--kill",
    is_flag=True,
    help="Halfway, kill the broker and a worker with SIGKILL, and start them again.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="How many worker processes to run.",
)
@json_option
def demo(folder: str | None, kill: bool, workers: int, as_json: bool) -> None:
    """Compute the Merkle tree of FOLDER as one graph of jobs, and check the outcome.

    FOLDER is Python's own standard library if left out. It runs a broker and workers of its own,
    in a temporary folder, and leaves nothing behind. Exit code 1 on any difference.
    """
    from broker.demo.main import DemoError, run_demo

    try:
        outcome = run_demo(folder, kill=kill, workers=workers, as_json=as_json)
    except DemoError as error:
        raise CommandError(str(error), "demo") from error
    if as_json:
        write_json(outcome)


COMMANDS: tuple[click.Command, ...] = (serve, worker, demo)
