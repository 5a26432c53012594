import random
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from worker_sdk.errors import DependencyCycle, InvalidRequest, NotEncodable, TooLarge
from worker_sdk.graph import _SMALLEST_JOB_BYTES, Batch, Dependency, Graph, JobSpec, as_spec
from worker_sdk.ids import new_uuid
from worker_sdk.messages import Backoff, NewJob

NO_LIMIT = 1 << 40


def plan(specs: Sequence[JobSpec], limit_bytes: int) -> list[Batch]:
    """All jobs as requests, where the limit is known."""
    return Graph(specs, limit_bytes).batches(limit_bytes)


def on_the_wire(spec: JobSpec) -> NewJob:
    return msgspec.json.decode(spec.encoded(), type=NewJob)


def chain(length: int) -> list[JobSpec]:
    jobs = [JobSpec("link")]
    for _ in range(length - 1):
        jobs.append(JobSpec("link", dependencies=[jobs[-1]]))
    return jobs


def assert_dependencies_come_first(batch: Batch, jobs: Sequence[JobSpec]) -> None:
    place = {id: at for at, id in enumerate(batch.ids)}
    for job in jobs:
        for dependency in job.dependencies:
            assert place[dependency] < place[job.id]  # type: ignore[index]


# ---- JobSpec ---------------------------------------------------------------------------------


def test_fields_and_defaults_are_those_of_the_wire() -> None:
    def facts(kind: Any) -> dict[str, Any]:
        fields = msgspec.structs.fields(kind)
        return {f.encode_name: f.default for f in fields if f.name not in ("id", "args")}

    assert facts(JobSpec) == facts(NewJob)
    assert {f.name for f in msgspec.structs.fields(JobSpec)} == set(NewJob.__struct_fields__)


def test_everything_given_stands_on_the_wire() -> None:
    one, two, three = JobSpec("a"), new_uuid(), new_uuid()
    spec = JobSpec(
        "resize",
        {"w": 80},
        dependencies=[one, str(two), Dependency(three, "ended")],
        channel="tenant",
        priority=-5,
        delay=timedelta(minutes=1),
        timeout=2,
        expires=timedelta(days=1),
        max_attempts=1,
        backoff=Backoff(first=0.5),
        inputs=False,
    )

    job = on_the_wire(spec)

    assert job.id == str(spec.id)
    assert bytes(job.args) == b'{"w":80}'
    assert [getattr(each, "id", each) for each in job.dependencies] == [
        str(one.id),
        str(two),
        str(three),
    ]
    assert getattr(job.dependencies[2], "condition", None) == "ended"
    assert (job.channel, job.priority, job.delay, job.timeout) == ("tenant", -5, 60, 2)
    assert (job.expires, job.max_attempts, job.inputs) == (86400, 1, False)
    assert job.backoff == Backoff(first=0.5)


def test_args_left_out_are_null() -> None:
    assert bytes(on_the_wire(JobSpec("a")).args) == b"null"


def test_dependencies_named_twice_count_once() -> None:
    a = JobSpec("a")

    b = JobSpec("b", dependencies=[a, a.id, str(a.id), Dependency(a), Dependency(a, "ended")])

    assert len(b.dependencies) == 2
    assert [getattr(each, "condition", "finished") for each in b.dependencies] == [
        "finished",
        "ended",
    ]


@pytest.mark.parametrize("make", [list, tuple, set, iter])
def test_dependencies_come_in_any_iterable(make: Callable[[list[UUID]], Iterable[UUID]]) -> None:
    ids = [new_uuid()]

    assert JobSpec("a", dependencies=make(ids)).dependencies == tuple(ids)
    assert JobSpec("a", dependencies=make([])).dependencies == ()


@pytest.mark.parametrize(
    "wrong",
    ["", "abc", str(UUID(int=7)), b"", UUID(int=7), JobSpec("b"), {}, {"id": 1}, 0, 5, False],
)
def test_what_is_no_list_of_dependencies_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match="dependencies must be a list of ids, not"):
        JobSpec("a", dependencies=wrong)


def test_id_is_given_as_uuid_or_text_or_made() -> None:
    id = new_uuid()

    assert JobSpec("a", id=id).id == JobSpec("a", id=str(id)).id == id
    assert JobSpec("a", id=None).id != JobSpec("a").id


def test_dependency_is_a_value() -> None:
    spec = JobSpec("a")

    assert Dependency(spec) == Dependency(spec.id) == Dependency(str(spec.id), "finished")
    assert len({Dependency(spec), Dependency(str(spec.id)), Dependency(spec, "ended")}) == 2


def test_dependency_that_is_no_id_is_named() -> None:
    with pytest.raises(ValueError, match="'nonsense' is not a job id"):
        JobSpec("a", dependencies=["nonsense"])


def test_mapping_with_the_same_keys_is_a_job() -> None:
    id = new_uuid()

    spec = as_spec({"type": "a", "args": [1], "id": str(id), "priority": 3})

    assert spec == JobSpec("a", [1], id=id, priority=3)


def test_unknown_key_of_a_mapping_is_named() -> None:
    with pytest.raises(TypeError, match="prio"):
        as_spec({"type": "a", "prio": 3})


