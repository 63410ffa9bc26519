"""Duplicates inside canvas on a real prefork worker: every signature gets the value and nothing hangs.

Followers block in their slot, so one compute per key is the least; where a body fails on purpose, one more per failure.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain, chord, group
from celery.result import AsyncResult

from tests.integration.apps.worker_setup import Deployment, new_name
from tests.processes import wait_until
from tests.servers import RedisServers

# Celery's Redis backend calls redis-py's setex, which redis-py 8.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

PATIENCE = 20
"""Seconds after which a result counts as one that never comes."""


@pytest.fixture(scope="module", params=["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A prefork worker with three children over each broker."""
    broker = request.getfixturevalue("rabbit_server").url() if request.param == "rabbitmq" else None
    servers = RedisServers()
    with Deployment(servers(), broker=broker) as deployment, deployment.worker(concurrency=3) as worker:
        yield deployment
        print(f"---- log of {worker!r}\n{worker.log_tail(60)}")
    servers.close()


@pytest.fixture
def name() -> str:
    return new_name()


@pytest.fixture
def work(deployment: Deployment) -> Any:
    """The memoized task that most tests repeat."""
    return deployment.task("work.plain")


@pytest.fixture
def listed(deployment: Deployment) -> Any:
    """An ordinary task that returns the list it is given."""
    return deployment.task("listed")


def _computed_together(deployment: Deployment, name: str) -> None:
    """Lets the leader of a gated key end when a duplicate is held: they did meet."""
    deployment.book.started(name)
    deployment.wait_for_held(1, "work.plain", name)
    deployment.book.open_gate(name)


def test_two_duplicates_in_one_chord_header(deployment: Deployment, work: Any, listed: Any, name: str) -> None:
    deployment.book.put_up_gate(name)
    result = chord([work.s(name), work.s(name)])(listed.s())
    _computed_together(deployment, name)

    assert result.get(timeout=PATIENCE) == [f"{name}#1"] * 2
    assert deployment.book.computes(name) == 1


def test_a_chord_whose_whole_header_is_in_the_cache_completes(
    deployment: Deployment, work: Any, listed: Any, name: str
) -> None:
    work.delay(name).get(timeout=PATIENCE)

    result = chord([work.s(name)] * 3)(listed.s())

    assert result.get(timeout=PATIENCE) == [f"{name}#1"] * 3
    assert deployment.book.computes(name) == 1


def test_the_same_duplicate_in_two_chords(deployment: Deployment, work: Any, listed: Any, name: str) -> None:
    deployment.book.put_up_gate(name)
    results = [chord([work.s(name), work.s(f"{name}-{each}")])(listed.s()) for each in range(2)]
    _computed_together(deployment, name)

    assert [result.get(timeout=PATIENCE) for result in results] == [
        [f"{name}#1", f"{name}-0#1"],
        [f"{name}#1", f"{name}-1#1"],
    ]
    assert deployment.book.computes(name) == 1


def test_duplicates_in_the_middle_of_chains_hand_the_value_on(deployment: Deployment, work: Any, name: str) -> None:
    same = deployment.task("same")
    deployment.book.put_up_gate(name)
    results = [chain(same.s(name), work.s(), same.s(), same.s()).apply_async() for _ in range(3)]
    _computed_together(deployment, name)

    assert [result.get(timeout=PATIENCE) for result in results] == [f"{name}#1"] * 3
    assert [result.parent.parent.get(timeout=PATIENCE) for result in results] == [f"{name}#1"] * 3
    assert deployment.book.computes(name) == 1


def test_the_links_of_every_duplicate_run(deployment: Deployment, work: Any, name: str) -> None:
    noted = deployment.task("noted")
    deployment.book.put_up_gate(name)
    results = [work.apply_async((name,), link=noted.s(name)) for _ in range(3)]
    _computed_together(deployment, name)
    results.append(work.apply_async((name,), link=noted.s(name)))

    assert [result.get(timeout=PATIENCE) for result in results] == [f"{name}#1"] * 4
    notes = deployment.book.client
    wait_until(lambda: notes.llen(f"noted:{name}") == 4, timeout=PATIENCE, message="four linked tasks")
    assert notes.lrange(f"noted:{name}", 0, -1) == [f"{name}#1"] * 4
    assert deployment.book.computes(name) == 1


def test_the_error_links_of_a_failing_duplicate_run(deployment: Deployment, work: Any, name: str) -> None:
    book, noted_error = deployment.book, deployment.task("noted_error")
    book.put_up_gate(name)
    result = work.apply_async((name,), link_error=noted_error.s(name))
    book.started(name)
    rival = work.apply_async((name,), link_error=noted_error.s(name))
    deployment.wait_for_held(1, "work.plain", name)
    book.open_gate(name, 1, "fail")

    for each in (result, rival):
        with pytest.raises(ValueError, match=f"{name}#1"):
            each.get(timeout=PATIENCE)
    for _ in range(2):
        assert book.client.blpop([f"noted:{name}"], timeout=PATIENCE)[1] == f"ValueError('{name}#1')"
    assert book.computes(name) == 1


