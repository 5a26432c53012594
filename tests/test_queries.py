"""Answers that change nothing: status, pages of jobs, counts; and what workers are sent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from broker.core.dispatch import Dispatch
from broker.store import Store, open_store
from tests.core.box import START_WALL, Box, Denied
from worker_sdk.messages import Dependency, Jobs, Ok, Stats, Status


@pytest.fixture(params=["memory", "sqlite"])
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Box]:
    store = "memory" if request.param == "memory" else f"sqlite:{tmp_path / 'queries.db'}"
    box = Box(open_store(store))
    yield box
    box.store.close()


# ---- status --------------------------------------------------------------------------------------


def test_status_answers_in_the_order_of_the_question(box: Box) -> None:
    live, ended = box.enqueue(), box.enqueue()
    box.cancel(ended)

    infos = box.status(ended, live, ended)

    assert [(info.id, info.state) for info in infos] == [
        (ended, "canceled"),
        (live, "ready"),
        (ended, "canceled"),
    ]


def test_status_of_nothing_is_nothing(box: Box) -> None:
    assert box.status() == []


def test_status_names_all_unknown_jobs(box: Box) -> None:
    job, one, two = box.enqueue(), box.new_id(), box.new_id()

    with pytest.raises(Denied, match="not_exist: jobs do not exist") as denied:
        box.status(one, job, two, "no id at all", one)

    assert denied.value.ids == [one, two, "no id at all"]


def test_args_are_given_only_on_request(box: Box) -> None:
    live, ended = box.enqueue(args=[1]), box.enqueue(args=[2])
    box.cancel(ended)

    without = box.status(live, ended)
    on_request = box.status(live, ended, args=True)

    assert [isinstance(info.args, Raw) for info in without] == [False, False]
    assert [bytes(info.args) for info in on_request] == [b"[1]", b"[2]"]  # type: ignore[arg-type]


def test_dependents_are_shown_live_and_ended(box: Box) -> None:
    root = box.enqueue()
    one, two = box.enqueue(after=[root]), box.enqueue(after=[Dependency(root, "ended")])
    box.cancel(one)
    assert box.info(root).dependents == (one, two)

    box.cancel(root)

    assert box.info(root).dependents == (one, two)
    assert box.info(two).dependencies == (Dependency(root, "ended"),)


def test_dependents_are_left_out_of_waits(box: Box) -> None:
    root = box.enqueue()
    box.enqueue(after=[root])
    pending = box.wait(root)

    box.cancel(root)

    assert [job.dependents for job in pending.jobs] == [()]


def finished_jobs(box: Box, count: int, result: object) -> list[str]:
    jobs = [box.enqueue() for _ in range(count)]
    worker = box.worker()
    for job in jobs:
        worker.finish(job, result=result)
    worker.bye()
    return jobs


@contextmanager
def counting(store: Store, name: str) -> Iterator[list[object]]:
    """What is read of a store by one of its ways to read."""
    read: list[object] = []
    really: Callable[..., Iterator[object]] = getattr(store, name)

    def counted(*args: Any) -> Iterator[object]:
        for each in really(*args):
            read.append(each)
            yield each

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, name, counted)
        yield read


@pytest.mark.parametrize("ask", [Box.status, Box.wait])
def test_no_more_is_read_than_an_answer_may_hold(box: Box, ask: Callable[..., object]) -> None:
    jobs = finished_jobs(box, 50, "x" * 1000)
    box.engine.limits = replace(box.limits, max_message=5000)

    with (
        counting(box.store, "read") as read,
        pytest.raises(Denied, match="ask for fewer") as denied,
    ):
        ask(box, *jobs)

    assert denied.value.code == "too_large"
    assert len(read) < 12
    assert len(box.status(*jobs[:5])) == 5


def test_jobs_that_are_not_seen_take_no_room_in_an_answer(box: Box) -> None:
    roots = [box.enqueue(), box.enqueue()]
    for _ in range(100):
        box.enqueue("hidden", after=[roots[0]])
    box.engine.limits = replace(box.limits, max_message=1500)

    answer = box.queries.answer(Status(tuple(roots)), lambda channel, type: type == "work")

    assert isinstance(answer, Ok)


def test_job_named_many_times_is_read_once_and_counted_each_time(box: Box) -> None:
    [job] = finished_jobs(box, 1, "x" * 1000)
    box.engine.limits = replace(box.limits, max_message=5000)

    with counting(box.store, "read") as read:
        assert len(box.status(*[job] * 5)) == 5
        with pytest.raises(Denied, match="ask for fewer"):
            box.status(*[job] * 20)

    assert len(read) == 2


# ---- pages ---------------------------------------------------------------------------------------


def all_pages(box: Box, **filters: Any) -> list[list[str]]:
    pages, after = [], None
    while True:
        ok = box.list(after=after, **filters).ok()
        pages.append([job.id for job in ok.jobs])  # type: ignore[union-attr]
        if ok.after is None:
            return pages
        assert isinstance(ok.after, str)
        after = ok.after


def test_live_jobs_come_first_then_ended_ones_each_newest_first(box: Box) -> None:
    a, b, c, d = (box.enqueue() for _ in range(4))
    box.cancel(d)
    box.cancel(a)

    assert all_pages(box) == [[c, b, a, d]]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 7, 8])
def test_pages_join_without_gap_or_overlap(box: Box, limit: int) -> None:
    jobs = [box.enqueue() for _ in range(7)]
    box.cancel(*jobs[::2])

    pages = all_pages(box, limit=limit)

    whole = [id for page in pages for id in page]
    assert whole == [jobs[n] for n in (5, 3, 1, 6, 4, 2, 0)]
    assert all(len(page) == limit for page in pages[:-1])


def test_last_page_says_that_it_is_the_last(box: Box) -> None:
    for _ in range(4):
        box.enqueue()

    assert [len(page) for page in all_pages(box, limit=2)] == [2, 2]
    assert [len(page) for page in all_pages(box, limit=4)] == [4]


def test_empty_broker_has_one_empty_page(box: Box) -> None:
    assert all_pages(box) == [[]]


def test_jobs_that_end_between_pages_are_not_missed(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(6)]
    first = box.list(limit=2).ok()
    box.cancel(jobs[0], jobs[1])

    ok = box.list(limit=10, after=first.after).ok()

    assert [job.id for job in ok.jobs] == [jobs[3], jobs[2], jobs[1], jobs[0]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"state": "ready"}, ["plain", "typed"]),
        ({"state": ("canceled", "failed", "finished")}, ["canceled", "failed", "finished"]),
        ({"state": ("blocked", "scheduled", "running")}, ["blocked", "running", "scheduled"]),
        ({"state": ()}, []),
        ({"type": "special"}, ["typed"]),
        ({"type": "unheard-of"}, []),
        ({"channel": "elsewhere"}, ["scheduled"]),
        ({"roots": True, "channel": "default", "state": ("ready", "blocked")}, ["plain", "typed"]),
        ({"since": START_WALL + 10}, ["late", "late too"]),
        ({"until": START_WALL + 10, "type": "special"}, ["typed"]),
        ({"since": START_WALL + 10, "until": START_WALL + 20}, ["late"]),
    ],
    ids=str,
)
def test_filters_choose(box: Box, filters: dict[str, Any], expected: list[str]) -> None:
    names = {}
    for name in ("finished", "failed", "canceled", "running"):
        names[box.enqueue("now")] = name
    by_name = {name: id for id, name in names.items()}
    worker = box.worker("now", credit=5)
    worker.finish(by_name["finished"])
    worker.fail(by_name["failed"], retry=False)
    box.cancel(by_name["canceled"])
    plain = box.enqueue()
    names[plain] = "plain"
    names[box.enqueue("special")] = "typed"
    names[box.enqueue(delay=500, channel="elsewhere")] = "scheduled"
    names[box.enqueue(after=[plain])] = "blocked"
    if "since" in filters:
        box.now = 10
        names[box.enqueue("later")] = "late"
        box.now = 20
        names[box.enqueue("later")] = "late too"

    found = [names[id] for page in all_pages(box, **filters) for id in page]

    assert sorted(found) == sorted(expected)


def test_filtered_pages_join_too(box: Box) -> None:
    jobs = [box.enqueue("ab"[n % 2]) for n in range(9)]
    box.cancel(*jobs[:4])

    pages = all_pages(box, type="b", limit=1)

    assert [id for page in pages for id in page] == [jobs[n] for n in (7, 5, 3, 1)]


def test_page_ends_when_it_has_looked_at_very_many() -> None:
    box = Box(checked=False)
    wanted = box.enqueue("wanted")
    box.enqueue_all(*[box.spec() for _ in range(10_500)])

    pages = all_pages(box, type="wanted")

    assert pages == [[], [wanted]]


def test_page_of_large_results_is_cut_before_it_is_too_large(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(12)]
    worker = box.worker(credit=12)
    for job in jobs:
        worker.finish(job, result="x" * 2**20)

    pages = all_pages(box)

    assert [id for page in pages for id in page] == jobs[::-1]
    assert max(len(page) for page in pages) <= 9


def test_page_ends_before_it_exceeds_the_message_limit(box: Box) -> None:
    jobs = finished_jobs(box, 50, "x" * 1000)
    box.engine.limits = replace(box.limits, max_message=5000)

    with counting(box.store, "ended_down") as read:
        pages = all_pages(box)

    assert [id for page in pages for id in page] == jobs[::-1]
    assert all(1 <= len(page) < 6 for page in pages)
    assert len(read) < 2 * len(jobs)


def test_state_that_there_is_not_is_invalid(box: Box) -> None:
    with pytest.raises(Denied, match="invalid: list: state 'cancelled' is none of blocked, sch"):
        box.list(state="cancelled")
    with pytest.raises(Denied, match="invalid: list: state 'x'"):
        box.list(state=("ready", "x"))


@pytest.mark.parametrize(
    "after",
    ["", "x", "live", "live:", "live:x", "live:-1", "dead:1", "ended:" + "9" * 30, ":1", "live:١"],
)
def test_place_that_no_page_gave_is_invalid(box: Box, after: str) -> None:
    with pytest.raises(Denied, match=r"invalid: list: after .* is not the `after` of a page"):
        box.list(after=after)


# ---- counts --------------------------------------------------------------------------------------


def test_stats_count_jobs_workers_and_lanes(box: Box) -> None:
    first = box.enqueue("a", args="x" * 10)
    box.enqueue("a")
    box.enqueue("b", channel="other", after=[first])
    box.enqueue("b", delay=60)
    box.cancel(box.enqueue("c"))
    box.wait(first)
    box.worker("a", "b")

    stats = box.demand(Stats()).ok().stats

    assert isinstance(stats, Raw)
    counts = msgspec.json.decode(stats)
    assert counts["jobs"] == {"blocked": 1, "scheduled": 1, "ready": 1, "running": 1}
    assert (counts["workers"], counts["waits"], counts["ended_kept"]) == (1, 1, 1)
    assert counts["args_bytes"] == 12 + 3 * 4
    assert counts["version"] == "box"
    assert counts["totals"]["enqueued"] == 5
    lanes = {(lane["channel"], lane["type"]): lane for lane in counts["lanes"]}
    assert lanes["default", "a"] == {
        "channel": "default",
        "type": "a",
        "live": 2,
        "ready": 1,
        "workers": 1,
    }
    assert lanes["other", "b"]["workers"] == 0
    assert ("default", "c") not in lanes


# ---- dispatches ----------------------------------------------------------------------------------


def messages_of(box: Box, jobs: list[str]) -> list[Jobs]:
    live = box.engine.life.jobs
    dispatch = Dispatch((b"worker", b""), [live[id] for id in jobs])
    return [message for message, _ in box.queries.assignments(dispatch)]


def test_small_jobs_go_out_together(box: Box) -> None:
    specs = [box.spec(args="x" * 100) for _ in range(500)]
    jobs = box.enqueue_all(*specs).ids

    (message,) = messages_of(box, jobs)

    assert [job.id for job in message.jobs] == jobs


@pytest.mark.parametrize("where", ["args", "inputs"])
def test_large_jobs_go_out_in_parts(box: Box, where: str) -> None:
    text = "x" * 700_000
    worker = box.worker("part")
    jobs = []
    for _ in range(6):
        if where == "args":
            jobs.append(box.enqueue(args=text))
        else:
            part = box.enqueue("part")
            worker.finish(part, result=text)
            jobs.append(box.enqueue(after=[part]))

    messages = messages_of(box, jobs)

    assert [job.id for message in messages for job in message.jobs] == jobs
    assert max(len(msgspec.json.encode(message)) for message in messages) < 2_000_000


def test_inputs_come_in_the_order_of_the_dependencies(box: Box) -> None:
    parts = [box.enqueue("part") for _ in range(5)]
    worker = box.worker("part", credit=5)
    for part in reversed(parts):
        worker.finish(part, result=part)
    whole = box.enqueue(after=parts)

    (message,) = messages_of(box, [whole])

    assert list(message.jobs[0].inputs or {}) == parts


def test_no_more_results_are_read_than_are_sent_along(box: Box) -> None:
    parts = finished_jobs(box, 50, "x" * 1000)
    whole = box.enqueue("later", after=[Dependency(id, "ended") for id in parts])
    box.queries.inputs_limit = 10_000

    with counting(box.store, "results") as read:
        worker = box.worker("later")

    assert worker.held[whole].inputs_left_out
    assert len(read) == 10


def test_results_of_this_turn_and_of_earlier_ones_come_together(box: Box) -> None:
    first, second = box.enqueue("part"), box.enqueue("part")
    whole = box.enqueue(after=[first, second])
    worker = box.worker("part", "work", credit=2)
    worker.finish(first, result="early")

    worker.finish(second, result="just now")

    inputs = worker.held[whole].inputs or {}
    assert {id: bytes(raw) for id, raw in inputs.items()} == {
        first: b'"early"',
        second: b'"just now"',
    }


def test_query_of_another_kind_is_an_error_of_this_program(box: Box) -> None:
    ask: Callable[[Any], object] = box.queries.answer

    with pytest.raises(TypeError, match="Jobs is not a query"):
        ask(Jobs(()))
