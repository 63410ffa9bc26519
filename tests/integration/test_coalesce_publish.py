"""``coalesce="publish"``: duplicates that send no message and follow the leader under ids of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError, TimeoutError
from celery.result import AsyncResult

from celery_cachetiers import CachedResult, CacheTiers, FollowingResult
from tests.integration.apps.worker_setup import Deployment, new_name, published
from tests.proxy import RedisProxy
from tests.rabbit import RabbitServer
from tests.servers import RedisServers
from tests.workers import Worker

# Celery's Redis backend calls redis-py's setex, which redis-py 8.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

PATIENCE = 20
"""Seconds after which a result counts as one that never comes."""


@pytest.fixture(scope="module", params=["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def deployment(request: pytest.FixtureRequest, servers: RedisServers) -> Iterator[Deployment]:
    """A worker with three slots over each broker."""
    broker = request.getfixturevalue("rabbit_server").url() if request.param == "rabbitmq" else None
    with Deployment(servers(), broker=broker) as deployment, deployment.worker(concurrency=3) as worker:
        yield deployment
        print(f"---- log of {worker!r}\n{worker.log_tail(60)}")


@pytest.fixture
def name() -> str:
    return new_name()


@pytest.fixture
def task(deployment: Deployment) -> Any:
    return deployment.task("work.published")


@pytest.fixture
def leader(deployment: Deployment, task: Any, name: str) -> AsyncResult[Any]:
    """The first call of a gated key, whose body runs."""
    deployment.book.put_up_gate(name)
    result = task.delay(name)
    deployment.book.started(name)
    return result  # type: ignore[no-any-return]  # the task is of any kind


def test_duplicates_of_a_call_under_way_send_no_message_and_get_its_value(
    deployment: Deployment, task: Any, name: str
) -> None:
    deployment.book.put_up_gate(name)
    with published() as messages:
        results = [task.delay(name) for _ in range(20)]
        deployment.book.open_gate(name)

        assert [result.get(timeout=PATIENCE) for result in results] == [f"{name}#1"] * 20
        assert messages == ["work.published"]
    assert [isinstance(result, FollowingResult) for result in results] == [False] + [True] * 19
    assert len({result.id for result in results}) == 20
    assert deployment.book.computes(name) == 1


def test_followers_wait_in_many_threads_at_once(
    deployment: Deployment, task: Any, leader: AsyncResult[Any], name: str
) -> None:
    values: list[Any] = []
    followers = [task.delay(name) for _ in range(8)]
    threads = [
        threading.Thread(target=lambda each=each: values.append(each.get(timeout=PATIENCE))) for each in followers
    ]
    for thread in threads:
        thread.start()
    deployment.wait_for_waiters(1, "work.published", name)
    deployment.book.open_gate(name)
    for thread in threads:
        thread.join(PATIENCE)

    assert values == [f"{name}#1"] * 8


def test_what_the_leader_gave_is_found_under_the_followers_own_id_by_anybody(
    deployment: Deployment, task: Any, leader: AsyncResult[Any], name: str
) -> None:
    follower = task.delay(name)
    deployment.book.open_gate(name)
    follower.get(timeout=PATIENCE)
    with published() as messages:
        elsewhere = AsyncResult(follower.id, app=deployment.app)

        assert elsewhere.get(timeout=PATIENCE) == f"{name}#1"
        assert messages == []
    assert follower.id != leader.id


def test_a_follower_whose_message_is_sent_after_all_is_counted_where_that_is_received(
    deployment: Deployment, task: Any, leader: AsyncResult[Any], name: str
) -> None:
    here = CacheTiers(deployment.app).counters.of("work.published")
    before = here.coalesced
    follower = task.delay(name)
    assert here.coalesced == before + 1
    assert follower.id

    assert here.coalesced == before
    deployment.book.open_gate(name)
    assert follower.get(timeout=PATIENCE) == f"{name}#1"


def test_an_id_that_is_seen_before_the_end_gets_a_message_and_finishes(
    deployment: Deployment, task: Any, leader: AsyncResult[Any], name: str
) -> None:
    follower = task.delay(name)
    with published() as messages:
        elsewhere = AsyncResult(follower.id, app=deployment.app)
        assert messages == ["work.published"]
        assert follower.id == elsewhere.id
        assert messages == ["work.published"]
    deployment.wait_for_held(1, "work.published", name)
    deployment.book.open_gate(name)

    assert elsewhere.get(timeout=PATIENCE) == follower.get(timeout=PATIENCE) == f"{name}#1"
    assert deployment.book.computes(name) == 1


def test_a_followers_state_follows_the_leader_without_a_message(
    deployment: Deployment, task: Any, leader: AsyncResult[Any], name: str
) -> None:
    follower = task.delay(name)
    with published() as messages:
        assert (follower.state, follower.ready(), follower.result) == ("PENDING", False, None)
        deployment.book.open_gate(name)
        leader.get(timeout=PATIENCE)

        assert (follower.state, follower.ready(), follower.result) == ("SUCCESS", True, f"{name}#1")
        assert messages == []


def test_a_follower_gets_the_failure_of_its_leader(
    deployment: Deployment, task: Any, leader: AsyncResult[Any], name: str
) -> None:
    follower, other = task.delay(name), task.delay(name)
    found: list[BaseException] = []

    def wait() -> None:
        try:
            follower.get(timeout=PATIENCE)
        except ValueError as error:
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    deployment.wait_for_waiters(1, "work.published", name)
    deployment.book.open_gate(name, 1, "fail")
    thread.join(PATIENCE)

    assert [str(error) for error in found] == [f"{name}#1"]
    assert isinstance(other.get(timeout=PATIENCE, propagate=False), ValueError)
    assert (follower.state, other.state) == ("FAILURE", "FAILURE")
    with pytest.raises(ValueError, match=f"^{name}#1$"):
        AsyncResult(follower.id, app=deployment.app).get(timeout=PATIENCE)
    assert deployment.book.computes(name) == 1


def test_a_get_that_times_out_leaves_the_follower_as_it_was(
    deployment: Deployment, task: Any, leader: AsyncResult[Any], name: str
) -> None:
    follower = task.delay(name)
    with published() as messages:
        with pytest.raises(TimeoutError):
            follower.get(timeout=0.2)
        assert messages == []
    deployment.book.open_gate(name)

    assert follower.get(timeout=PATIENCE) == f"{name}#1"


def test_revoking_or_forgetting_a_follower_harms_nobody_else(
    deployment: Deployment, task: Any, leader: AsyncResult[Any], name: str
) -> None:
    revoked, forgotten, other = task.delay(name), task.delay(name), task.delay(name)
    with published() as messages:
        revoked.revoke()
        revoked.revoke(terminate=True)
        forgotten.forget()
        assert messages == []
    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=PATIENCE)
    assert revoked.state == "REVOKED"
    assert AsyncResult(revoked.id, app=deployment.app).state == "REVOKED"
    deployment.book.open_gate(name)

    assert leader.get(timeout=PATIENCE) == other.get(timeout=PATIENCE) == f"{name}#1"
    assert deployment.book.computes(name) == 1


def test_canvas_is_never_left_without_its_messages(deployment: Deployment, task: Any, name: str) -> None:
    listed, same = deployment.task("listed"), deployment.task("same")
    deployment.book.put_up_gate(name)
    task.delay(name)
    deployment.book.started(name)
    results = [
        chord([task.s(name), task.s(name)])(listed.s()),
        group(task.s(name), task.s(name)).apply_async(),
        chain(same.s(name), task.s(), same.s()).apply_async(),
    ]
    deployment.wait_for_held(4, "work.published", name)
    deployment.book.open_gate(name)

    value = f"{name}#1"
    assert [result.get(timeout=PATIENCE) for result in results] == [[value] * 2, [value] * 2, value]
    assert deployment.book.computes(name) == 1


@pytest.mark.parametrize(
    "options", [{"task_id": "mine-{name}"}, {"countdown": 0.1}, {"link": True}, {"link_error": True}], ids=str
)
def test_what_rides_on_a_message_gets_its_message(
    deployment: Deployment, task: Any, leader: AsyncResult[Any], name: str, options: dict[str, Any]
) -> None:
    given = {key: value.format(name=name) if isinstance(value, str) else value for key, value in options.items()}
    for link in ("link", "link_error"):
        if given.get(link):
            given[link] = deployment.task("noted").si(name, name)
    with published() as messages:
        result = task.apply_async((name,), **given)

        assert messages == ["work.published"]
    deployment.book.open_gate(name)
    assert result.get(timeout=PATIENCE) == f"{name}#1"


def test_the_next_call_after_the_end_is_a_hit(
    deployment: Deployment, task: Any, leader: AsyncResult[Any], name: str
) -> None:
    deployment.book.open_gate(name)
    leader.get(timeout=PATIENCE)

    assert isinstance(task.delay(name), CachedResult)


def test_a_follower_whose_leader_is_lost_gets_a_message_of_its_own(
    servers: RedisServers, rabbit_server: RabbitServer, name: str
) -> None:
    with Deployment(servers(), broker=rabbit_server.url()) as deployment:
        task = deployment.task("work.published_short")
        lost = task.delay(name)  # there is no worker yet, and the lease that was handed to it ends
        follower = task.delay(name)
        assert isinstance(follower, FollowingResult)
        with published() as messages, _worker(deployment):
            assert follower.get(timeout=PATIENCE) == lost.get(timeout=PATIENCE) == f"{name}#1"
            assert len(messages) <= 1
        assert deployment.book.computes(name) == 1


def test_without_redis_every_call_sends_its_message(servers: RedisServers, name: str) -> None:
    with RedisProxy(servers.shared().port) as proxy:
        conf = {"cachetiers_timeout": 0.25, "cachetiers_breaker_window": 60.0}
        with Deployment(servers.shared(), cache=proxy.url(3), **conf) as deployment, _worker(deployment):
            proxy.refuse()
            task = deployment.task("work.published")
            with published() as messages:
                results = [task.delay(name) for _ in range(3)]

                assert messages == ["work.published"] * 3
            assert sorted(result.get(timeout=PATIENCE) for result in results) == [f"{name}#{n}" for n in (1, 2, 3)]


def test_a_follower_falls_back_on_a_message_when_redis_goes_away(servers: RedisServers, name: str) -> None:
    with RedisProxy(servers.shared().port) as proxy:
        conf = {"cachetiers_timeout": 0.25, "cachetiers_breaker_window": 0.1}
        with Deployment(servers.shared(), cache=proxy.url(3), **conf) as deployment, _worker(deployment):
            task = deployment.task("work.published")
            deployment.book.put_up_gate(name)
            task.delay(name)
            deployment.book.started(name)
            follower = task.delay(name)
            proxy.refuse()
            deployment.book.open_gate(name)

            assert follower.get(timeout=PATIENCE) in (f"{name}#1", f"{name}#2")


def test_a_message_that_cannot_be_sent_leaves_no_lease_behind(servers: RedisServers, name: str) -> None:
    with Deployment(servers.shared(), broker="redis://127.0.0.1:1/0") as deployment:
        task = deployment.task("work.published")
        with pytest.raises(Exception, match=r"refused|Connection"):
            task.apply_async((name,), retry=False)

        with deployment.server.client(3) as client:
            assert client.exists(deployment.lease_key("work.published", name)) == 0


def test_the_first_duplicate_is_coalesced_before_the_worker_has_begun(servers: RedisServers, name: str) -> None:
    with Deployment(servers.shared()) as deployment:
        task = deployment.task("work.published")
        with published() as messages:
            results = [task.delay(name) for _ in range(5)]

            assert messages == ["work.published"]
        with _worker(deployment):
            assert [result.get(timeout=PATIENCE) for result in results] == [f"{name}#1"] * 5
        assert CacheTiers(deployment.app).counters.of("work.published").coalesced == 4


def _worker(deployment: Deployment) -> Worker:
    return deployment.worker(concurrency=2)
