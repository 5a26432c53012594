"""The command ``pointsman``, for people and scripts.

Exit codes: 0 done; 1 a job failed or was canceled, or what was asked for was refused; 2 usage,
a wrong configuration among it; 3 no broker reachable. An error is one line on stderr that names
the culprit.
"""

import sys
from collections.abc import Sequence

from broker.cli import streams

EXIT_INTERRUPTED = 130
"""What shells give for a program that Ctrl-C ended."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    streams.set_up()
    code = run(arguments)
    # Else the interpreter tries once more at its end, and leaves with a code of its own.
    streams.flush_or_forget(sys.stdout)
    streams.flush_or_forget(sys.stderr)
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code, after any error was told on stderr."""
    try:
        # Here, because it takes a while: an interrupt meanwhile is told like a later one.
        from broker.cli.commands import carry_out

        return carry_out(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:
        sys.stderr.write("pointsman: error: interrupted\n")
        return EXIT_INTERRUPTED
