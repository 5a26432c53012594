"""All commands together, and what becomes of their errors."""

import io
import os
import sys
from collections.abc import Sequence

import click

from broker import __version__
from broker.cli import EXIT_INTERRUPTED, jobs, keys, processes, streams
from broker.cli.options import (
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    CommandError,
    Invocation,
    asks_for_json,
    help_if_alone,
)
from broker.config import ConfigError
from worker_sdk import BrokerUnreachable, InvalidRequest, PointsmanError
from worker_sdk.keys import KeyFileError

TRACEBACK_VARIABLE = "POINTSMAN_TRACEBACK"
"""Set to anything, an error that nobody foresaw is shown with where it comes from."""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="pointsman")
@click.pass_context
def cli(context: click.Context) -> None:
    """A brokered job queue: jobs wait for other jobs, workers get each the moment it is ready."""
    help_if_alone(context)


for command in (*processes.COMMANDS, *jobs.COMMANDS, keys.keys):
    cli.add_command(command)


def carry_out(arguments: Sequence[str]) -> int:
    """Carry out a command line; its exit code, after any error was told on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    invocation = Invocation(as_json=asks_for_json(arguments))
    try:
        code = cli.main(
            list(arguments), prog_name="pointsman", standalone_mode=False, obj=invocation
        )
        sys.stdout.flush()
    except BrokenPipeError:
        streams.forget(sys.stdout)
        return EXIT_REFUSED
    except streams.OutputError as error:
        streams.forget(sys.stdout)
        invocation.tell_error(f"stdout: {error.strerror}", code="output")
        return EXIT_REFUSED
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        invocation.tell_error(error.format_message(), where=where or "pointsman", code="usage")
        return EXIT_USAGE
    except ConfigError as error:
        invocation.tell_error(str(error), code="configuration")
        return EXIT_USAGE
    except BrokerUnreachable as error:
        invocation.tell_error(str(error), code="unreachable")
        return EXIT_UNREACHABLE
    except KeyFileError as error:
        invocation.tell_error(str(error), code=error.code)
        return EXIT_USAGE
    except PointsmanError as error:
        invocation.tell_error(str(error), code=error.code, ids=error.ids)
        return EXIT_USAGE if isinstance(error, InvalidRequest) else EXIT_REFUSED
    except CommandError as error:
        invocation.tell_error(str(error), code=error.code, ids=error.ids)
        return EXIT_REFUSED
    except (KeyboardInterrupt, click.Abort):
        invocation.tell_error("interrupted", code="interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:  # a fault of the program's own
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        message = f"{type(error).__name__}: {error} (unforeseen; {TRACEBACK_VARIABLE}=1 shows more)"
        invocation.tell_error(message, code="internal")
        return EXIT_REFUSED
    return code if isinstance(code, int) else 0
