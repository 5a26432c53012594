"""How far the demo has come, on a terminal; elsewhere nothing."""

import sys
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """A bar on stderr, if that is a terminal."""

    def __init__(self, total: int) -> None:
        self._bar = Bar(
            TextColumn("Running"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task("jobs", total=total)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, finished: int) -> None:
        """Move the bar to where ``finished`` jobs are done."""
        self._bar.update(self._task, completed=finished)

    def say(self, text: str, write: Callable[[str], None]) -> None:
        """Write a line with ``write`` while the bar stands below."""
        self._bar.stop()
        write(text)
        self._bar.start()
