"""Duplicates wait in a worker's main process: they take no slot, delay nobody, and end as Celery would have it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chord

from tests.integration.apps.worker_setup import (
    Deployment,
    Led,
    Start,
    assert_ends,
    events,
    leading_here,
    new_name,
    room,
    runs,
    starter,
)
from tests.processes import wait_until
from tests.servers import RedisServers
from tests.workers import Worker

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

PATIENCE = 20
"""Seconds after which a result counts as one that never comes."""


@pytest.fixture(scope="module")
def deployment(servers: RedisServers) -> Iterator[Deployment]:
    with Deployment(servers()) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def worker(deployment: Deployment) -> Iterator[Worker]:
    with deployment.worker("-E", concurrency=3) as worker:
        yield worker
        print(f"---- log of {worker!r}\n{worker.log_tail(200)}")


@pytest.fixture
def start(servers: RedisServers) -> Iterator[Start]:
    with starter(servers) as start:
        yield start


@pytest.fixture
def name(deployment: Deployment) -> Iterator[str]:
    """A key of the test's own. Whoever is still held at its gate when the test ends is let go."""
    name = new_name()
    yield name
    deployment.book.open_gate(name)


def reserved(deployment: Deployment, worker: Worker) -> set[str]:
    """Ids that `celery inspect reserved` shows."""
    found = deployment.app.control.inspect([worker.hostname], timeout=5).reserved()
    return {each["id"] for each in found[worker.hostname]}


# -- unrelated tasks ----------------------------------------------------------------------------------------------

DUPLICATES, OTHERS = 100, 20
QUORUM = {"task_default_queue_type": "quorum", "broker_transport_options": {"confirm_publish": True}}


@pytest.mark.parametrize(
    ("broker", "multiplier", "settings", "held"),
    [
        pytest.param("redis", 1, {}, DUPLICATES, id="redis-1"),
        pytest.param("redis", 4, {}, DUPLICATES, id="redis-4"),
        pytest.param("redis", 0, {}, DUPLICATES, id="redis-0"),
        pytest.param("redis", 4, {"worker_eta_task_limit": 28}, 10, id="redis-4-limit-28"),
        pytest.param("redis", 4, {"worker_eta_task_limit": 9}, 3, id="redis-4-limit-9"),
        pytest.param("redis", 4, {"worker_eta_task_limit": 2}, 3, id="redis-4-limit-2"),
        pytest.param("redis", 1, {"worker_disable_prefetch": True}, DUPLICATES, id="redis-1-no-prefetch"),
        pytest.param("rabbitmq", 1, {}, DUPLICATES, id="rabbitmq-1", marks=pytest.mark.rabbitmq),
        pytest.param("rabbitmq", 4, {}, DUPLICATES, id="rabbitmq-4", marks=pytest.mark.rabbitmq),
        pytest.param("rabbitmq", 1, QUORUM, 0, id="quorum-1", marks=pytest.mark.rabbitmq),
        pytest.param("rabbitmq", 4, QUORUM, 3, id="quorum-4", marks=pytest.mark.rabbitmq),
        pytest.param("rabbitmq", 0, QUORUM, DUPLICATES, id="quorum-0", marks=pytest.mark.rabbitmq),
    ],
)
def test_other_tasks_pass_while_a_hundred_duplicates_wait(
    request: pytest.FixtureRequest, start: Start, name: str,
    broker: str, multiplier: int, settings: dict[str, Any], held: int,
) -> None:  # fmt: skip
    url = request.getfixturevalue("rabbit_server").url() if broker == "rabbitmq" else None
    deployment, worker = start(broker=url, settings={"worker_prefetch_multiplier": multiplier, **settings})
    book = deployment.book
    led = Led(deployment, "ends", name, 0)
    led.send(DUPLICATES)
    deployment.wait_for_held(held, "ends", name)
    others = [deployment.app.send_task("same", (number,)) for number in range(OTHERS)]
    assert [each.get(timeout=PATIENCE) for each in others] == list(range(OTHERS))

    assert room(deployment, worker)["held"] == held
    shown = reserved(deployment, worker) & {each.id for each in led.followers}
    assert held == len(shown) or held < DUPLICATES or settings.get("worker_disable_prefetch")
    assert not (shown and settings.get("worker_disable_prefetch"))
    book.open_gate(name)
    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#1"] * (DUPLICATES + 1)
    assert [runs(deployment, each.id) for each in led.followers] == [1] * DUPLICATES
    assert book.computes(name) == 1
    assert room(deployment, worker)["held"] == 0