def test_the_stamps_of_every_duplicate_reach_its_links_as_in_stock_celery(
    deployment: Deployment, work: Any, name: str
) -> None:
    deployment.book.put_up_gate(name)
    noted, client = deployment.task("noted_stamps"), deployment.book.client
    kinds = {"stock": deployment.task("same").s(f"{name}#1"), "duplicate": work.s(name), "leader": work.s(name)}
    for kind, signature in kinds.items():
        signature.link(noted.s(f"{name}-{kind}"))
        signature.stamp(season="winter", kinds=["a", "b"])
        signature.apply_async()
    _computed_together(deployment, name)

    found = [client.blpop([f"noted:{name}-{kind}"], timeout=PATIENCE) for kind in kinds]
    stock, duplicate, leader = (json.loads(each[1]) for each in found)
    assert duplicate == leader == stock
    assert stock[0] == f"{name}#1"
    assert stock[1]["season"] == "winter"
    assert deployment.book.computes(name) == 1


def test_a_chord_with_a_failing_header_fails_and_does_not_hang(
    deployment: Deployment, work: Any, listed: Any, name: str
) -> None:
    book = deployment.book
    book.put_up_gate(name)
    book.open_gate(name, "all", "fail")

    result = chord([work.s(name), work.s(name)])(listed.s())

    with pytest.raises(Exception, match=name):
        result.get(timeout=PATIENCE)
    wait_until(lambda: result.state == "FAILURE", timeout=PATIENCE, message="the failure of the chord's body")


def test_duplicates_in_a_group(deployment: Deployment, work: Any, name: str) -> None:
    deployment.book.put_up_gate(name)
    result = group(work.s(name) for _ in range(5)).apply_async()
    _computed_together(deployment, name)

    assert result.get(timeout=PATIENCE) == [f"{name}#1"] * 5
    assert len({each.id for each in result.results}) == 5
    assert deployment.book.computes(name) == 1


def test_duplicates_in_nested_groups(deployment: Deployment, work: Any, listed: Any, name: str) -> None:
    deployment.book.put_up_gate(name)
    nested = group(group(work.s(name), work.s(name)), chain(work.s(name), deployment.task("same").s()), work.s(name))
    result = chord(nested)(listed.s())
    _computed_together(deployment, name)

    assert result.get(timeout=PATIENCE) == [f"{name}#1"] * 4  # Celery flattens the header
    assert deployment.book.computes(name) == 1


def _saved(signature: Any) -> str:
    """Id of a result that is in the backend only: Celery 5.5 waits for ever if the process has another copy of it."""
    result = signature.apply_async()
    result.save()
    result_id: str = result.id
    del result
    gc.collect()
    return result_id


def test_a_saved_and_restored_group_of_hits_has_its_values(deployment: Deployment, work: Any, name: str) -> None:
    work.delay(name).get(timeout=PATIENCE)
    result_id = _saved(group(work.s(name), work.s(name)))

    restored = deployment.app.GroupResult.restore(result_id)

    assert restored.get(timeout=PATIENCE) == [f"{name}#1"] * 2
    restored.delete()


def test_a_task_that_is_replaced_by_a_duplicate(deployment: Deployment, work: Any, name: str) -> None:
    deployment.book.put_up_gate(name)
    results = [work.delay(name), *(deployment.task("replaced").delay(name) for _ in range(2))]
    _computed_together(deployment, name)

    assert [result.get(timeout=PATIENCE) for result in results] == [f"{name}#1"] * 3
    assert deployment.book.computes(name) == 1


def test_a_memoized_task_that_replaces_itself(deployment: Deployment, name: str) -> None:
    results = [deployment.task("replacing").delay(name) for _ in range(3)]

    assert [result.get(timeout=PATIENCE) for result in results] == [f"{name}#1"] * 3
    assert deployment.book.computes(name) == 1
    assert deployment.book.computes(f"replacing {name}") <= 3


def test_a_duplicate_whose_result_is_ignored(deployment: Deployment, name: str) -> None:
    book, quiet = deployment.book, deployment.task("work.quiet")
    results = [quiet.delay(name) for _ in range(3)]
    book.started(name)
    chained = chain(quiet.s(name), deployment.task("same").s()).apply_async()

    assert chained.get(timeout=PATIENCE) == f"{name}#1"
    assert [result.get(timeout=PATIENCE) for result in results] == [None] * 3
    assert [AsyncResult(result.id, app=deployment.app).state for result in results] == ["PENDING"] * 3
    assert book.computes(name) == 1


def test_a_leader_that_autoretries_and_its_duplicates(deployment: Deployment, name: str) -> None:
    results = [deployment.task("autoretried").delay(name) for _ in range(3)]

    assert [result.get(timeout=PATIENCE) for result in results] == [f"{name}#2"] * 3
    assert [result.state for result in results] == ["SUCCESS"] * 3
    assert deployment.book.computes(name) == 2
    assert deployment.book.overlaps(name) == 0


def test_a_leader_that_retries_itself_and_its_duplicates(deployment: Deployment, name: str) -> None:
    results = [deployment.task("retried").delay(name) for _ in range(3)]

    assert [result.get(timeout=PATIENCE) for result in results] == [f"{name}#2"] * 3
    assert [result.state for result in results] == ["SUCCESS"] * 3
    assert deployment.book.computes(name) == 2
    assert deployment.book.overlaps(name) == 0


def test_a_retry_of_the_leader_inside_a_chord_of_duplicates(deployment: Deployment, listed: Any, name: str) -> None:
    result = chord([deployment.task("retried").s(name)] * 2)(listed.s())

    assert result.get(timeout=PATIENCE) == [f"{name}#2"] * 2
    assert deployment.book.computes(name) == 2
