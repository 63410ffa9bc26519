"""One task over every way to reach Redis: TCP, a unix socket, TLS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers
from tests.processes import ReservedPort
from tests.servers import RedisServer


def app_at(url: str, namespace: str) -> Celery:
    app = Celery("transports", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(cachetiers_url=url, cachetiers_namespace=namespace, cachetiers_timeout=2.0)
    return app


def assert_cached_and_invalidated(app: Celery) -> None:
    """One compute for two calls past L1, and another after an invalidation: nothing of that works without Redis."""
    ran = []

    @app.task(base=CachedTask, shared=False, l1=False, tags=["user:{user_id}"])
    def profile(user_id: int) -> dict[str, int]:
        ran.append(user_id)
        return {"id": user_id}

    try:
        assert [profile(1), profile(1)] == [{"id": 1}, {"id": 1}]
        assert ran == [1]
        CacheTiers(app).invalidate_tag("user:1")
        profile(1)
        assert ran == [1, 1]
        assert profile.cache.info().failed_open == 0
        assert CacheTiers(app).cache.parts.backplane.wait_connected(5)
    finally:
        CacheTiers(app).reset()


def test_a_task_is_cached_over_tcp(every_redis_server: RedisServer, namespace: str) -> None:
    assert_cached_and_invalidated(app_at(every_redis_server.url(), namespace))


def test_a_task_is_cached_over_a_unix_socket(every_redis_server: RedisServer, namespace: str) -> None:
    assert_cached_and_invalidated(app_at(every_redis_server.unix_url(1), namespace))


@pytest.fixture
def tls_port() -> Iterator[int]:
    """A loopback port for a server's TLS side."""
    port = ReservedPort()
    yield port.number
    port.release()


@pytest.fixture
def authority(tmp_path: Path) -> dict[str, str]:
    """A certificate authority of the test's own and a certificate for the loopback address, as files."""
    ca = trustme.CA()
    files = {"ca": tmp_path / "ca.pem", "cert": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    issued = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(files["ca"])
    issued.cert_chain_pems[0].write_to_path(files["cert"])
    issued.private_key_pem.write_to_path(files["key"])
    return {name: str(path) for name, path in files.items()}


def test_a_task_is_cached_over_tls(
    authority: dict[str, str], tls_port: int, redis_factory: Callable[..., RedisServer], namespace: str
) -> None:
    server = redis_factory(
        *("--tls-port", str(tls_port), "--tls-auth-clients", "no"),
        *(
            "--tls-cert-file",
            authority["cert"],
            "--tls-key-file",
            authority["key"],
            "--tls-ca-cert-file",
            authority["ca"],
        ),
        flavour="redis-7.0",
    )
    assert server.running

    trusting = f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={authority['ca']}"
    assert_cached_and_invalidated(app_at(trusting, namespace))


def test_a_certificate_that_nobody_vouches_for_costs_the_cache_and_not_the_task(
    authority: dict[str, str], tls_port: int, redis_factory: Callable[..., RedisServer], namespace: str
) -> None:
    redis_factory(
        *("--tls-port", str(tls_port), "--tls-auth-clients", "no"),
        *(
            "--tls-cert-file",
            authority["cert"],
            "--tls-key-file",
            authority["key"],
            "--tls-ca-cert-file",
            authority["ca"],
        ),
        flavour="redis-7.0",
    )
    app = app_at(f"rediss://127.0.0.1:{tls_port}/0", namespace)

    @app.task(base=CachedTask, shared=False, l1=False)
    def double(number: int) -> int:
        return 2 * number

    assert double(21) == 42
    assert double.cache.info().failed_open > 0
    CacheTiers(app).reset()