def test_the_prefetch_count_is_what_it_was_when_nobody_waits_any_longer(start: Start, name: str) -> None:
    deployment, worker = start(settings={"worker_prefetch_multiplier": 4, "worker_eta_task_limit": 9})
    for number in range(3):
        led = Led(deployment, "ends", f"{name}-{number}", 0)
        led.send(10)
        deployment.wait_for_held(3, "ends", f"{name}-{number}")
        deployment.book.open_gate(f"{name}-{number}")
        led.values()

    stats = deployment.app.control.inspect([worker.hostname], timeout=5).stats()[worker.hostname]
    assert stats["prefetch_count"] == 2 * 4


def test_what_finds_the_room_full_goes_through_the_broker_and_keeps_all_that_rides_on_it(
    start: Start, name: str
) -> None:
    deployment, _ = start("--prefetch-multiplier=1", settings={"worker_eta_task_limit": 4})
    book, ends = deployment.book, deployment.task("ends")
    led = Led(deployment, "ends", name, 1)
    header = chord([ends.s(name)] * 5)(deployment.task("listed").s())
    linked = ends.apply_async((name,), link=deployment.task("noted").s(name))
    by_keyword = deployment.app.send_task("ends", kwargs={"name": name}, ignore_result=True, headers={"mine": "yes"})
    assert deployment.app.send_task("same", ("passed",)).get(timeout=PATIENCE) == "passed"
    book.open_gate(name)

    assert header.get(timeout=PATIENCE) == [f"{name}#1"] * 5
    assert linked.get(timeout=PATIENCE) == led.leader.get(timeout=PATIENCE) == f"{name}#1"
    assert book.client.blpop([f"noted:{name}"], timeout=PATIENCE)[1] == f"{name}#1"
    wait_until(lambda: runs(deployment, by_keyword.id) == 1, timeout=PATIENCE, message="the one without a result")
    assert by_keyword.state == "PENDING"
    assert led.values() == [f"{name}#1"]
    assert book.client.llen(f"noted:{name}") == 0
    assert book.computes(name) == 1


# -- pools --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_other_pools_hold_duplicates_answer_let_go_and_give_them_back(start: Start, name: str, pool: str) -> None:
    deployment, worker = start(pool=pool)
    book = deployment.book
    led = Led(deployment, "ends", name, 20)
    assert room(deployment, worker)["held"] == 20
    others = [deployment.app.send_task("same", (number,)) for number in range(OTHERS)]
    assert [each.get(timeout=PATIENCE) for each in others] == list(range(OTHERS))
    revoked = led.followers.pop()
    revoked.revoke(terminate=True)
    assert_ends(revoked, "REVOKED", timeout=2.5)
    book.open_gate(name)
    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#1"] * 20

    failing, later = f"{name}-failing", f"{name}-later"
    led = Led(deployment, "ends", failing, 3)
    book.open_gate(failing, 1, "fail")
    for each in (led.leader, *led.followers):
        with pytest.raises(ValueError, match=f"^{failing}#1$"):
            each.get(timeout=PATIENCE)

    led = Led(deployment, "ends", later, 3)
    worker.terminate()
    worker.wait_for_log("Warm shutdown")
    book.open_gate(later)
    wait_until(lambda: not worker.running, timeout=PATIENCE, message="end of the worker")
    worker.start()
    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{later}#1"] * 4
    assert [book.computes(each) for each in (name, failing, later)] == [1, 1, 1]


def test_a_solo_worker_holds_nobody_and_every_duplicate_ends_right(start: Start, name: str) -> None:
    deployment, _ = start(pool="solo")
    book = deployment.book
    led = Led(deployment, "ends", name, 0)
    led.send(5)
    other = deployment.app.send_task("same", ("passed",))
    book.open_gate(name)

    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#1"] * 6
    assert other.get(timeout=PATIENCE) == "passed"
    assert book.computes(name) == 1


# -- refused at start ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broker", "settings", "remedy"),
    [
        ("redis", {"cachetiers_wait_limit": 1800}, "visibility_timeout"),
        (
            "redis",
            {"cachetiers_wait_limit": 60, "broker_transport_options": {"visibility_timeout": 100}},
            "visibility_timeout",
        ),
        pytest.param("rabbitmq", {"cachetiers_wait_limit": 900}, "consumer_timeout", marks=pytest.mark.rabbitmq),
    ],
)
def test_a_worker_whose_requests_might_wait_too_long_for_its_broker_does_not_start(
    request: pytest.FixtureRequest, deployment: Deployment, broker: str, settings: dict[str, Any], remedy: str
) -> None:
    url = request.getfixturevalue("rabbit_server").url() if broker == "rabbitmq" else deployment.server.url(1)
    worker = deployment.worker(conf={**settings, "broker_url": url})
    try:
        worker.start()
        wait_until(lambda: not worker.running, timeout=PATIENCE, message="the refusal")
        log = worker.log_text()
    finally:
        worker.close()

    assert worker.returncode not in (0, None)
    assert "ConfigurationError: wait_limit=" in log
    assert remedy in log
    assert " ready." not in log


