"""What one process keeps in memory, and what it does about it when another one, or the network, says otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery

from celery_cachetiers import MISSING, CachedTask, CacheTiers
from celery_cachetiers.events import Event
from celery_cachetiers.testing import Gate
from tests.integration.apps.local import Count, cached_app, closing, wait_listening
from tests.processes import ROOT, wait_until
from tests.proxy import RedisProxy
from tests.servers import RedisServer

SOON = 10.0


class Neighbour:
    """A process with the same task and namespace; see apps/neighbour.py."""

    def __init__(self, url: str, namespace: str, **settings: Any) -> None:
        command = [sys.executable, "-m", "tests.integration.apps.neighbour", url, namespace, json.dumps(settings)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def do(self, *order: object) -> Any:
        """Has it do one thing; returns what came of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the neighbour has ended: {self._process.poll()}"
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate(timeout=20)


@pytest.fixture
def neighbour(namespace: str, redis_server: RedisServer) -> Iterator[Neighbour]:
    neighbour = Neighbour(redis_server.url(), namespace)
    neighbour.do("listen")
    yield neighbour
    neighbour.close()


@pytest.fixture
def app(namespace: str, redis_proxy: RedisProxy) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_proxy.url())) as app:
        wait_listening(app)
        yield app


def pager(app: Celery, body: Callable[[str], str] | None = None, **options: Any) -> Any:
    def page(user: str) -> str:
        return body(user) if body is not None else f"page of {user}"

    return app.task(page, **{"base": CachedTask, "name": "page", "tags": ["user:{user}"], **options})


def in_l1(task: Any, user: str) -> Any:
    memoized = task._memoized or task._memoize()
    return memoized.cache.recall(memoized.call((user,), {}))


# -- between processes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["tag", "key", "clear", "put", "refresh"])
def test_a_copy_in_another_process_goes_when_it_is_invalidated_here(
    app: Celery, neighbour: Neighbour, how: str
) -> None:
    page = pager(app)
    for user in ("a", "b"):
        assert neighbour.do("page", user) == f"page of {user}"
        assert neighbour.do("in_l1", user) == f"page of {user}"

    acts = {
        "tag": lambda: CacheTiers(app).invalidate_tag("user:a"),
        "key": lambda: page.cache.invalidate("a"),
        "clear": lambda: CacheTiers(app).clear(),
        "put": lambda: page.cache.put(("a",), "new"),
        "refresh": lambda: page.cache.refresh("a"),
    }
    acts[how]()

    wait_until(lambda: neighbour.do("in_l1", "a") is None, timeout=SOON, message="the end of the copy")
    assert neighbour.do("in_l1", "b") == (None if how == "clear" else "page of b")
    assert neighbour.do("page", "a") == ("new" if how == "put" else "page of a")


def test_a_copy_in_this_process_goes_when_it_is_invalidated_elsewhere(app: Celery, neighbour: Neighbour) -> None:
    page = pager(app)
    page("a")
    assert in_l1(page, "a") == "page of a"

    neighbour.do("invalidate_tag", "user:a")

    assert page.cache.get("a") is MISSING or in_l1(page, "a") is not MISSING
    wait_until(lambda: in_l1(page, "a") is MISSING, timeout=SOON, message="the end of the copy")
    assert neighbour.do("page", "a") == "page of a"
    assert neighbour.do("computed") == 1


def test_once_an_invalidation_has_returned_no_strict_read_gives_the_old_value(
    app: Celery, neighbour: Neighbour
) -> None:
    values = Count()
    page = pager(app, lambda user: f"{user}{values()}", consistency="strict")

    for number in range(1, 30):
        assert page("a") == f"a{number}"
        assert page("a") == f"a{number}"
        neighbour.do("invalidate_tag", "user:a")


