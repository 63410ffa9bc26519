"""Duplicates wait in a worker's main process: they take no slot, delay nobody, and end as Celery would have it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import chord

from tests.integration.apps.worker_setup import (
    Deployment,
    Led,
    Start,
    new_name,
    starter,
)
from tests.processes import wait_until
from tests.rabbit import RabbitServer
from tests.servers import RedisServers
from tests.workers import Worker

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

PATIENCE = 20
"""Seconds after which a result counts as one that never comes."""


@pytest.fixture(scope="module")
def servers() -> Iterator[RedisServers]:
    servers = RedisServers()
    yield servers
    servers.close()


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


def room(deployment: Deployment, worker: Worker) -> dict[str, int]:
    """What `celery inspect stats` says of the waiting room."""
    found = deployment.app.control.inspect([worker.hostname], timeout=5).stats()
    return dict(found[worker.hostname]["waiting_room"])


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
    assert [_runs(deployment, each.id) for each in led.followers] == [1] * DUPLICATES
    assert book.computes(name) == 1
    assert room(deployment, worker)["held"] == 0


def _runs(deployment: Deployment, task_id: str) -> int:
    """Times that a task has run to success, wherever."""
    notes = deployment.book.client.lrange(f"signals:{task_id}", 0, -1)
    return sum(note.startswith("success:") for note in notes)


def test_the_prefetch_count_is_what_it_was_when_nobody_waits_any_longer(
    start: Start, rabbit_server: RabbitServer, name: str
) -> None:
    deployment, worker = start("--prefetch-multiplier=4", settings={"worker_eta_task_limit": 9})
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
    wait_until(lambda: _runs(deployment, by_keyword.id) == 1, timeout=PATIENCE, message="the one without a result")
    assert by_keyword.state == "PENDING"
    assert led.values() == [f"{name}#1"]
    assert book.client.llen(f"noted:{name}") == 0
    assert book.computes(name) == 1