def test_nan_in_args_names_the_job_and_the_place() -> None:
    spec = JobSpec("a", {"x": [1, float("nan")]})

    with pytest.raises(NotEncodable, match=rf"job\.args\.x\[1\] is nan.*{spec.id}") as caught:
        plan([JobSpec("fine"), spec], NO_LIMIT)
    assert caught.value.ids == (spec.id,)


# ---- order -----------------------------------------------------------------------------------


def test_jobs_in_a_fitting_order_keep_it() -> None:
    jobs = chain(10)

    (batch,) = plan(jobs, NO_LIMIT)

    assert batch.ids == [job.id for job in jobs]


def test_jobs_in_any_order_are_sorted() -> None:
    jobs = chain(50) + [JobSpec("alone") for _ in range(10)]
    jobs.append(JobSpec("sink", dependencies=jobs[:60]))
    random.Random(5).shuffle(jobs)

    (batch,) = plan(jobs, NO_LIMIT)

    assert sorted(batch.ids) == sorted(job.id for job in jobs)
    assert_dependencies_come_first(batch, jobs)


def test_long_chain_given_backwards_is_sorted() -> None:
    jobs = chain(50_000)[::-1]

    (batch,) = plan(jobs, NO_LIMIT)

    assert batch.ids == [job.id for job in reversed(jobs)]


def test_dependencies_outside_of_the_graph_are_left_to_the_broker() -> None:
    outside = new_uuid()

    (batch,) = plan([JobSpec("a", dependencies=[outside])], NO_LIMIT)

    assert str(outside).encode() in batch.jobs


def test_cycle_is_named() -> None:
    a, b, c = new_uuid(), new_uuid(), new_uuid()
    jobs = [
        JobSpec("a", id=a, dependencies=[c]),
        JobSpec("b", id=b, dependencies=[a]),
        JobSpec("c", id=c, dependencies=[Dependency(b, "ended")]),
        JobSpec("after", dependencies=[c]),
    ]

    with pytest.raises(DependencyCycle, match=" -> ") as caught:
        plan(jobs, NO_LIMIT)
    assert set(caught.value.ids) == {a, b, c}


def test_job_that_depends_on_itself_is_a_cycle() -> None:
    id = new_uuid()

    with pytest.raises(DependencyCycle, match=f"{id} -> {id}"):
        plan([JobSpec("a", id=id, dependencies=[id])], NO_LIMIT)


def test_ids_of_the_callers_own_need_not_grow_with_the_order() -> None:
    late, early = UUID(int=2, version=4), UUID(int=1, version=4)
    jobs = [JobSpec("a", id=late), JobSpec("b", id=early, dependencies=[late])]

    (batch,) = plan(jobs, NO_LIMIT)
    (same,) = plan(jobs[::-1], NO_LIMIT)

    assert batch.ids == same.ids == [late, early]


@pytest.mark.parametrize("args", [None, "plain", [None], {"a": "null"}])
def test_jobs_of_a_request_are_those_that_were_given(args: object) -> None:
    """However they are encoded: together, or one by one if one might have to be refused."""
    jobs = [JobSpec("a", args), *chain(3)]

    (batch,) = plan(jobs, NO_LIMIT)

    assert batch.jobs == b"[" + b",".join(job.encoded() for job in jobs) + b"]"


def test_smallest_job_is_no_smaller_than_is_taken_for_granted() -> None:
    assert len(JobSpec("a").encoded()) == _SMALLEST_JOB_BYTES


# ---- size ------------------------------------------------------------------------------------


def test_what_fits_goes_in_one_request() -> None:
    jobs = [JobSpec("a", "x" * 1000) for _ in range(5000)]

    assert len(plan(jobs, 8 * 1024 * 1024)) == 1


def test_what_does_not_fit_is_split_between_what_hangs_together() -> None:
    graphs = [chain(20) for _ in range(200)]
    jobs = [job for link in zip(*graphs, strict=True) for job in link]
    random.Random(6).shuffle(jobs)

    batches = plan(jobs, 20_000)

    assert len(batches) > 1
    assert sorted(id for batch in batches for id in batch.ids) == sorted(j.id for j in jobs)
    assert all(len(batch.jobs) < 20_000 for batch in batches)
    of = {job.id: number for number, graph in enumerate(graphs) for job in graph}
    for number, graph in enumerate(graphs):
        (own,) = [b for b in batches if number in {of[id] for id in b.ids}]
        assert_dependencies_come_first(own, graph)


def test_independent_jobs_are_split_anywhere() -> None:
    jobs = [JobSpec("a", "x" * 100) for _ in range(1000)]

    batches = plan(jobs, 10_000)

    assert len(batches) > 10
    assert [id for batch in batches for id in batch.ids] == [job.id for job in jobs]


def test_graph_over_the_limit_is_too_large() -> None:
    jobs = chain(1000)

    with pytest.raises(TooLarge, match=r"1000 connected jobs .* at most 10,000 bytes"):
        plan(jobs, 10_000)


def test_single_job_over_the_limit_is_too_large_and_named() -> None:
    big = JobSpec("big", "x" * 20_000)

    with pytest.raises(TooLarge, match=rf"job {big.id} \(big\) takes 20,1\d\d bytes") as caught:
        plan([JobSpec("small"), big], 10_000)
    assert caught.value.ids == (big.id,)
