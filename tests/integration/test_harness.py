"""The harness itself: what the other tests stand on must hold before they mean anything."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import redis
from celery import Celery
from pytest_celery import RESULT_TIMEOUT, CeleryTestSetup, CeleryWorkerContainer
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.integration import harness_app
from tests.integration.apps.worker_setup import let_go_of_results
from tests.processes import ROOT, ReservedPort, is_alive, listens, remove_directory, wait_until
from tests.proxy import HANDSHAKE, Command, CommandParser, RedisProxy
from tests.rabbit import RabbitServer
from tests.servers import RedisServer, RedisServers
from tests.workers import Worker

APP = "tests.integration.harness_app"


# -- servers ------------------------------------------------------------------------------------------------------


def test_every_flavour_answers_over_tcp_and_unix_socket(every_redis_server: RedisServer, namespace: str) -> None:
    with every_redis_server.client() as tcp, redis.from_url(every_redis_server.unix_url()) as unix:
        tcp.set(namespace, "here", ex=60)

        assert unix.get(namespace) == b"here"


def test_a_server_comes_back_on_its_port_with_what_it_saved(redis_factory: RedisServers) -> None:
    server = redis_factory("--appendonly", "yes", "--appendfsync", "always")
    port = server.port
    with server.client() as client:
        client.set("key", "value")

    server.kill()
    server.start()

    with server.client() as client:
        assert client.get("key") == b"value"
    assert server.port == port


def test_a_paused_server_hangs_and_a_resumed_one_answers(redis_factory: RedisServers) -> None:
    server = redis_factory()
    server.pause()
    with server.client(socket_timeout=0.1) as client, pytest.raises(redis.TimeoutError):
        client.ping()

    server.resume()

    with server.client() as client:
        assert client.ping()


def test_a_server_tells_what_it_was_asked(redis_factory: RedisServers) -> None:
    server = redis_factory()
    before = server.commands_processed
    with server.client() as client:
        for _ in range(5):
            client.get("key")

    assert server.command_stats()["GET"] == 5
    assert server.commands_processed >= before + 5
    assert server.cpu_seconds >= 0


def test_a_closed_server_leaves_nothing_behind(redis_factory: RedisServers) -> None:
    server = redis_factory()
    directory, pid, port = server.directory, server.pid, server.port

    server.close()

    assert not directory.exists()
    assert not is_alive(pid)
    assert not listens(port)


def test_a_server_outlives_the_thread_that_started_it(redis_factory: RedisServers) -> None:
    started: list[RedisServer] = []
    thread = threading.Thread(target=lambda: started.append(redis_factory()))
    thread.start()
    thread.join()

    with started[0].client() as client:
        assert client.ping()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal of Linux")
def test_a_server_dies_with_the_run_that_started_it() -> None:
    program = """
        import os, signal
        from tests.servers import RedisServers
        server = RedisServers()()
        print(server.pid, server.directory, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    pid, directory = done.stdout.split()

    wait_until(lambda: not is_alive(int(pid)), timeout=5, message="end of the orphaned server")
    remove_directory(Path(directory))


def test_a_reserved_port_is_kept_from_others_and_free_for_its_server() -> None:
    reserved = ReservedPort()
    try:
        others = [ReservedPort() for _ in range(50)]
        for other in others:
            other.release()

        assert reserved.number not in {other.number for other in others}
        assert not listens(reserved.number)
    finally:
        reserved.release()


def test_rabbitmq_delivers_a_message(rabbit_server: RabbitServer, namespace: str) -> None:
    with rabbit_server.connection() as connection:
        queue = connection.SimpleQueue(namespace, queue_opts={"expires": 60})
        queue.put({"number": 1})
        message = queue.get(timeout=5)
        message.ack()
        queue.close()

        assert message.payload == {"number": 1}


@pytest.mark.slow
def test_rabbitmq_comes_back_and_leaves_nothing_behind() -> None:
    with RabbitServer() as server:
        server.kill()
        server.start()
        family = [server.pid, *(child.pid for child in psutil.Process(server.pid).children(recursive=True))]
        directory = server.directory

    wait_until(lambda: not any(map(is_alive, family)), timeout=10, message=f"end of {family}")
    assert not directory.exists()


# -- the proxy ----------------------------------------------------------------------------------------------------


def _once() -> Retry:
    return Retry(NoBackoff(), 0)


@contextmanager
def _connected(proxy: RedisProxy, **options: object) -> Iterator[redis.Redis]:
    """A client of the proxy with an open connection in its pool, and nothing counted yet."""
    settings = {"socket_timeout": 0.2, "socket_connect_timeout": 0.2, "retry": _once(), **options}
    with redis.Redis.from_url(proxy.url(), **settings) as client:
        client.ping()
        proxy.reset()
        yield client


def test_one_command_is_one_round_trip(redis_proxy: RedisProxy, namespace: str) -> None:
    with _connected(redis_proxy) as client:
        client.set(namespace, "value")
        client.get(namespace)

    assert redis_proxy.commands == {"SET": 1, "GET": 1}
    assert redis_proxy.trips == [("SET",), ("GET",)]


def test_a_pipeline_is_one_round_trip(redis_proxy: RedisProxy, namespace: str) -> None:
    with _connected(redis_proxy) as client, client.pipeline(transaction=False) as pipe:
        pipe.set(namespace, "value").get(namespace).delete(namespace)
        pipe.execute()

    assert redis_proxy.trips == [("SET", "GET", "DEL")]


@pytest.mark.parametrize("size", [10, 3_000, 5_000, 7_000, 20_000])
def test_a_long_pipeline_is_still_one_round_trip(redis_proxy: RedisProxy, namespace: str, size: int) -> None:
    with _connected(redis_proxy, socket_timeout=5) as client:
        for _ in range(10):
            with client.pipeline(transaction=False) as pipe:
                for number in range(20):
                    pipe.set(f"{namespace}:{number}", b"x" * size, ex=60)
                pipe.execute()

    assert redis_proxy.commands == {"SET": 200}
    assert redis_proxy.round_trips == 10


def test_a_pushed_message_is_no_round_trip(redis_proxy: RedisProxy, redis_server: RedisServer, namespace: str) -> None:
    with _connected(redis_proxy) as client, client.pubsub() as subscriber, redis_server.client() as publisher:
        subscriber.subscribe(namespace)
        assert subscriber.get_message(timeout=5)
        redis_proxy.reset()
        publisher.publish(namespace, "hello")

        message = subscriber.get_message(timeout=5)

        assert message is not None
        assert message["data"] == b"hello"
        assert redis_proxy.round_trips == 0


def test_the_handshake_is_counted_like_anything_else(redis_proxy: RedisProxy) -> None:
    with redis.Redis.from_url(redis_proxy.url()) as client:
        client.ping()

    assert redis_proxy.connections == 1
    assert redis_proxy.commands["PING"] == 1
    assert set(redis_proxy.commands) - {"PING"} <= HANDSHAKE


def test_a_parser_finds_commands_however_they_are_cut() -> None:
    stream = b"*2\r\n$3\r\nGET\r\n$3\r\na\r\n\r\n*1\r\n$4\r\nping\r\n"
    parser = CommandParser()

    found = [command for byte in stream for command in parser.feed(bytes([byte]))]

    assert found == [(b"GET", b"a\r\n"), (b"ping",)]


def test_a_refusing_proxy_refuses_and_a_healed_one_answers(redis_proxy: RedisProxy) -> None:
    with _connected(redis_proxy) as client:
        redis_proxy.refuse()
        with pytest.raises(redis.ConnectionError):
            client.ping()
    with redis.Redis.from_url(redis_proxy.url(), retry=_once()) as client:
        with pytest.raises(redis.ConnectionError, match="refused"):
            client.ping()
        redis_proxy.heal()

        assert client.ping()


def test_a_hanging_proxy_keeps_what_is_sent_and_a_healed_one_passes_it_on(
    redis_proxy: RedisProxy, redis_server: RedisServer, namespace: str
) -> None:
    with _connected(redis_proxy) as client, redis_server.client() as direct:
        redis_proxy.hang()
        with pytest.raises(redis.TimeoutError):
            client.set(namespace, "late", ex=60)
        assert direct.get(namespace) is None

        redis_proxy.heal()

        wait_until(lambda: direct.get(namespace) == b"late", timeout=5, message="the held command")


def test_a_mute_proxy_lets_the_server_act_but_not_answer(
    redis_proxy: RedisProxy, redis_server: RedisServer, namespace: str
) -> None:
    with _connected(redis_proxy) as client, redis_server.client() as direct:
        redis_proxy.mute()
        with pytest.raises(redis.TimeoutError):
            client.set(namespace, "done", ex=60)

        assert direct.get(namespace) == b"done"


def test_a_cut_connection_is_reset_and_the_next_one_works(redis_proxy: RedisProxy, namespace: str) -> None:
    redis_proxy.on_command = lambda command: redis_proxy.cut() if command[0] == b"APPEND" else None
    with _connected(redis_proxy) as client:
        with pytest.raises(redis.ConnectionError):
            client.append(namespace, "lost")

        assert client.ping()
        assert client.get(namespace) is None


def test_dripped_bytes_outlast_a_timeout_that_counts_single_reads(redis_proxy: RedisProxy) -> None:
    with _connected(redis_proxy, socket_timeout=0.1) as client:
        redis_proxy.drip(size=1, interval=0.03)

        assert client.ping()  # seven bytes, 0.2 s


def test_a_delayed_answer_runs_into_the_timeout(redis_proxy: RedisProxy) -> None:
    with _connected(redis_proxy, socket_timeout=0.05) as client:
        redis_proxy.delay(0.2)

        with pytest.raises(redis.TimeoutError):
            client.ping()


def test_a_hook_holds_one_command_while_others_pass(redis_proxy: RedisProxy, namespace: str) -> None:
    arrived, gate = threading.Event(), threading.Event()

    def hold_get(command: Command) -> None:
        if command[0].upper() == b"GET":
            arrived.set()
            assert gate.wait(10)

    redis_proxy.on_command = hold_get
    with _connected(redis_proxy, socket_timeout=10) as held, _connected(redis_proxy) as free:
        thread = threading.Thread(target=held.get, args=(namespace,))
        thread.start()
        assert arrived.wait(10)
        free.set(namespace, "value", ex=60)

        assert redis_proxy.trips == [("SET",)]
        gate.set()
        thread.join()
        assert redis_proxy.trips == [("SET",), ("GET",)]


# -- workers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def harness(flushed_redis: RedisServer) -> Iterator[Celery]:
    """The app of `harness_app` as a producer."""
    with Celery("harness", broker=flushed_redis.url(1), backend=flushed_redis.url(2), set_as_current=False) as app:
        yield app
        let_go_of_results(app)


def _environment(app: Celery) -> dict[str, str]:
    return {"HARNESS_BROKER": app.conf.broker_url, "HARNESS_BACKEND": app.conf.result_backend}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_worker_of_every_pool_runs_a_task_and_ends_in_order(
    harness: Celery, worker_factory: Callable[..., Worker], pool: str
) -> None:
    worker = worker_factory(APP, pool=pool, concurrency=2, env=_environment(harness))

    assert harness.send_task(f"{APP}.square", (7,)).get(timeout=10) == 49
    assert worker.stop() == 0
    assert not worker.running


def test_a_killed_child_is_replaced_and_a_killed_worker_takes_its_children_along(
    harness: Celery, worker_factory: Callable[..., Worker]
) -> None:
    worker = worker_factory(APP, concurrency=2, env=_environment(harness))
    victim = harness.send_task(f"{APP}.where").get(timeout=10)
    assert victim in worker.children()

    worker.kill_child(victim)
    wait_until(
        lambda: victim not in worker.children() and len(worker.children()) == 2, timeout=10, message="a new child"
    )
    children = worker.children()
    worker.kill()

    wait_until(lambda: not any(map(is_alive, children)), timeout=5, message="end of the children")
    assert worker.returncode == -9


def test_a_worker_that_cannot_start_says_why() -> None:
    worker = Worker("tests.integration.no_such_app")
    try:
        worker.start()
        with pytest.raises(RuntimeError, match="no_such_app"):
            worker.wait_ready()
    finally:
        worker.close()


# -- pytest-celery ------------------------------------------------------------------------------------------------


@pytest.fixture
def default_worker_tasks(default_worker_tasks: set[ModuleType]) -> set[ModuleType]:
    return default_worker_tasks | {harness_app}


def test_pytest_celery_runs_a_task_on_its_worker(celery_setup: CeleryTestSetup) -> None:
    signature = harness_app.square.s(7)

    result = signature.apply_async(queue=celery_setup.worker.worker_queue)

    assert result.get(timeout=RESULT_TIMEOUT) == 49
    celery_setup.worker.assert_log_exists("squaring 7")
    assert isinstance(celery_setup.worker.container, CeleryWorkerContainer)
