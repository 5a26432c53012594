"""The benchmark works: nothing here says anything about speed."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from scripts.bench import __main__ as command
from scripts.bench import graphs, latency, peers, plot, raw, report, throughput, trip
from scripts.bench.figures import Figure, at_least, at_most
from scripts.bench.processes import ChildFailed, CpuMeter, Say, memory_bytes, run, start
from scripts.bench.setting import Setting, Sizes
from scripts.bench.statistics import Spread, median, percentile, spread
from scripts.bench.workloads import Workload

TINY = Sizes(
    single_jobs=50,
    bulk_jobs=100,
    trips=5,
    chain_jobs=5,
    fan_jobs=10,
    raw_jobs=50,
    raw_trips=5,
    syncs=2,
)


@pytest.fixture
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("b")
    return Setting(folder, TINY, stores=("memory",), transports=("tcp",))


# ---- statistics --------------------------------------------------------------------------------


def test_median_of_an_even_number_of_values_is_between_the_middle_ones() -> None:
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert median([3.0, 1.0, 2.0]) == 2.0


def test_percentile_is_a_value_that_occurred() -> None:
    values = [float(each) for each in range(100, 0, -1)]

    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile(values, 100) == 100
    assert percentile([7.0], 99) == 7.0


def test_spread_gives_both_ends() -> None:
    assert spread([3.0, 1.0, 9.0]) == Spread(3.0, 1.0, 9.0, 3)


def test_no_values_have_no_statistics() -> None:
    with pytest.raises(ValueError, match="no values"):
        median([])
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


# ---- report ------------------------------------------------------------------------------------


def rate(value: float, raw_rate: float, factor: float = 1.0) -> Figure:
    return Figure(
        workload="W1 single",
        case="memory, tcp",
        unit="jobs/s",
        value=value,
        raw=raw_rate,
        framewise=2 * raw_rate,
        bar=at_least(factor, raw_rate),
        details={"broker main us": value / 10},
    )


def test_ratio_is_the_median_of_each_repetitions_own() -> None:
    # The machine was three times slower in the second repetition, which must not show.
    (row,) = report.rows([rate(300, 200), rate(100, 66), rate(310, 200)])

    assert row.value == Spread(300, 100, 310, 3)
    assert row.ratio == pytest.approx(100 / 66)
    assert row.framewise_ratio == pytest.approx(50 / 66)
    assert row.details == {"broker main us": 30}


def test_bar_of_a_rate_is_reached_from_below() -> None:
    assert report.rows([rate(100, 100)])[0].reached
    assert not report.rows([rate(99, 100)])[0].reached


def test_bar_of_a_time_is_reached_from_above() -> None:
    bar = at_most(2, 100, plus=50, text=" + 2.5 syncs")

    assert bar.text == "<= 2 x raw + 2.5 syncs"
    assert bar.share(250 / bar.allowed) == 1.0
    assert bar.share(500 / bar.allowed) == 0.5


def test_verdict_follows_from_the_same_median_as_the_ratio() -> None:
    runs = [
        Figure(workload="W3", case="a hop", unit="us", value=us, raw=100, bar=at_most(1.5, 100))
        for us in (100, 260)
    ]

    (row,) = report.rows(runs)

    assert row.ratio == pytest.approx(1.8)
    assert not row.reached


def test_row_without_a_bar_reaches_nothing() -> None:
    (row,) = report.rows([Figure(workload="disk", case="sync", unit="us", value=90)])

    assert row.reached is None
    assert "reached" not in report.table([row])


def test_table_names_what_is_missing() -> None:
    lines = report.table(report.rows([rate(50, 100), rate(60, 100)])).splitlines()

    assert len({len(line) for line in lines}) == 1
    assert "W1 single" in lines[2]
    assert "50 - 60" in lines[2]
    assert "55% of it" in lines[2]


def test_json_has_rows_and_environment() -> None:
    found = report.rows([rate(300, 200)])

    whole = json.loads(report.as_json(found, {"a peer": "differs"}, "2025-01-01", (0.1, 0.2, 0.3)))

    assert whole["rows"][0]["reached"] is True
    assert whole["rows"][0]["value"]["median"] == 300
    assert whole["environment"]["libzmq"]
    assert whole["peers"] == {"a peer": "differs"}


def test_plot_is_left_out_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert plot.draw(report.rows([rate(300, 200)]), tmp_path) == []


def test_plot_is_written_as_png_and_svg(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    paths = plot.draw(report.rows([rate(300, 200), rate(310, 200)]), tmp_path)

    assert [path.suffix for path in paths] == [".png", ".svg"]
    assert all(path.stat().st_size > 1000 for path in paths)


# ---- processes ---------------------------------------------------------------------------------


def fail(say: Say) -> None:
    raise RuntimeError("as intended")


def test_child_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="as intended"):
        run("tests.test_bench:fail", tmp_path)


def test_what_a_process_uses_is_seen(tmp_path: Path) -> None:
    with start(
        "scripts.bench.raw:relay", tmp_path, endpoint="tcp://127.0.0.1:*", multipart=False
    ) as child:
        child.hear()
        meter = CpuMeter(relay=child.pid)

        assert memory_bytes(child.pid) > 1_000_000
        assert set(meter.us_per_job(10)) == {"relay main us", "relay other us"}


# ---- workloads ---------------------------------------------------------------------------------


def test_raw_relay_gives_both_forms(setting: Setting) -> None:
    limits = setting.raw("ipc")

    assert limits.raw.jobs_per_s > 0
    assert 0 < limits.framewise.p50_us <= limits.framewise.p99_us
    assert {figure.workload for figure in setting.take_limits()} == {"relay"}
    assert raw.append_sync_us(setting.folder, 2) > 0


@pytest.mark.parametrize(
    ("workload", "cases"),
    [
        (throughput.single, {"memory, tcp"}),
        (graphs.chain, {"memory, tcp, a hop"}),
        (graphs.fan, {"memory, tcp, 1 -> 10 -> 1"}),
    ],
)
def test_workload_gives_its_figures(setting: Setting, workload: Workload, cases: set[str]) -> None:
    figures = list(workload(setting))

    assert {figure.case for figure in figures} == cases
    assert all(figure.value > 0 and figure.bar is not None for figure in figures)


def test_latency_is_measured_in_each_way(setting: Setting) -> None:
    figures = list(latency.latency(setting))

    assert len(figures) == 2 * len(latency.WAYS)
    assert {figure.bar is None for figure in figures if "enqueue, result" in figure.case} == {True}


# ---- the command -------------------------------------------------------------------------------


def test_command_refuses_a_workload_that_there_is_not() -> None:
    refused = CliRunner().invoke(command.main, ["--only", "W1,W9"])

    assert refused.exit_code == 2
    assert "W9 is none of W1, W2" in refused.output


def test_command_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "QUICK", TINY)

    done = CliRunner().invoke(
        command.main,
        ["--quick", "--only", "W3", "--store", "sqlite", "--out", str(tmp_path)],
        catch_exceptions=False,
    )

    assert done.exit_code == 0
    assert "W3 chain" in (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["rows"]


def test_every_step_of_a_trip_is_seen() -> None:
    stamps = trip.measure("memory", 3)

    steps = dict(trip.steps(stamps))

    assert len(steps) == len(trip.PATH) - 1 - 3  # the broker's own three come twice
    assert min(steps.values()) >= 0


def test_trips_that_went_another_way_are_left_out() -> None:
    usual = [(name, float(at)) for at, name in enumerate(trip.PATH)]
    cut_short = [("client: called", 100.0), ("client: returns", 101.0)]

    took = [took_us for _, took_us in trip.steps(usual + cut_short)]

    assert took == [1e6] * (len(trip.PATH) - 1)


def test_peer_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert peers.installed(["beanstalkd", "rq_redis"]) == []


def test_every_peer_has_a_name_and_says_how_it_differs() -> None:
    for name in peers.MODULES:
        module = importlib.import_module(f"scripts.bench.peers.{name}")
        assert module.NAME
        assert module.DIFFERS
