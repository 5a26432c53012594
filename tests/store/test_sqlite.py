"""The SQLite store: its file, its lock, its forms, and what happens when the disk or a process
fails.
"""

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from broker.core.records import Writes
from broker.store import Store, StoreError, open_store, schema
from broker.store.sqlite import SqliteStore
from tests.store.make import Maker, finish, id_of, insert, insert_and_finish, live_ids, start

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@contextmanager
def opened(path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(str(path))) as store:
        yield store


@contextmanager
def child(script: str, *args: object) -> Iterator["subprocess.Popen[str]"]:
    """A Python process that runs `script`; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_from(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def sql(path: Path, *statements: str) -> None:
    """What someone else does to the file."""
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


# ---- the file --------------------------------------------------------------------------------


def test_new_file_is_for_its_owner_alone(path: Path) -> None:
    with opened(path):
        for file in (path, path.with_name("jobs.db-wal")):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_only_the_database_stays_when_closed(path: Path) -> None:
    with opened(path) as store:
        insert(store, *Maker().jobs(10))

    assert [each.name for each in path.parent.iterdir()] == ["jobs.db"]


def test_commits_are_synced_to_disk(path: Path) -> None:
    with opened(path) as store:
        db = store._db
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert db.execute("PRAGMA fullfsync").fetchone() == (1,)


def test_path_with_characters_of_a_uri_is_a_plain_path(tmp_path: Path) -> None:
    path = tmp_path / "a b?mode=memory&x#y%41é.db"

    with opened(path) as store:
        insert(store, Maker().job())

    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    with opened(path) as store:
        assert live_ids(store) == [id_of(1)]


def test_relative_path_is_kept_when_the_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(open_store("sqlite:jobs.db")) as store:
        monkeypatch.chdir("/")
        insert_and_finish(store, Maker().jobs(300))

    assert [each.name for each in tmp_path.iterdir()] == ["jobs.db"]


def test_empty_file_is_taken_for_a_new_store(path: Path) -> None:
    path.touch()

    with opened(path) as store:
        insert(store, Maker().job())

    with opened(path) as store:
        assert live_ids(store) == [id_of(1)]


def folder(path: Path) -> None:
    path.mkdir()


def in_no_folder(path: Path) -> None:
    path.parent.rmdir()


def short_text(path: Path) -> None:
    path.write_text("hello")


def long_text(path: Path) -> None:
    path.write_text("Dear database,\n" * 1000)


def another_programs(path: Path) -> None:
    sql(path, "CREATE TABLE songs (name TEXT)", "PRAGMA journal_mode = WAL")


def another_programs_without_tables(path: Path) -> None:
    sql(path, "PRAGMA application_id = 17")


def newer(path: Path) -> None:
    with opened(path) as store:
        insert(store, Maker().job())
    sql(path, "PRAGMA user_version = 99")


def truncated(path: Path) -> None:
    with opened(path) as store:
        insert_and_finish(store, Maker().jobs(2000))
    os.truncate(path, 20_000)


def scribbled_over(path: Path) -> None:
    with opened(path) as store:
        insert(store, *Maker().jobs(2000))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (folder, "is a folder: name a file in it"),
        (in_no_folder, "does not exist: make it first"),
        (short_text, "is not a database: name a file that does not exist yet"),
        (long_text, "is not a database"),
        (another_programs, "is a database of another program"),
        (another_programs_without_tables, "is a database of another program"),
        (newer, "has form 99, and this version of Pointsman knows forms up to"),
        (truncated, "is damaged"),
        (scribbled_over, "is damaged"),
    ],
)
def test_what_is_no_store_is_refused_and_left_alone(
    tmp_path: Path, spoil: Callable[[Path], None], why: str
) -> None:
    path = tmp_path / "folder" / "jobs.db"
    path.parent.mkdir()
    spoil(path)
    before = path.read_bytes() if path.is_file() else None

    with pytest.raises(StoreError, match=why) as caught:
        open_store(f"sqlite:{path}")

    assert str(path) in str(caught.value)
    assert before == (path.read_bytes() if path.is_file() else None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_file_that_may_not_be_read_and_written_is_refused(path: Path, mode: int) -> None:
    with opened(path):
        pass
    path.chmod(mode)

    with pytest.raises(StoreError, match=r"read-only|permissions|cannot be opened"):
        open_store(f"sqlite:{path}")


@pytest.mark.parametrize("column", ["x'00'", "x'9290'", "x''", "'text'"])
def test_damaged_jobs_are_told_not_skipped(path: Path, column: str) -> None:
    with opened(path) as store:
        insert(store, *Maker().jobs(3))
    sql(path, f"UPDATE live SET rows = {column}")

    with opened(path) as store, pytest.raises(StoreError, match="is damaged"):
        list(store.load())


# ---- the lock --------------------------------------------------------------------------------

OPEN_AND_WAIT = """
import sys, time
from broker.store import open_store
store = open_store("sqlite:" + sys.argv[1])
print("open", flush=True)
time.sleep(60)
"""


def test_second_broker_is_refused_until_the_first_is_killed(path: Path) -> None:
    with child(OPEN_AND_WAIT, path) as first:
        assert line_from(first) == "open"
        with pytest.raises(StoreError, match="is in use by another broker"):
            open_store(f"sqlite:{path}")

        first.send_signal(signal.SIGKILL)
        first.wait()

        with opened(path) as store:
            assert live_ids(store) == []


def test_second_store_in_the_same_process_is_refused(path: Path) -> None:
    with opened(path) as store:
        with pytest.raises(StoreError, match="is in use by another broker"):
            open_store(f"sqlite:{path}")

        # The attempt must not have cost the first one its lock.
        with child(OPEN_AND_WAIT, path) as other:
            assert line_from(other) == ""
        insert(store, Maker().job())


def test_closed_store_says_so(path: Path) -> None:
    store = SqliteStore(str(path))
    store.close()

    with pytest.raises(StoreError, match="is closed"):
        insert(store, Maker().job())
    with pytest.raises(StoreError, match="is closed"):
        list(store.read([id_of(1)]))


# ---- forms of the tables ---------------------------------------------------------------------


def test_older_form_is_brought_forward_step_by_step(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as store:
        insert(store, Maker().job())

    def add_notes(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE notes (text TEXT)")

    def write_note(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO notes SELECT 'live: ' || sum(count) FROM live")

    newest = schema.VERSION
    monkeypatch.setattr(schema, "VERSION", newest + 2)
    monkeypatch.setattr(schema, "MIGRATIONS", {newest: add_notes, newest + 1: write_note})

    for _ in range(2):
        with opened(path) as store:
            assert live_ids(store) == [id_of(1)]
            assert store._db.execute("PRAGMA user_version").fetchone() == (newest + 2,)
            assert store._db.execute("SELECT text FROM notes").fetchall() == [("live: 1",)]


def test_migration_that_fails_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as store:
        insert(store, Maker().job())

    def add_notes(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE notes (text TEXT)")

    def fail(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO nowhere VALUES (1)")

    newest = schema.VERSION
    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", newest + 2)
        patch.setattr(schema, "MIGRATIONS", {newest: add_notes, newest + 1: fail})
        with pytest.raises(StoreError, match="nowhere"):
            open_store(f"sqlite:{path}")

    with opened(path) as store:
        assert live_ids(store) == [id_of(1)]
        tables = store._db.execute("SELECT name FROM sqlite_schema").fetchall()
        assert ("notes",) not in tables


def test_there_is_a_way_forward_from_every_form() -> None:
    assert set(schema.MIGRATIONS) == set(range(1, schema.VERSION))


# ---- the disk --------------------------------------------------------------------------------


def test_full_disk_undoes_the_commit_and_later_ones_work(path: Path) -> None:
    make = Maker()
    with opened(path) as store:
        jobs = make.jobs(300)
        insert(store, *jobs)
        store.commit(Writes(updated=[start(job) for job in jobs[:200]]))
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall()
        ends = [finish(job, b'"%s"' % (b"r" * 500)) for job in jobs[:100]]
        new = make.jobs(2000)

        with pytest.raises(StoreError, match="the disk is full"):
            store.commit(Writes(inserted=new, ended=ends, updated=jobs[200:]))

        assert len(live_ids(store)) == 300
        assert (store.ended_count, store.last_seq) == (0, 300)
        store._db.execute("PRAGMA max_page_count = 1000000").fetchall()
        store.commit(Writes(inserted=new, ended=ends))

    with opened(path) as store:
        assert live_ids(store) == [job.id for job in jobs[100:] + new]
        assert [record.attempt for record in store.load()][:101] == [1] * 100 + [0]
        assert store.ended_count == 100


def test_commit_that_fails_at_its_last_step_is_undone_in_memory_too(path: Path) -> None:
    make = Maker()
    with opened(path) as store:
        old, going, staying, new = (make.jobs(100) for _ in range(4))
        insert_and_finish(store, old)
        insert(store, *going, *staying)
        store.commit(Writes(updated=[start(job) for job in staying]))
        writes = Writes(
            inserted=new,
            updated=[start(job) for job in staying],
            ended=[finish(job) for job in going],
            removed=[job.id for job in old[:50]],
            deferred=[job.id for job in old[50:60]],
        )
        store._db.execute(
            "CREATE TEMP TRIGGER last_step BEFORE INSERT ON places"
            " BEGIN SELECT RAISE(ABORT, 'spoilt'); END"
        )

        for _ in range(2):
            with pytest.raises(StoreError, match="spoilt"):
                store.commit(writes)

        assert live_ids(store) == [job.id for job in going + staying]
        assert [record.attempt for record in store.load()] == [0] * 100 + [1] * 100
        assert (store.ended_count, store.last_seq) == (100, 300)
        assert [id for id, _ in store.oldest()] == [job.id for job in old]
        store._db.execute("DROP TRIGGER last_step")
        store.commit(Writes(updated=staying))
        store.commit(writes)

        for _ in range(2):
            assert live_ids(store) == [job.id for job in staying + new]
            assert [record.attempt for record in store.load()] == [2] * 100 + [0] * 100
            assert (store.ended_count, store.last_seq) == (150, 400)
            line = [id for id, _ in store.oldest()]
            assert line == [job.id for job in old[60:] + old[50:60] + going]
            store.close()
            store = SqliteStore(str(path))
        store.commit(Writes(ended=[finish(job) for job in staying + new]))
        assert store._db.execute("SELECT count(*) FROM attempts").fetchone() == (0,)
        assert live_ids(store) == []
        store.close()


WRITE_TO_A_LIMIT = """
import resource, signal, sys
from broker.store import StoreError, open_store
from tests.store.make import Maker, insert
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = open_store("sqlite:" + sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
make = Maker()
try:
    while True:
        insert(store, *make.jobs(100, b'"%s"' % (b"x" * 500)))
        print(store.last_seq, flush=True)
except StoreError as error:
    print("refused:", error, flush=True)
try:
    insert(store, make.job())
except StoreError as error:
    print("refused:", error, flush=True)
"""


def test_after_an_io_error_nothing_is_acknowledged_and_all_acknowledged_is_there(
    path: Path,
) -> None:
    with child(WRITE_TO_A_LIMIT, path) as process:
        output, _ = process.communicate()

    *acknowledged, failed, later = output.splitlines()
    assert failed.startswith(f"refused: {path}")
    assert later.startswith(f"refused: the store cannot go on: {path}")
    with opened(path) as store:
        assert len(live_ids(store)) in (int(acknowledged[-1]), int(acknowledged[-1]) + 100)


def test_wal_does_not_grow_without_bound(path: Path) -> None:
    make = Maker()
    with opened(path) as store:
        for _ in range(60):
            insert_and_finish(store, make.jobs(500, b'"%s"' % (b"x" * 300)))
            assert path.with_name("jobs.db-wal").stat().st_size < 8_000_000

    assert path.stat().st_size > 12_000_000


def test_file_stays_small_when_jobs_are_forgotten(path: Path) -> None:
    make = Maker()
    with opened(path) as store:
        for _ in range(30):
            insert_and_finish(store, make.jobs(500))
            store.commit(Writes(removed=[id for id, _ in store.oldest()]))
        assert store.ended_count == 0

    # 500 jobs take some 120 KB at a time, 15,000 would take 3.5 MB.
    assert path.stat().st_size < 600_000


def test_a_few_long_lived_jobs_do_not_keep_their_neighbours_on_disk(path: Path) -> None:
    make = Maker()
    jobs = make.jobs(25_600, b'"%s"' % (b"x" * 200))
    with opened(path) as store:
        insert(store, *jobs)
        store.commit(Writes(ended=[finish(job) for job in jobs if job.seq % 256 != 7]))

        size = store._db.execute("SELECT sum(length(rows)) FROM live").fetchone()[0]

        assert size < 100 * 400
        assert live_ids(store) == [job.id for job in jobs if job.seq % 256 == 7]


def test_outdated_attempts_leave_the_disk(path: Path) -> None:
    make = Maker()
    with opened(path) as store:
        stays = make.job()
        insert(store, stays)
        for _ in range(20):
            jobs = make.jobs(300)
            insert(store, *jobs)
            store.commit(Writes(updated=[start(job) for job in [*jobs, stays]]))
            store.commit(Writes(ended=[finish(job) for job in jobs]))

        assert store._db.execute("SELECT count(*) FROM attempts").fetchone() == (1,)
        assert [record.attempt for record in store.load()] == [20]

    with opened(path) as store:
        store.commit(Writes(ended=[finish(stays)]))
        assert store._db.execute("SELECT count(*) FROM attempts").fetchone() == (0,)


# ---- killed processes ------------------------------------------------------------------------

COMMIT_FOREVER = """
import sys
from broker.core.records import Writes
from broker.store import open_store
from tests.store.make import Maker, finish, start
store = open_store("sqlite:" + sys.argv[1])
make = Maker()
make.skip(store.last_seq)
before = []
while True:
    jobs = make.jobs(7)
    for job in jobs[:3]:
        start(job)
    store.commit(Writes(inserted=jobs, ended=[finish(job) for job in before]))
    before = jobs
    print(jobs[-1].seq, flush=True)
"""


def test_kill_during_commits_keeps_whole_commits_and_all_acknowledged_ones(path: Path) -> None:
    chance = random.Random(5)
    for _ in range(5):
        acknowledged = 0
        with child(COMMIT_FOREVER, path) as process:
            for _ in range(chance.randrange(20, 120)):
                acknowledged = int(line_from(process))
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            for line in process.stdout.read().split("\n")[:-1]:
                acknowledged = int(line)

        with opened(path) as store:
            assert store.last_seq in (acknowledged, acknowledged + 7)
            assert store.last_seq % 7 == 0
            live = list(store.load())
            assert [record.attempt for record in live[-7:]] == [1, 1, 1, 0, 0, 0, 0]
            # Ends come with the commit after: only the last batch of each life stays live.
            assert len(live) % 7 == 0
            ids = [id_of(seq) for seq in range(1, store.last_seq + 1)]
            found = store.ended_among(ids)
            assert len(found) == store.ended_count == store.last_seq - len(live)
            assert {*found, *(record.id for record in live)} == set(ids)


def test_store_survives_use_by_another_thread_than_opened_it(path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    store: Store = SqliteStore(str(path))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(insert, store, Maker().job()).result()
        pool.submit(store.close).result()

    with opened(path) as again:
        assert live_ids(again) == [id_of(1)]