def test_a_value_whose_compute_began_before_an_invalidation_is_not_kept_anywhere(
    app: Celery, neighbour: Neighbour
) -> None:
    gate, values = Gate("compute"), Count()

    def body(user: str) -> str:
        number = values()
        if number == 1:
            gate.pass_through()
        return f"{user}{number}"

    page = pager(app, body)
    with ThreadPoolExecutor(1) as pool:
        led = pool.submit(page, "a")
        gate.wait_reached()
        neighbour.do("invalidate_tag", "user:a")
        gate.open()
        assert led.result(30) == "a1"

    assert in_l1(page, "a") is MISSING
    assert page("a") == "a2"
    assert page.cache.info().refused == 1


def test_a_put_elsewhere_refuses_the_leader_here(app: Celery, neighbour: Neighbour) -> None:
    gate = Gate("compute")

    def body(user: str) -> str:
        gate.pass_through()
        return "old"

    page = pager(app, body)
    with ThreadPoolExecutor(1) as pool:
        led = pool.submit(page, "a")
        gate.wait_reached()
        neighbour.do("put", "a", "new")
        gate.open()
        assert led.result(30) == "old"

    assert page.cache.get("a") == "new"
    assert page("a") == "new"


def test_a_read_that_an_invalidation_overtakes_is_not_kept(app: Celery, redis_proxy: RedisProxy) -> None:
    """The answer of an L2 read is under way while the announcement arrives: the copy is under an older mark."""
    page = pager(app, l1=True)
    page("a")
    CacheTiers(app).cache.parts.l1.discard(page.cache.key("a"))  # type: ignore[attr-defined]
    read = threading.Event()

    def overtake(sent: tuple[bytes, ...]) -> None:
        if sent[0].upper() == b"MGET" and not read.is_set():
            read.set()
            CacheTiers(app).cache.parts.l1.invalidate(["user:a"])

    redis_proxy.on_command = overtake
    assert page("a") == "page of a"
    redis_proxy.on_command = None

    assert read.is_set()
    assert in_l1(page, "a") is MISSING


# -- the backplane ------------------------------------------------------------------------------------------------


def test_a_cut_backplane_clears_l1_until_it_listens_again(app: Celery, redis_proxy: RedisProxy) -> None:
    page = pager(app)
    page("a")
    assert in_l1(page, "a") == "page of a"

    redis_proxy.refuse()
    wait_until(lambda: in_l1(page, "a") is MISSING, timeout=SOON, message="the end of the copy")
    page("b")
    assert in_l1(page, "b") is MISSING

    redis_proxy.heal()
    wait_listening(app)
    assert in_l1(page, "a") is MISSING
    wait_until(lambda: page("b") == "page of b" and in_l1(page, "b") == "page of b", timeout=20, message="L1")


@pytest.mark.parametrize("fault", ["mute", "hang"])
def test_a_silent_backplane_is_not_trusted_for_long(app: Celery, redis_proxy: RedisProxy, fault: str) -> None:
    page = pager(app, ttl=600, l1_ttl=600)
    page("a")
    assert in_l1(page, "a") == "page of a"
    gaps = Count()
    CacheTiers(app).events.subscribe(gaps, Event.GAP)

    getattr(redis_proxy, fault)()
    wait_until(lambda: in_l1(page, "a") is MISSING, timeout=8, message="the end of trust")
    wait_until(lambda: len(gaps) > 0, timeout=8, message="the gap")

    redis_proxy.heal()
    wait_listening(app, 20)
    assert in_l1(page, "a") is MISSING


def test_what_was_invalidated_during_a_gap_is_not_served_after_it(
    app: Celery, redis_proxy: RedisProxy, neighbour: Neighbour
) -> None:
    values = Count()
    page = pager(app, lambda user: f"{user}{values()}")
    assert page("a") == "a1"

    redis_proxy.refuse()
    neighbour.do("invalidate_tag", "user:a")
    redis_proxy.heal()
    wait_listening(app)

    assert page("a") == "a2"


def test_an_idle_process_goes_on_trusting_its_copies(app: Celery, redis_proxy: RedisProxy) -> None:
    page = pager(app, ttl=600, l1_ttl=600)
    page("a")
    redis_proxy.reset()

    wait_until(lambda: redis_proxy.commands["PUBLISH"] >= 3, timeout=20, message="heartbeats")

    assert in_l1(page, "a") == "page of a"
    assert redis_proxy.connections == 0


