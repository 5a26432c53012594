"""``python -m tests.crash --cycles 500 [--seed N] [--round 25]``: hundreds of crashes.

Prints a line a round, and one at the end; the exit code is 0 if nothing was wrong. The files of a
round in which something was wrong are kept.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.scenario import Report, play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--cycles", type=int, default=100, help="faults in all")
    parser.add_argument("--round", type=int, default=25, help="faults between two audits")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    began = time.monotonic()
    total = Report()
    seed = given.seed
    while total.faults.total() < given.cycles:
        folder = Path(tempfile.mkdtemp(prefix="pointsman-crash-"))
        cycles = min(given.round, given.cycles - total.faults.total())
        report = play(folder, seed, cycles)
        _say(f"seed {seed}: {report.line()}")
        for wrong in report.wrong[:10]:
            _say(f"  {wrong}")
        if report.wrong:
            _say(f"  files: {folder}")
        else:
            shutil.rmtree(folder)
        total.add(report)
        seed += 1
    _say(f"in all, in {time.monotonic() - began:.0f} s: {total.line()}")
    return 1 if total.wrong else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
