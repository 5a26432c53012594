"""How the core says no: an error that its sender caused, with the code that goes on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.core.nesting import LEVELS_MOST

_SHOWN_MOST = 5


class Refused(Exception):
    """A request is not carried out; `ids` are the jobs at fault, if the fault is one of jobs.

    If they are not all at fault in the same way, `codes` has the code of each. `recorded` are
    those that are refused because the very same was taken before.
    """

    def __init__(
        self,
        code: str,
        message: str,
        ids: Sequence[str] = (),
        codes: Sequence[str] = (),
        recorded: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.ids = tuple(ids)
        self.codes = tuple(codes)
        self.recorded = tuple(recorded)


def listed(ids: Sequence[str]) -> str:
    """Give ids for a message: all of a few, the first of many."""
    shown = ", ".join(ids[:_SHOWN_MOST])
    more = len(ids) - _SHOWN_MOST
    return f"{shown} and {more} more" if more > 0 else shown


class Faults:
    """All that is wrong with a request: which jobs, each with its code, and why."""

    def __init__(self) -> None:
        self._codes: dict[str, str] = {}
        self._absent: dict[str, None] = {}
        self._texts: dict[str, None] = {}

    def blame(self, code: str, ids: Sequence[str], text: str) -> None:
        """Add jobs that are at fault in one way; of what is wrong with one job the first counts."""
        for id in ids:
            self._codes.setdefault(id, code)
        if len(self._texts) < _SHOWN_MOST:
            self._texts[text] = None

    def blame_dependency(self, job_id: str, id: str) -> None:
        """Add a job whose dependency does not exist, and that dependency."""
        self.blame("not_exist", [job_id], f"job {job_id}: dependency {id} does not exist")
        self._absent[id] = None

    def refuse_if_any(self) -> None:
        """Raise the one refusal for all of them, if there are any."""
        if self._codes:
            named = {**dict.fromkeys(self._absent, "not_exist"), **self._codes}
            ids = tuple(dict.fromkeys([*self._codes, *self._absent]))
            codes = [named[id] for id in ids]
            several = codes if len(set(codes)) > 1 else ()
            raise Refused(codes[0], "; ".join(self._texts), ids, several)


def not_exist(ids: Sequence[str]) -> Refused:
    """Give the refusal for unknown jobs, each named once."""
    ids = list(dict.fromkeys(ids))
    if len(ids) == 1:
        return Refused("not_exist", f"job {ids[0]} does not exist", ids)
    return Refused("not_exist", f"jobs do not exist: {listed(ids)}", ids)


ASTRAY = {
    "not_running": "this attempt is not running on this worker",
    "not_exist": "does not exist",
    "canceled": "was canceled",
    "invalid": f"its result is nested deeper than {LEVELS_MOST} levels",
}
"""What is wrong with what a worker says of an attempt, by code."""


def astray(codes: Mapping[str, str], recorded: Sequence[str] = ()) -> Refused:
    """Give the refusal of what a worker said of attempts, each with its code."""
    code, *others = dict.fromkeys(codes.values())
    text = "; ".join(
        f"job {listed([id for id in codes if codes[id] == each])}: {ASTRAY[each]}"
        for each in (code, *others)
    )
    several = tuple(codes.values()) if others else ()
    return Refused(code, text, tuple(codes), several, recorded)