# -- fork ---------------------------------------------------------------------------------------------------------


def forked(run: Callable[[], Any]) -> Any:
    """What a forked child makes of it; the child ends without cleaning up after pytest."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        try:
            answer = json.dumps(run())
        except BaseException as error:
            answer = json.dumps(f"{type(error).__name__}: {error}")
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def sockets() -> set[str]:
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        try:
            found.add(os.readlink(entry.path))
        except OSError:
            continue
    return {each for each in found if each.startswith("socket:")}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: a fork with threads, as prefork's
def test_a_forked_child_starts_empty_with_its_own_inbox_threads_and_connections(
    app: Celery, redis_proxy: RedisProxy
) -> None:
    page = pager(app)
    page("a")
    parts = CacheTiers(app).cache.parts
    assert parts.backplane is not None
    parent_inbox, parent_sockets = parts.backplane.inbox, sockets()  # type: ignore[attr-defined]
    redis_proxy.reset()

    def in_child() -> dict[str, Any]:
        before = [len(parts.l1), page.cache.info().stores, in_l1(page, "a") is MISSING]  # type: ignore[arg-type]
        first = page("a")
        wait_listening(app)
        second = page("b")
        used = CacheTiers(app).cache.parts.store._client._idle  # type: ignore[union-attr]
        own = {os.readlink(f"/proc/self/fd/{connection._sock.fileno()}") for connection in used}
        return {
            "before": before,
            "values": [first, second, in_l1(page, "b")],
            "inbox": parts.backplane.inbox,  # type: ignore[union-attr]
            "threads": sorted(each.name for each in threading.enumerate() if each.name.startswith("cachetiers")),
            "shared": sorted(own & parent_sockets),
            "used": len(own),
        }

    child = forked(in_child)

    assert child["before"] == [0, 0, True]
    assert child["values"] == ["page of a", "page of b", "page of b"]
    assert child["inbox"] != parent_inbox
    assert child["threads"] == ["cachetiers-backplane", "cachetiers-counters", "cachetiers-keeper"]
    assert child["shared"] == []
    assert child["used"] >= 1
    assert redis_proxy.connections == 2
    assert in_l1(page, "a") == "page of a"
    assert page("c") == "page of c"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_while_a_thread_holds_every_lock_does_not_hang_the_child(app: Celery) -> None:
    page = pager(app)
    page("a")
    stop = threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            page(f"{number}")
            page.cache.invalidate(f"{number}")

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, number) for number in range(4)]
        try:
            values = [forked(lambda: [page("a"), page("0"), page("new")]) for _ in range(10)]
        finally:
            stop.set()
        for future in working:
            future.result(30)

    assert values == [["page of a", "page of 0", "page of new"]] * 10


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_of_a_computing_parent_does_not_believe_that_it_computes(app: Celery) -> None:
    answers: list[Any] = []

    def body(user: str) -> str:
        if user == "parent":
            answers.append(forked(lambda: [page("other"), CacheTiers(app).cache._inside.digests == ()]))
        return f"page of {user}"

    page = pager(app, body)

    assert page("parent") == "page of parent"
    assert answers == [["page of other", True]]


def test_waiters_are_woken_by_push_not_by_the_end_of_the_lease(app: Celery, neighbour: Neighbour) -> None:
    gate = Gate("compute")

    def body(user: str) -> str:
        gate.pass_through()
        return f"page of {user}"

    page = pager(app, body, lease_ttl=300.0)
    with ThreadPoolExecutor(2) as pool:
        led = pool.submit(page, "a")
        gate.wait_reached()
        followed = pool.submit(neighbour.do, "page", "a")
        leases = CacheTiers(app).cache.parts.store
        assert leases is not None
        began = time.monotonic()
        gate.open()
        assert led.result(30) == "page of a"
        assert followed.result(30) == "page of a"
        took = time.monotonic() - began

    assert neighbour.do("computed") == 0
    assert took < 100
