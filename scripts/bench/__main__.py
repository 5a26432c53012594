"""``python -m scripts.bench``: measure, and write bench.md, bench.json, bench.png and bench.svg."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from scripts.bench import peers, plot, report
from scripts.bench.figures import Figure
from scripts.bench.setting import QUICK, Setting, Sizes
from scripts.bench.workloads import WORKLOADS

BUSY_LOAD = 0.5
"""Above this load others use the machine too, and times are theirs as well."""


def _chosen(text: str | None) -> list[str]:
    names = [name.strip().upper() for name in text.split(",")] if text else list(WORKLOADS)
    for name in names:
        if name not in WORKLOADS:
            raise click.BadParameter(
                f"{name} is none of {', '.join(WORKLOADS)}", param_hint="--only"
            )
    return names


@click.command()
@click.option("--quick", is_flag=True, help="Small and in seconds: only shows that it works.")
@click.option("--only", metavar="W1,W2,…", help="Only these workloads.")
@click.option("--repeat", type=click.IntRange(1, 100), help="Repetitions.  [default: 3; quick: 1]")
@click.option(
    "--store",
    type=click.Choice(["memory", "sqlite"]),
    multiple=True,
    help="Only this store. Repeatable.",
)
@click.option(
    "--transport",
    type=click.Choice(["tcp", "ipc"]),
    multiple=True,
    help="Only this transport. Repeatable.",
)
@click.option("--peers", "with_peers", is_flag=True, help="Measure other job queues too.")
@click.option("--peer", metavar="NAME,…", help="Only these of them.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bench-results"),
    show_default=True,
    help="Where table, JSON and plot go.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where stores are made, on the disk that counts.  [default: the temporary folder]",
)
def main(
    quick: bool,
    only: str | None,
    repeat: int | None,
    store: tuple[str, ...],
    transport: tuple[str, ...],
    with_peers: bool,
    peer: str | None,
    out: Path,
    folder: Path | None,
) -> None:
    """Measure Pointsman beside raw ZeroMQ, the disk and, with --peers, its peers."""
    began, load = datetime.now(UTC).isoformat(timespec="seconds"), os.getloadavg()
    if load[0] > BUSY_LOAD and not quick:
        click.echo(f"this machine is busy (load {load[0]:.1f}): figures will be too low", err=True)
    names = _chosen(only)
    competing = peers.installed(peer.split(",") if peer else None) if with_peers or peer else []
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="pm-bench-", dir=folder) as place:
        setting = Setting(
            folder=Path(place),
            sizes=QUICK if quick else Sizes(),
            stores=store or ("memory", "sqlite"),
            transports=transport or (("tcp",) if quick else ("tcp", "ipc")),
        )
        repetitions = repeat or (1 if quick else 3)
        for number in range(1, repetitions + 1):
            click.echo(f"repetition {number} of {repetitions}", err=True)
            for figure in _repetition(setting, names, competing):
                figures.append(figure)
    found = report.rows(sorted(figures, key=lambda each: each.workload not in ("relay", "disk")))
    notes = {each.NAME: each.DIFFERS for each in competing}
    _write(found, report.as_json(found, notes, began, load), notes, out)


def _repetition(
    setting: Setting, names: list[str], competing: list[peers.Peer]
) -> Iterator[Figure]:
    for name in names:
        for workload in WORKLOADS[name]:
            began = time.monotonic()
            for figure in workload(setting):
                _echo(figure)
                yield figure
            yield from setting.take_limits()
            click.echo(f"{name} took {time.monotonic() - began:.1f} s", err=True)
    for peer in competing:
        for figure in peer.measure(setting):
            _echo(figure)
            yield figure


def _echo(figure: Figure) -> None:
    value = report.number(figure.value)
    click.echo(f"  {figure.workload}: {figure.case}: {value} {figure.unit}", err=True)


def _write(found: list[report.Row], whole: str, notes: dict[str, str], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    table = report.table(found)
    (out / "bench.md").write_text(table, encoding="utf-8")
    (out / "bench.json").write_text(whole, encoding="utf-8")
    drawn = plot.draw(found, out)
    click.echo(table)
    for name, text in notes.items():
        click.echo(f"{name}: {text}")
    shown = ", ".join(path.name for path in [Path("bench.md"), Path("bench.json"), *drawn])
    click.echo(f"written to {out}: {shown}")


if __name__ == "__main__":
    # As Ctrl-C does: so that all processes that were started are ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    main()
