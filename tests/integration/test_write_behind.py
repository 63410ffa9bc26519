"""Write-behind on real workers: what runs writes once, who flushes, what a stop, a kill or a full journal changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from celery_cachetiers import CachedResult, JournalFull
from celery_cachetiers.delivery import Flushed
from tests.integration.apps.behind_tasks import BehindDeployment
from tests.integration.apps.worker_setup import Led, Start, new_name, starter
from tests.processes import wait_until
from tests.servers import RedisServers
from tests.workers import Worker

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

PATIENCE = 20
FLUSH = "celery_cachetiers.flush"

Deploy = Callable[..., BehindDeployment]
Here = tuple[BehindDeployment, Worker]


@pytest.fixture(scope="module")
def start(servers: RedisServers) -> Iterator[Start]:
    with starter(servers, BehindDeployment) as start:
        yield start


@pytest.fixture(scope="module", params=["prefork", "threads"])
def here(request: pytest.FixtureRequest, start: Start) -> Here:
    """A worker that nobody tells to flush: the tests do it."""
    return start(pool=request.param)  # type: ignore[return-value]


@pytest.fixture
def deploy() -> Iterator[Deploy]:
    """`deploy(**settings)`: the app here, with a Redis of its own."""
    servers = RedisServers()
    made: list[BehindDeployment] = []

    def make(**settings: Any) -> BehindDeployment:
        made.append(BehindDeployment(servers(), **settings))
        return made[-1]

    yield make
    for each in made:
        each.__exit__()
    servers.close()


def run(deployment: BehindDeployment, task: str, *args: Any, **options: Any) -> Any:
    return deployment.task(task).apply_async(args, **options).get(timeout=PATIENCE)


# ---- what runs writes, once ------------------------------------------------------------------------------------------


def test_a_run_writes_once_and_hits_write_nothing(here: Here) -> None:
    deployment, _ = here
    row = new_name()
    assert run(deployment, "order", row) == f"{row}#1"
    assert isinstance(deployment.task("order").delay(row), CachedResult)
    assert run(deployment, "order.message", row) == f"{row}#2"
    assert run(deployment, "order.message", row) == f"{row}#2"
    assert deployment.values(row) == []
    deployment.flush()
    deployment.flush()

    assert deployment.values(row) == [f"{row}#1", f"{row}#2"]


def test_followers_write_nothing(here: Here) -> None:
    deployment, _ = here
    row = new_name()
    led = Led(deployment, "order.message", row)
    deployment.book.open_gate(row)
    assert led.values() == [f"{row}#1"] * 2
    deployment.flush()

    assert deployment.values(row) == [f"{row}#1"]


def test_a_retried_task_writes_when_it_has_succeeded(here: Here) -> None:
    deployment, _ = here
    row = new_name()
    assert run(deployment, "order.retried", row) == f"{row}#2"
    deployment.flush()

    assert deployment.values(row) == [f"{row}#2"]


def test_a_body_that_fails_writes_nothing(here: Here) -> None:
    deployment, _ = here
    row = new_name()
    deployment.book.put_up_gate(row)
    deployment.book.open_gate(row, outcome="fail")
    with pytest.raises(ValueError, match=row):
        run(deployment, "order", row)
    deployment.flush()

    assert deployment.values(row) == []


def test_a_value_that_is_not_kept_is_written_all_the_same(here: Here) -> None:
    deployment, _ = here
    row = new_name()
    run(deployment, "order.unkept", row)
    deployment.flush()

    assert deployment.values(row) == [f"{row}#1"]


@pytest.mark.parametrize("mode", ["bypass", "refresh"])
def test_a_run_past_the_cache_writes_too(here: Here, mode: str) -> None:
    deployment, _ = here
    row = new_name()
    run(deployment, "order", row)
    deployment.flush()
    assert run(deployment, "order", row, cache_mode=mode) == f"{row}#2"
    deployment.flush()

    assert deployment.values(row) == [f"{row}#1", f"{row}#2"]


def test_through_has_written_when_the_result_can_be_seen(here: Here) -> None:
    deployment, _ = here
    row = new_name()

    assert run(deployment, "order.through", row) == f"{row}#1"
    assert deployment.values(row) == [f"{row}#1"]
    run(deployment, "order.through", row)
    assert deployment.values(row) == [f"{row}#1"]


# ---- the order of writes ---------------------------------------------------------------------------------------------


def test_a_leader_elsewhere_does_not_displace_what_is_put_while_it_computes(here: Here) -> None:
    deployment, _ = here
    row, order = new_name(), deployment.task("order.message")
    led = Led(deployment, "order.message", row, followers=0)
    order.cache.put((row,), "put")
    deployment.book.open_gate(row)
    assert led.leader.get(timeout=PATIENCE) == f"{row}#1"

    assert order.cache.get(row) == "put"
    order.cache.invalidate(row)
    assert order(row) == "put"  # out of the journal
    deployment.flush()
    assert deployment.values(row) == ["put"]


def test_nor_what_was_put_and_flushed_meanwhile(here: Here) -> None:
    deployment, _ = here
    row, order = new_name(), deployment.task("order.message")
    led = Led(deployment, "order.message", row, followers=0)
    order.cache.put((row,), "put")
    deployment.flush()
    deployment.book.open_gate(row)
    led.leader.get(timeout=PATIENCE)
    deployment.flush()

    assert order.cache.get(row) == "put"
    assert deployment.values(row) == ["put"]


def test_what_waits_answers_in_place_of_the_body_in_any_process(here: Here) -> None:
    deployment, _ = here
    row, order = new_name(), deployment.task("order")
    order.cache.put((row,), "put")
    deployment.tiers.invalidate_tag(f"row:{row}")

    assert run(deployment, "order", row) == "put"
    assert deployment.book.computes(row) == 0


# ---- deletions -------------------------------------------------------------------------------------------------------


def test_a_read_after_a_deletion_finds_nothing_though_nobody_has_flushed(here: Here) -> None:
    deployment, _ = here
    row, read = new_name(), deployment.task("order.read")
    read.cache.put((row,), "value")
    deployment.flush()
    assert deployment.row(row) == "value"
    read.cache.delete(row)

    assert run(deployment, "order.read", row) is None
    assert [note[2] for note in deployment.saved(row)] == [False, True]


def test_a_read_while_the_deletion_cannot_be_delivered_does_not_bring_the_row_back(here: Here) -> None:
    deployment, _ = here
    row, read = new_name(), deployment.task("order.read")
    read.cache.put((row,), "value")
    deployment.flush()
    with failing_sink(deployment):
        read.cache.delete(row)
        assert read(row) == "value"  # the database has it still
    wait_until(lambda: deployment.flush() or not deployment.pending(), timeout=PATIENCE, message="the back-off")

    assert deployment.row(row) is None
    assert read(row) is None
    assert [note[2] for note in deployment.saved(row)] == [False, True]


@contextmanager
def failing_sink(deployment: BehindDeployment) -> Iterator[None]:
    deployment.book.put_up_gate(deployment.saving)
    deployment.book.open_gate(deployment.saving, outcome="fail")
    try:
        yield
    finally:
        deployment.book.client.delete(f"gated:{deployment.saving}", f"gate:{deployment.saving}:all")


# ---- invalidates= ----------------------------------------------------------------------------------------------------


def test_what_was_computed_from_the_old_database_is_gone_when_the_flush_has_acknowledged(here: Here) -> None:
    deployment, _ = here
    row, total = new_name(), deployment.task("total")
    assert total(row) is None
    run(deployment, "change", row, "new")

    assert total(row) is None  # the database is old until the flush
    assert total.cache.get(row) is None
    deployment.flush()
    assert total(row) == deployment.row(row) == "new"


def test_through_invalidates_again_when_the_sink_has_it(here: Here) -> None:
    deployment, _ = here
    row, total, gate = new_name(), deployment.task("total"), deployment.saving
    deployment.book.client.delete(f"started:{gate}")
    deployment.book.put_up_gate(gate)
    change = deployment.task("change.through").delay(row, "new")
    number, _ = deployment.book.started(gate)  # the body has run, and what it changes was invalidated
    assert total(row) is None
    deployment.book.client.delete(f"gated:{gate}")
    deployment.book.open_gate(gate, number)
    assert change.get(timeout=PATIENCE) == "new"

    assert total(row) == "new"


# ---- who flushes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_that_is_stopped_drains_the_journal(start: Start, pool: str) -> None:
    deployment, worker = start(pool=pool)
    assert isinstance(deployment, BehindDeployment)
    rows = [new_name() for _ in range(20)]
    for row in rows:
        run(deployment, "order", row)
    assert deployment.pending() == 20

    assert worker.stop() == 0
    assert deployment.pending() == 0
    assert sorted(note[0] for note in deployment.saved()) == sorted(rows)


def test_a_process_that_has_written_a_full_batch_asks_for_a_flush_where_no_beat_runs(start: Start) -> None:
    deployment, _ = start(settings={"behind_sink": {"batch_size": 5}})
    assert isinstance(deployment, BehindDeployment)
    order = deployment.task("order")
    for number in range(5):
        order.cache.put((f"{number}",), number)

    wait_until(lambda: deployment.pending() == 0, timeout=PATIENCE, message="the flush")
    assert [note[1] for note in deployment.saved()] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_several_workers_share_a_backlog_deliver_each_write_once_and_each_key_in_order(start: Start) -> None:
    deployment, _ = start()
    assert isinstance(deployment, BehindDeployment)
    other = deployment.worker(concurrency=2)
    deployment.book.put_up_gate(deployment.saving)  # until there is a backlog
    outlet = deployment.task("order").memoized.outlet
    call = deployment.task("order").cache.key
    rows = [f"r{number}" for number in range(20_000)]
    first = [(call(row), (row,), {}, 1) for row in rows]
    for at in range(0, len(first), 1000):
        assert len(outlet.deliver_all(first[at : at + 1000])) == 1000
    with other:
        deployment.book.open_gate(deployment.saving)
        outlet.deliver_all([(call(row), (row,), {}, 2) for row in rows[::10]])  # some are under way, some are done
        wait_until(lambda: deployment.pending() == 0, timeout=60, message="the end of the backlog")

    saved = deployment.saved()
    assert len({note[4] for note in saved}) > 2  # children of two workers, whom full batches have asked
    assert len({(note[0], note[3]) for note in saved}) == len(saved)
    by_row: dict[str, list[list[Any]]] = {}
    for note in saved:
        by_row.setdefault(note[0], []).append(note)
    assert by_row.keys() == set(rows)
    assert all(notes[-1][1] == (2 if int(row[1:]) % 10 == 0 else 1) for row, notes in by_row.items())
    assert all([note[3] for note in notes] == sorted(note[3] for note in notes) for notes in by_row.values())


# ---- a full journal --------------------------------------------------------------------------------------------------


def test_slots_that_all_wait_for_room_make_it(start: Start) -> None:
    deployment, _ = start(settings={"behind_sink": {"max_pending": 1, "time_limit": 20.0}}, concurrency=1)
    assert isinstance(deployment, BehindDeployment)
    rows = [new_name() for _ in range(3)]
    results = [deployment.task("order").delay(row) for row in rows]

    assert [result.get(timeout=15) for result in results] == [f"{row}#1" for row in rows]


def test_a_full_journal_that_raises_fails_the_task_and_nothing_is_cached(start: Start) -> None:
    deployment, _ = start(settings={"behind_sink": {"max_pending": 1, "when_full": "raise", "max_delay": 60.0}})
    assert isinstance(deployment, BehindDeployment)
    deployment.book.put_up_gate(deployment.saving)  # else the flush that it asks for may come first
    deployment.task("order").cache.put(("a",), 1)
    row = new_name()

    with pytest.raises(JournalFull, match="is full: 1 writes wait"):
        run(deployment, "order", row)
    assert not isinstance(deployment.task("order").delay(row), CachedResult)
    deployment.book.open_gate(deployment.saving)


# ---- a flush that ends before its time -------------------------------------------------------------------------------


def test_a_flush_out_of_time_gives_its_claims_back(start: Start) -> None:
    deployment, worker = start(pool="prefork", concurrency=1)
    assert isinstance(deployment, BehindDeployment)
    deployment.task("order").cache.put(("a",), 1)
    deployment.book.put_up_gate(deployment.saving)
    deployment.app.tasks[FLUSH].apply_async((deployment.sink,), soft_time_limit=1)
    worker.wait_for_log("SoftTimeLimitExceeded()", PATIENCE)

    assert deployment.tiers.writes.journal is not None
    [record] = deployment.tiers.writes.journal.claim(deployment.sink, "test", 10, 10.0)
    assert record.attempts == 0
    deployment.book.open_gate(deployment.saving)


@pytest.mark.slow
def test_what_a_killed_child_had_in_its_hands_is_delivered_again(start: Start) -> None:
    deployment, worker = start("--beat", pool="prefork", concurrency=1, settings={"cachetiers_flush_every": 0.5})
    assert isinstance(deployment, BehindDeployment)
    deployment.book.put_up_gate(deployment.saving)
    deployment.task("order").cache.put(("a",), 1)
    _, pid = deployment.book.started(deployment.saving)
    worker.kill_child(pid)
    worker.wait_for_log("WorkerLostError", PATIENCE)
    assert deployment.values("a") == []
    deployment.book.open_gate(deployment.saving)

    wait_until(lambda: deployment.values("a") == [1], timeout=40, message="the end of the claim")


# ---- what a worker refuses -------------------------------------------------------------------------------------------


def test_a_worker_whose_journal_would_be_evicted_does_not_start(deploy: Deploy) -> None:
    deployment = deploy()
    with deployment.server.client() as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
    assert_refuses(
        deployment,
        "is not usable: a server that keeps what it has, or write='through': its maxmemory-policy is allkeys-lru",
    )


def test_a_worker_with_a_task_whose_sink_nobody_has_imported_does_not_start(deploy: Deploy) -> None:
    deployment = deploy(behind_sink=None)
    assert_refuses(deployment, f"sink={deployment.sink!r} of task ")


def assert_refuses(deployment: BehindDeployment, complaint: str) -> None:
    worker = deployment.worker()
    worker.start()
    try:
        wait_until(lambda: not worker.running, timeout=30, message=f"the end of the worker\n{worker.log_tail()}")
        assert worker.returncode not in (0, None)
        assert complaint in worker.log_text()
        assert " ready." not in worker.log_text()
    finally:
        worker.close()


# ---- in one process --------------------------------------------------------------------------------------------------


def test_a_flusher_is_shared_by_the_threads_of_a_process(deploy: Deploy) -> None:
    deployment = deploy()
    for number in range(50):
        deployment.task("order").cache.put((f"r{number}",), number)
    done: list[Flushed] = []
    writes, name = deployment.tiers.writes, deployment.sink
    threads = [threading.Thread(target=lambda: done.append(writes.flush(name)[name])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(each.taken for each in done) == 50
    assert len(deployment.saved()) == 50
