import itertools
import os
import threading
import time
from collections.abc import Callable
from uuid import RFC_4122, UUID, uuid4

import pytest

from worker_sdk.errors import InvalidRequest
from worker_sdk.ids import IdMaker, as_text, as_uuid, new_id, new_uuid

MS = 1_000_000


def maker_with(clock_ns: Callable[[], int]) -> IdMaker:
    return IdMaker(clock_ns)


def test_id_is_a_uuid_of_version_7_with_the_time_in_front() -> None:
    before_ms = time.time_ns() // MS
    id = new_uuid()
    after_ms = time.time_ns() // MS

    assert (id.version, id.variant) == (7, RFC_4122)
    # Other tests may have used up milliseconds ahead of the clock, never many.
    assert before_ms <= id.int >> 80 <= after_ms + 100
    assert UUID(new_id()).version == 7
    assert as_text(text := new_id()) == text


def test_ids_grow_when_the_clock_stands_still() -> None:
    maker = maker_with(lambda: 1_700_000_000_000 * MS)

    ids = [maker.next_int() for _ in range(100_000)]

    assert all(one < next for one, next in itertools.pairwise(ids))
    assert {UUID(int=id).version for id in ids} == {7}
    assert {UUID(int=id).variant for id in ids} == {RFC_4122}


def test_ids_grow_when_the_clock_steps_back() -> None:
    now_ms = [1_700_000_000_000]
    maker = maker_with(lambda: now_ms[0] * MS)

    ids = []
    for step_ms in (0, -5_000, 3, -1, 10, -86_400_000, 0, 86_400_000):
        now_ms[0] += step_ms
        ids += [maker.next_int() for _ in range(20_000)]

    assert all(one < next for one, next in itertools.pairwise(ids))


def test_ids_of_a_later_millisecond_show_that_millisecond() -> None:
    now_ms = [1_700_000_000_000]
    maker = maker_with(lambda: now_ms[0] * MS)
    maker.next_int()

    now_ms[0] += 1

    assert maker.next_int() >> 80 == now_ms[0]


def test_threads_never_make_the_same_id() -> None:
    maker = IdMaker()
    made: list[list[int]] = [[] for _ in range(4)]

    def make(own: list[int]) -> None:
        own += [maker.next_int() for _ in range(30_000)]

    threads = [threading.Thread(target=make, args=(own,)) for own in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({id for own in made for id in own}) == 120_000
    assert all(own == sorted(own) for own in made)


def test_forked_child_makes_other_ids_than_its_parent() -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, " ".join(new_id() for _ in range(100)).encode())
        os._exit(0)
    of_parent = {new_id() for _ in range(100)}
    os.waitpid(child, 0)
    os.close(write_end)
    with open(read_end) as pipe:  # noqa: PTH123 (a descriptor, not a path)
        of_child = set(pipe.read().split())

    assert len(of_child) == 100
    assert not {id[-12:] for id in of_child} & {id[-12:] for id in of_parent}


def test_id_is_taken_as_uuid_or_text_in_any_case() -> None:
    id = uuid4()

    assert as_text(id) == as_text(str(id)) == as_text(str(id).upper()) == str(id)
    assert as_uuid(str(id)) == id


@pytest.mark.parametrize("wrong", ["", "42", "not-an-id", "0" * 33, "0-" + "0" * 35])
def test_what_is_no_id_is_named(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{wrong}' is not a job id"):
        as_text(wrong)


def test_other_types_are_named() -> None:
    with pytest.raises(InvalidRequest, match="expected a UUID or its text, not int"):
        as_text(42)  # type: ignore[arg-type]