@pytest.mark.parametrize(
    ("broker", "option"),
    [("redis", "visibility_timeout"), pytest.param("rabbitmq", "consumer_timeout", marks=pytest.mark.rabbitmq)],
)
def test_the_remedy_that_the_refusal_names_lets_the_worker_start(
    request: pytest.FixtureRequest, deployment: Deployment, broker: str, option: str
) -> None:
    url = request.getfixturevalue("rabbit_server").url() if broker == "rabbitmq" else deployment.server.url(1)
    settings = {"cachetiers_wait_limit": 1800, "broker_transport_options": {option: 7200}, "broker_url": url}
    with deployment.worker(conf=settings) as worker:
        assert worker.running


# -- kinds of tasks -----------------------------------------------------------------------------------------------


def test_handlers_of_ones_own_never_run_in_the_main_process(deployment: Deployment, worker: Worker, name: str) -> None:
    led = Led(deployment, "kind.handlers", name, 3)
    deployment.book.open_gate(name)
    results = [led.leader, *led.followers, deployment.app.send_task("kind.handlers", (name,))]

    assert [each.get(timeout=PATIENCE) for each in results] == [f"{name}#1"] * 5
    for result in results:
        notes = f"handlers:{result.id}"
        wait_until(lambda n=notes: deployment.book.client.llen(n) >= 3, timeout=PATIENCE, message=notes)
        found = [note.split(":") for note in deployment.book.client.lrange(notes, 0, -1)]
        assert [what for what, _ in found] == ["before_start", "on_success", "after_return"]
        assert {int(pid) for _, pid in found} <= set(worker.children())
    assert deployment.book.computes(name) == 1


