"""``python -m tests.fuzz --cases 1000000 [--seed N] [--only codec]``: a long run.

Prints for each target how many cases, how fast, what came of them, and by how much the process
grew from a tenth of the run to its end. A failure prints the seed of its case.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.fuzz import targets

TURNS_A_WALK = 100_000
"""After so many turns the engine starts anew, with another seed."""
RESTARTS = 0.0005
"""Few: a core that is dropped keeps some memory, as its jobs are not the garbage collector's."""


def engine_cases(seed: int) -> Callable[[random.Random], str]:
    """Give the function that carries out one turn of a walk that goes on from call to call."""
    walks = {"turn": 0, "walk": targets.FuzzEngine(seed, restarts=RESTARTS)}

    def one(rng: random.Random) -> str:
        walk, turn = walks["walk"], walks["turn"]
        assert isinstance(walk, targets.FuzzEngine)
        assert isinstance(turn, int)
        if turn >= TURNS_A_WALK:
            walk.stop()
            walk.store.close()
            walk = walks["walk"] = targets.FuzzEngine(rng.randrange(2**32), restarts=RESTARTS)
            turn = 0
        walks["turn"] = turn + 1
        walk.turn(rng, rng.choice((0, 1, 1, 2, 5)))
        if turn % 20 == 0:
            walk.check()
        return "turn"

    return one


def rss_bytes() -> int:
    """Give the size of this process in memory; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--cases", type=int, default=100_000, help="in all, over the targets")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", choices=("codec", "sdk", "engine", "config", "cli"))
    given = parser.parse_args()
    folder = targets.config_folder()
    # Each with its share of the cases.
    shares: dict[str, tuple[float, Callable[[random.Random], str]]] = {
        "codec": (0.4, targets.fuzz_codec),
        "sdk": (0.15, targets.fuzz_sdk),
        "engine": (0.35, engine_cases(given.seed)),
        "config": (0.05, lambda rng: targets.fuzz_config(rng, folder)),
        "cli": (0.05, targets.fuzz_cli),
    }
    for name, (share, one) in shares.items():
        if given.only in (None, name):
            cases = given.cases if given.only else round(given.cases * share)
            _run(name, one, cases, given.seed)
    return 0


def _run(name: str, one: Callable[[random.Random], str], cases: int, seed: int) -> None:
    came: Counter[str] = Counter()
    began = time.monotonic()
    early = rss_bytes()
    slowest_s = 0.0
    for case in range(cases):
        if case == cases // 10:
            early = rss_bytes()
        case_began = time.monotonic()
        try:
            came[one(random.Random(f"{seed}-{case}"))] += 1
        except BaseException as error:
            error.add_note(f"{name}: case {case} of seed {seed}: random.Random('{seed}-{case}')")
            raise
        slowest_s = max(slowest_s, time.monotonic() - case_began)
    took_s = time.monotonic() - began
    grew_mib = (rss_bytes() - early) / 2**20
    sys.stdout.write(
        f"{name}: {cases} cases in {took_s:.0f} s, {cases / took_s:.0f}/s, slowest "
        f"{slowest_s * 1000:.0f} ms; grew by {grew_mib:.1f} MiB; {dict(came)}\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
