"""What every store promises, asserted of each."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest

from broker.core.job import CANCELED, FAILED, FINISHED, RUNNING, SCHEDULED, Outcome
from broker.core.records import Writes
from broker.store import Store, StoreError, open_store
from tests.store.make import (
    ENDED,
    STARTED,
    Maker,
    cancel,
    finish,
    id_of,
    insert,
    insert_and_finish,
    live_ids,
    only,
    start,
)
from worker_sdk.messages import Dependency

Reopen = Callable[[Store], Store]


@pytest.fixture(params=["memory", "sqlite", "sqlite, opened anew"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(kind: str, tmp_path: Path) -> Iterator[Store]:
    store = open_store("memory" if kind == "memory" else f"sqlite:{tmp_path / 'jobs.db'}")
    yield store
    store.close()


@pytest.fixture
def reopen(kind: str, tmp_path: Path) -> Iterator[Reopen]:
    """What a store is after a restart of the broker, if it lasts that long."""
    with ExitStack() as opened:

        def reopened(store: Store) -> Store:
            if kind != "sqlite, opened anew":
                return store
            store.close()
            again = open_store(f"sqlite:{tmp_path / 'jobs.db'}")
            opened.callback(again.close)
            return again

        yield reopened


@pytest.fixture
def make() -> Maker:
    return Maker()


# ---- live jobs -------------------------------------------------------------------------------


def test_new_store_is_empty(store: Store) -> None:
    assert list(store.load()) == []
    assert store.last_seq == 0
    assert store.ended_count == 0
    assert store.ended_among([id_of(1)]) == set()
    assert list(store.read([id_of(1)])) == []
    assert list(store.results([id_of(1)])) == []
    assert store.dependents([id_of(1)]) == {}
    assert list(store.oldest()) == []
    assert list(store.live_down(None)) == []
    assert list(store.ended_down(None)) == []


def test_live_job_comes_back_as_it_was_enqueued(store: Store, make: Maker, reopen: Reopen) -> None:
    first = make.job()
    job = make.job(
        b'{"text":"\\u0000 \xc3\xa9","n":1e400}',
        dependencies=(first.id, Dependency(id_of(77), "ended")),
        type="Größe \U0001f680",
        channel="mandant\x00b",
        priority=-3,
    )

    insert(store, first, job)

    store = reopen(store)
    plain, record = store.load()
    assert (plain.id, plain.dependencies, plain.seq) == (first.id, b"[]", 1)
    assert (record.id, record.seq, record.queued) == (job.id, 2, job.queued)
    assert (record.type, record.channel) == ("Größe \U0001f680", "mandant\x00b")
    assert record.terms == job.terms.encoded
    assert b'"priority":-3' in record.terms
    assert record.args == job.args
    assert record.dependencies == (
        b'["%s",{"id":"%s","condition":"ended"}]' % (first.id.encode(), id_of(77).encode())
    )
    assert (record.state != RUNNING, record.attempt, record.spared) == (True, 0, 0)
    assert (record.due, record.started, record.ended, record.result) == (None, None, None, None)


def test_load_is_in_the_order_of_seq(store: Store, make: Maker, reopen: Reopen) -> None:
    jobs = make.jobs(3)
    make.skip(5)
    jobs += make.jobs(700)
    make.skip(3000)
    jobs += make.jobs(2)

    insert(store, *jobs[:1])
    insert(store, *jobs[1:])

    store = reopen(store)
    assert [record.seq for record in store.load()] == [job.seq for job in jobs]
    assert store.last_seq == jobs[-1].seq


def test_delayed_job_keeps_its_time(store: Store, make: Maker, reopen: Reopen) -> None:
    insert(store, make.job(due=1_800_000_000.125), make.job())

    store = reopen(store)
    assert [record.due for record in store.load()] == [1_800_000_000.125, None]


def test_running_attempt_is_known(store: Store, make: Maker, reopen: Reopen) -> None:
    ready, running = make.job(), make.job()
    insert(store, ready, running)

    store.commit(Writes(updated=[start(running)]))

    store = reopen(store)
    first, second = store.load()
    assert (first.state != RUNNING, first.attempt) == (True, 0)
    assert (second.state, second.attempt, second.started) == (RUNNING, 1, STARTED)


def test_job_started_in_the_turn_of_its_enqueue_is_running(
    store: Store, make: Maker, reopen: Reopen
) -> None:
    insert(store, start(make.job()))

    store = reopen(store)
    (record,) = store.load()
    assert (record.state, record.attempt, record.started) == (RUNNING, 1, STARTED)


def test_the_newest_of_several_updates_counts(store: Store, make: Maker, reopen: Reopen) -> None:
    jobs = make.jobs(300)
    insert(store, *jobs)
    store.commit(Writes(updated=[start(job) for job in jobs]))
    for job in jobs[:2]:
        job.state, job.run, job.due, job.spared = SCHEDULED, None, 1_800_000_000.0, 1
    store.commit(Writes(updated=jobs[:2]))
    store.commit(Writes(updated=[start(jobs[0], STARTED + 5)]))

    store = reopen(store)
    first, second, *others = store.load()
    assert (first.state, first.attempt, first.spared) == (RUNNING, 2, 1)
    assert (first.due, first.started) == (None, STARTED + 5)
    assert (second.state != RUNNING, second.attempt, second.spared) == (True, 1, 1)
    assert (second.due, second.started) == (1_800_000_000.0, None)
    assert {(record.state, record.attempt) for record in others} == {(RUNNING, 1)}


def test_attempts_are_right_whichever_jobs_end_between(
    store: Store, make: Maker, reopen: Reopen
) -> None:
    jobs = make.jobs(400)
    insert(store, *jobs)
    store.commit(Writes(updated=[start(job) for job in jobs[:200]]))
    store.commit(Writes(updated=[start(job) for job in jobs[200:]]))
    store.commit(Writes(updated=[start(job) for job in jobs[50:150]]))
    store.commit(Writes(ended=[finish(job) for job in jobs[0:400:2]]))

    store = reopen(store)
    attempts = {record.id: record.attempt for record in store.load()}
    assert attempts == {job.id: job.attempt for job in jobs[1:400:2]}


# ---- ends ------------------------------------------------------------------------------------


def test_ended_job_is_no_longer_live_and_is_found(
    store: Store, make: Maker, reopen: Reopen
) -> None:
    job, other = make.job(b"[1]", dependencies=(id_of(99),), type="t", channel="c"), make.job()
    insert(store, job, other)
    store.commit(Writes(updated=[start(job)]))

    store.commit(Writes(ended=[finish(job, b'{"r":[1,2]}')]))

    store = reopen(store)
    assert live_ids(store) == [other.id]
    assert store.ended_count == 1
    record = only(store, job.id)
    assert (record.seq, record.type, record.channel) == (1, "t", "c")
    assert (record.terms, record.args) == (job.terms.encoded, b"[1]")
    assert record.dependencies == b'["%s"]' % id_of(99).encode()
    assert (record.state, record.attempt, record.queued) == (FINISHED, 1, job.queued)
    assert (record.started, record.ended, record.result) == (STARTED, ENDED, b'{"r":[1,2]}')
    assert (record.due, record.error, record.reason, record.culprit) == (None, None, None, None)


def test_failed_and_canceled_jobs_say_why(store: Store, make: Maker, reopen: Reopen) -> None:
    failed, canceled, doomed = make.jobs(3)
    insert(store, failed, canceled, doomed)
    failed.state, failed.outcome = FAILED, Outcome(ENDED, STARTED, error="ValueError: é\x00")

    store.commit(Writes(ended=[failed, cancel(canceled), cancel(doomed, culprit=failed.id)]))

    store = reopen(store)
    record = only(store, failed.id)
    assert (record.state, record.error, record.result) == (FAILED, "ValueError: é\x00", None)
    record = only(store, canceled.id)
    assert (record.state, record.reason, record.culprit) == (CANCELED, "request", None)
    record = only(store, doomed.id)
    assert (record.reason, record.culprit) == ("dependency", failed.id)


def test_job_may_be_born_and_end_in_one_turn(store: Store, make: Maker, reopen: Reopen) -> None:
    old, live, doomed = make.job(), make.job(), make.job(dependencies=(id_of(1),))
    insert(store, old)

    store.commit(
        Writes(inserted=[live, doomed], ended=[finish(old), cancel(doomed, culprit=old.id)])
    )

    store = reopen(store)
    assert live_ids(store) == [live.id]
    assert only(store, doomed.id).culprit == old.id
    assert store.dependents([old.id]) == {old.id: [doomed.id]}
    assert store.ended_count == 2
    assert store.last_seq == 3


def test_results_are_those_of_finished_jobs_alone(
    store: Store, make: Maker, reopen: Reopen
) -> None:
    finished, nothing, canceled, live = make.jobs(4)
    insert(store, finished, nothing, canceled, live)
    store.commit(
        Writes(ended=[finish(finished, b"17"), finish(nothing, b"null"), cancel(canceled)])
    )

    store = reopen(store)
    asked = [nothing.id, finished.id, canceled.id, live.id, id_of(1000)]
    assert dict(store.results(asked)) == {finished.id: b"17", nothing.id: b"null"}


def test_jobs_end_in_any_order(store: Store, make: Maker, reopen: Reopen) -> None:
    jobs = make.jobs(1000)
    insert(store, *jobs)
    order = [jobs[(index * 379) % 1000] for index in range(1000)]
    for begin in range(0, 990, 45):
        store.commit(Writes(ended=[finish(job) for job in order[begin : begin + 45]]))

    store = reopen(store)
    left = sorted(order[990:], key=lambda job: job.seq)
    assert live_ids(store) == [job.id for job in left]
    assert [id for id, _ in store.oldest()] == [job.id for job in order[:990]]
    store.commit(Writes(ended=[finish(job) for job in left]))
    store = reopen(store)
    assert live_ids(store) == []
    assert store.ended_count == 1000


def test_large_args_and_results_come_back_whole(store: Store, make: Maker, reopen: Reopen) -> None:
    sizes = [10, 70_000, 10, 40_000, 40_000, 3_000_000, 10]
    jobs = [make.job(b'"%s"' % (b"a" * size)) for size in sizes]
    insert(store, *jobs)

    store = reopen(store)
    assert [len(record.args) - 2 for record in store.load()] == sizes

    store.commit(Writes(ended=[finish(job, job.args.upper()) for job in jobs]))
    store = reopen(store)
    results = dict(store.results([job.id for job in jobs]))
    assert [len(results[job.id]) - 2 for job in jobs] == sizes
    assert set(results[jobs[5].id]) == set(b'"A')


# ---- find ------------------------------------------------------------------------------------


def test_ended_jobs_are_found_among_ids_of_every_kind(
    store: Store, make: Maker, reopen: Reopen
) -> None:
    ids = [id_of(500), id_of(300), "f7c3bc1d-808e-4732-adf6-5d8e2a7bd9a0", id_of(7, version=4)]
    ended = [make.job(id=id) for id in ids]
    insert_and_finish(store, ended)
    live = make.job(id=id_of(400))
    insert(store, live)

    store = reopen(store)
    never = [id_of(301), id_of(499), id_of(501), "00000000-0000-4000-8000-000000000000"]
    above = "ffffffff-ffff-4fff-8fff-ffffffffffff"
    assert store.ended_among([*never, above, live.id, *ids]) == set(ids)
    for id in ids:
        assert only(store, id).id == id
    for id in [*never, above, live.id]:
        assert store.ended_among([id]) == set()
        assert list(store.read([id])) == []


def test_thousands_are_found_at_once(store: Store, make: Maker, reopen: Reopen) -> None:
    jobs = make.jobs(3000)
    insert_and_finish(store, jobs)

    store = reopen(store)
    found = store.read([job.id for job in jobs] + [id_of(n) for n in range(10_000, 13_000)])
    assert {record.id: record.seq for record in found} == {job.id: job.seq for job in jobs}


# ---- dependents ------------------------------------------------------------------------------


def test_dependents_are_known_live_or_ended(store: Store, make: Maker, reopen: Reopen) -> None:
    root = make.job()
    one = make.job(dependencies=(root.id,))
    two = make.job(dependencies=(Dependency(root.id, "ended"), one.id))
    insert(store, root, one, two)

    def check() -> None:
        found = store.dependents([root.id, one.id, two.id, id_of(99)])
        assert {id: sorted(those) for id, those in found.items()} == {
            root.id: [one.id, two.id],
            one.id: [two.id],
        }
        assert store.dependents([one.id]) == {one.id: [two.id]}

    store = reopen(store)
    check()
    store.commit(Writes(ended=[finish(root), finish(one)]))
    store = reopen(store)
    check()


def test_removed_job_is_nobodys_dependent(store: Store, make: Maker, reopen: Reopen) -> None:
    root = make.job()
    one, two = make.job(dependencies=(root.id,)), make.job(dependencies=(root.id,))
    insert(store, root, one, two)
    store.commit(Writes(ended=[finish(root), finish(one), finish(two)]))

    store.commit(Writes(removed=[one.id]))
    store = reopen(store)
    assert store.dependents([root.id]) == {root.id: [two.id]}

    store.commit(Writes(removed=[root.id]))
    store = reopen(store)
    assert store.dependents([root.id]) == {root.id: [two.id]}

    store.commit(Writes(removed=[two.id]))
    store = reopen(store)
    assert store.dependents([root.id]) == {}


def test_job_may_have_very_many_dependents(store: Store, make: Maker, reopen: Reopen) -> None:
    root = make.job()
    children = [make.job(dependencies=(root.id,)) for _ in range(5000)]
    insert_and_finish(store, [root, *children])

    store.commit(Writes(removed=[child.id for child in children[:4999]]))

    store = reopen(store)
    assert store.dependents([root.id]) == {root.id: [children[4999].id]}


# ---- what goes, comes back, or stays for longer ----------------------------------------------


def test_removed_job_is_forgotten(store: Store, make: Maker, reopen: Reopen) -> None:
    jobs = make.jobs(600)
    insert_and_finish(store, jobs)

    store.commit(Writes(removed=[job.id for job in jobs if job.seq != 300]))

    store = reopen(store)
    assert store.ended_count == 1
    assert list(store.ended_among([job.id for job in jobs])) == [jobs[299].id]
    assert list(store.oldest()) == [(jobs[299].id, ENDED)]
    assert store.last_seq == 600


def test_seq_is_remembered_when_all_is_gone(store: Store, make: Maker, reopen: Reopen) -> None:
    jobs = make.jobs(3)
    insert_and_finish(store, jobs)

    store.commit(Writes(removed=[job.id for job in jobs]))

    store = reopen(store)
    assert store.last_seq == 3
    assert (store.ended_count, live_ids(store), list(store.oldest())) == (0, [], [])


def test_retried_job_is_live_again_under_its_id(store: Store, make: Maker, reopen: Reopen) -> None:
    root = make.job()
    job = make.job(dependencies=(root.id,))
    insert(store, root, job)
    store.commit(Writes(ended=[finish(root), cancel(start(job))]))
    again = make.job(b"2", id=job.id, dependencies=(root.id,))
    again.attempt = again.spared = 1

    store.commit(Writes(removed=[job.id], inserted=[again]))

    store = reopen(store)
    (record,) = store.load()
    assert (record.id, record.seq, record.args) == (job.id, 3, b"2")
    assert (record.attempt, record.spared, record.started) == (1, 1, None)
    assert list(store.read([job.id])) == []
    assert store.dependents([root.id]) == {root.id: [job.id]}

    store.commit(Writes(ended=[finish(start(again), b'"second"')]))
    store = reopen(store)
    assert only(store, job.id).attempt == 2
    assert dict(store.results([job.id])) == {job.id: b'"second"'}
    assert store.ended_count == 2


def test_retried_job_may_end_in_the_same_turn(store: Store, make: Maker, reopen: Reopen) -> None:
    job = make.job()
    insert(store, job)
    store.commit(Writes(ended=[cancel(job)]))
    again = finish(make.job(id=job.id), b"1")

    store.commit(Writes(removed=[job.id], inserted=[again], ended=[again]))

    store = reopen(store)
    assert only(store, job.id).state == FINISHED
    assert store.ended_count == 1


def test_oldest_are_those_that_ended_first(store: Store, make: Maker, reopen: Reopen) -> None:
    one, two, three = make.jobs(3)
    insert(store, one, two, three)
    store.commit(Writes(ended=[finish(two, ended=10.5), finish(three, ended=11.0)]))
    store.commit(Writes(ended=[finish(one, ended=12.0)]))

    store = reopen(store)
    assert list(islice(store.oldest(), 2)) == [(two.id, 10.5), (three.id, 11.0)]
    assert list(store.oldest()) == [(two.id, 10.5), (three.id, 11.0), (one.id, 12.0)]


def test_deferred_job_goes_to_the_back_of_the_line(
    store: Store, make: Maker, reopen: Reopen
) -> None:
    jobs = make.jobs(5)
    insert_and_finish(store, jobs)
    new = make.job()
    insert(store, new)

    store.commit(
        Writes(
            deferred=[jobs[2].id, jobs[0].id], removed=[jobs[1].id], ended=[finish(new, ended=20.0)]
        )
    )

    store = reopen(store)
    line = [id for id, _ in store.oldest()]
    assert line[:2] == [jobs[3].id, jobs[4].id]
    assert set(line[2:4]) == {jobs[2].id, jobs[0].id}
    assert line[4:] == [new.id]
    record = only(store, jobs[2].id)
    assert (record.args, record.result, record.ended) == (jobs[2].args, b'{"ok":true}', ENDED)
    assert store.ended_count == 5
    store.commit(Writes(removed=[jobs[2].id]))
    assert jobs[2].id not in [id for id, _ in reopen(store).oldest()]


# ---- pages -----------------------------------------------------------------------------------


def test_live_pages_lead_from_the_newest_to_the_oldest(
    store: Store, make: Maker, reopen: Reopen
) -> None:
    jobs = make.jobs(700)
    insert(store, *jobs)
    store.commit(Writes(ended=[finish(job) for job in jobs[100:650]]))
    left = [(job.seq, job.id) for job in reversed(jobs[:100] + jobs[650:])]

    store = reopen(store)
    pages = []
    before = None
    while page := list(islice(store.live_down(before), 40)):
        pages.append(page)
        before = page[-1][0]

    assert [len(page) for page in pages] == [40, 40, 40, 30]
    assert [entry for page in pages for entry in page] == left
    assert list(islice(store.live_down(650), 1)) == [(100, jobs[99].id)]


def test_ended_pages_lead_from_the_latest_end_to_the_first(
    store: Store, make: Maker, reopen: Reopen
) -> None:
    jobs = make.jobs(700)
    insert(store, *jobs)
    store.commit(Writes(ended=[finish(job) for job in jobs[:400]]))
    store.commit(Writes(ended=[finish(job) for job in reversed(jobs[400:])]))
    store.commit(Writes(removed=[job.id for job in jobs[600:]]))
    expected = [job.id for job in jobs[400:600] + jobs[399::-1]]

    store = reopen(store)
    ids: list[str] = []
    before = None
    while page := list(islice(store.ended_down(before), 90)):
        places = [place for place, _ in page]
        assert places == sorted(places, reverse=True)
        ids += [record.id for _, record in page]
        before = places[-1]

    assert ids == expected


# ---- commits that fail -----------------------------------------------------------------------


def test_failed_commit_leaves_nothing_and_the_next_one_works(
    store: Store, make: Maker, reopen: Reopen
) -> None:
    done, job = make.jobs(2)
    insert(store, done, job)
    store.commit(Writes(ended=[finish(done)]))
    new, newer = make.jobs(2)

    with pytest.raises(StoreError, match=id_of(99)):
        store.commit(Writes(removed=[done.id, id_of(99)], inserted=[new], updated=[job]))

    store = reopen(store)
    assert live_ids(store) == [job.id]
    assert store.ended_count == 1
    assert only(store, done.id).state == FINISHED
    insert(store, newer)
    store.commit(Writes(removed=[done.id]))
    store = reopen(store)
    assert live_ids(store) == [job.id, newer.id]
    assert store.ended_count == 0


# ---- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "sqlite", "sqlite:", "memory:", "postgresql://localhost/jobs", "jobs.db"]
)
def test_unknown_store_is_refused_with_what_would_be_right(url: str) -> None:
    with pytest.raises(StoreError, match="memory or sqlite:PATH"):
        open_store(url)


def test_slashes_of_a_database_url_are_refused() -> None:
    with pytest.raises(StoreError, match=r"such as sqlite:/var/jobs\.db"):
        open_store("sqlite:///var/jobs.db")