def test_what_is_held_is_answered_in_the_main_process_with_celerys_signals_and_events_once_each(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    with events(deployment) as heard:
        led = Led(deployment, "ends", name, 3)
        deployment.book.open_gate(name)
        results = [led.leader, *led.followers]
        assert [each.get(timeout=PATIENCE) for each in results] == [f"{name}#1"] * 4
        whole = ["task-received", "task-started", "task-succeeded"]
        for each in results:
            wait_until(
                lambda i=each.id: "task-succeeded" in heard.get(i, []), timeout=PATIENCE, message=f"events of {each}"
            )

    assert [heard[each.id] for each in results] == [whole] * 4
    for each in led.followers:
        notes = deployment.book.client.lrange(f"signals:{each.id}", 0, -1)
        assert notes == [f"{what}:{worker.pid}" for what in ("prerun", "success", "postrun SUCCESS")]


def test_a_request_that_gave_its_slot_back_tells_of_it_and_is_then_answered(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    """The leader is in another process, of which the worker learns in a child."""
    with events(deployment) as heard, leading_here(deployment, "ends", name):
        follower = deployment.app.send_task("ends", (name,))
        deployment.wait_for_held(1, "ends", name)
        deployment.book.open_gate(name)
        assert follower.get(timeout=PATIENCE) == f"{name}#1"
        wait_until(
            lambda: "task-succeeded" in heard.get(follower.id, []), timeout=PATIENCE, message="the follower's events"
        )

    # Started twice: Celery announces that when the pool accepts a request, before anybody can know of the leader.
    assert heard[follower.id] == ["task-received", "task-started", "task-started", "task-succeeded"]
    notes = [note.split(":")[0] for note in deployment.book.client.lrange(f"signals:{follower.id}", 0, -1)]
    assert notes == ["prerun", "postrun IGNORED", "prerun", "success", "postrun SUCCESS"]
    assert deployment.book.computes(name) == 1


def test_to_terminate_a_request_that_gave_its_slot_back_ends_no_process(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    children = worker.children()
    with leading_here(deployment, "ends", name):
        follower = deployment.app.send_task("ends", (name,))
        deployment.wait_for_held(1, "ends", name)
        follower.revoke(terminate=True, signal="SIGKILL")
        assert_ends(follower, "REVOKED", timeout=2.5)
        pids = {deployment.app.send_task("pid").get(timeout=PATIENCE) for _ in range(20)}

        assert worker.children() == children
        assert pids <= set(children)


@pytest.mark.parametrize("task", ["kind.tracked", "kind.bound"])
def test_held_duplicates_of_every_kind_get_the_value(
    deployment: Deployment, worker: Worker, name: str, task: str
) -> None:
    led = Led(deployment, task, name, 3)
    deployment.book.open_gate(name)

    value = f"{name}#1 {task}" if task == "kind.bound" else f"{name}#1"
    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [value] * 4
    assert deployment.book.computes(name) == 1


def test_a_task_that_tracks_its_start_is_pending_while_it_is_held(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    led = Led(deployment, "kind.tracked", name, 1)
    assert_ends(led.leader, "STARTED")
    assert led.followers[0].state == "PENDING"
    deployment.book.open_gate(name)

    assert led.values() == [f"{name}#1"]


def test_held_duplicates_whose_result_is_ignored_run_their_links(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book, noted = deployment.book, deployment.task("noted")
    led = Led(deployment, "kind.ignored", name, 0, link=noted.s(name))
    led.hold(2, link=noted.s(name))
    book.open_gate(name)

    assert [book.client.blpop([f"noted:{name}"], timeout=PATIENCE)[1] for _ in range(3)] == [f"{name}#1"] * 3
    assert [each.state for each in (led.leader, *led.followers)] == ["PENDING"] * 3
    assert book.computes(name) == 1


def test_held_duplicates_of_a_task_that_takes_a_model_get_its_dumped_value(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    deployment.book.put_up_gate(name)
    leader = deployment.app.send_task("kind.pydantic", ({"name": name},))
    deployment.book.started(name)
    followers = [deployment.app.send_task("kind.pydantic", ({"name": name},)) for _ in range(2)]
    deployment.wait_for_held(2, "kind.pydantic", {"name": name})
    deployment.book.open_gate(name)

    assert [each.get(timeout=PATIENCE) for each in (leader, *followers)] == [{"name": name, "amount": 1}] * 3
    assert deployment.book.computes(name) == 1


def test_a_follower_that_is_acknowledged_early_blocks_in_its_slot_and_ends_right(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    with leading_here(deployment, "kind.early", name):
        follower = deployment.app.send_task("kind.early", (name,))
        deployment.wait_for_waiters(1, "kind.early", name)
        deployment.book.open_gate(name)

        assert follower.get(timeout=PATIENCE) == f"{name}#1"
    assert deployment.book.computes(name) == 1


@pytest.mark.parametrize("limit", ["soft_time_limit", "time_limit"])
def test_the_time_that_a_follower_is_held_does_not_count_against_its_limit(
    deployment: Deployment, worker: Worker, name: str, limit: str
) -> None:
    led = Led(deployment, "ends", name, 1)
    led.hold(1, **{limit: 1})
    time.sleep(1.5)  # what must not happen has no rendezvous
    deployment.book.open_gate(name)

    assert led.values() == [f"{name}#1"] * 2


# -- children that are forked later -------------------------------------------------------------------------------


@pytest.mark.slow
def test_answers_in_the_main_process_do_not_trouble_the_children_that_it_forks(start: Start, name: str) -> None:
    deployment, _ = start("--max-tasks-per-child=1", concurrency=3)
    names = [f"{name}-{number}" for number in range(25)]
    results = [(each, deployment.app.send_task("ends", (each,))) for each in names for _ in range(6)]
    pids = [deployment.app.send_task("pid") for _ in names]

    assert all(result.get(timeout=PATIENCE) == f"{each}#1" for each, result in results)
    assert len({each.get(timeout=PATIENCE) for each in pids}) == len(names)
    assert [deployment.book.computes(each) for each in names] == [1] * len(names)


# -- stale instead of waiting -------------------------------------------------------------------------------------


def test_followers_get_the_stale_value_at_once_while_the_leader_computes(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book, send = deployment.book, deployment.app.send_task
    assert send("kind.grace", (name,)).get(timeout=PATIENCE) == f"{name}#1"
    book.started(name)
    time.sleep(0.3)  # its ttl
    led = Led(deployment, "kind.grace", name, 0)
    led.send(10)

    assert led.values() == [f"{name}#1"] * 10
    assert room(deployment, worker)["held"] == 0
    book.open_gate(name)
    assert led.leader.get(timeout=PATIENCE) == f"{name}#2"
    assert book.computes(name) == 2
