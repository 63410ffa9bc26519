"""`cachetiers doctor` on real servers: what it finds is what is wrong with them, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers, TierUnavailable, sink
from celery_cachetiers.breaker import Breaker
from celery_cachetiers.client import RedisClient
from celery_cachetiers.clock import SystemClock
from celery_cachetiers.doctor import rights
from celery_cachetiers.doctor import workers as asking_workers
from celery_cachetiers.doctor.asking import Conversation, ask_servers, last_report_at
from celery_cachetiers.doctor.examination import examine
from celery_cachetiers.doctor.findings import Finding
from celery_cachetiers.doctor.subject import subject_of
from celery_cachetiers.roll_call import TELL
from celery_cachetiers.tiers.layout import Layout
from tests.integration.apps.command_line import Run, command_line
from tests.integration.apps.local import LocalCelery, cached_app, closing, profile_of, wait_listening, worker_of
from tests.processes import wait_until
from tests.proxy import RedisProxy
from tests.rabbit import RabbitServer
from tests.servers import RedisServer, RedisServers

pytestmark = [
    pytest.mark.usefixtures("own_sinks", "own_tasks"),
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),
]


@pytest.fixture
def app(namespace: str, redis_server: RedisServer) -> Iterator[Celery]:
    # A second is what workers are waited for; most tests here have none.
    conf = {"cachetiers_timeout": 2.0, "task_always_eager": True}
    with closing(cached_app(namespace, redis_server.url(), **conf)) as app:
        yield app


@pytest.fixture
def task(app: Celery) -> Any:
    return profile_of(app)


def found(app: Celery) -> dict[str, Finding]:
    """The worst finding of each code."""
    worst: dict[str, Finding] = {}
    for finding in examine(CacheTiers(app)):
        if finding.code not in worst or finding.rank > worst[finding.code].rank:
            worst[finding.code] = finding
    return worst


def lead_to(app: Celery, url: str, **conf: Any) -> None:
    app.conf.update(cachetiers_url=url, **conf)
    CacheTiers(app).reset()


def behind(app: Celery, **options: Any) -> Any:
    sink("rows", **options)(lambda writes: None)

    @app.task(base=CachedTask, name="order", sink="rows", write="behind")
    def order(row: str) -> str:
        return row

    return order


@pytest.fixture
def run(app: Celery) -> Run:
    return command_line(app, "doctor")


# ---- the command -----------------------------------------------------------------------------------------------------


def test_a_server_as_it_should_be(app: Celery, task: Any, every_redis_server: RedisServer) -> None:
    lead_to(app, every_redis_server.url())

    each = found(app)

    wrong = {code: finding for code, finding in each.items() if finding.level in ("warning", "error")}
    assert wrong.keys() <= {"maxmemory"}, wrong  # the tests' servers have no limit
    assert {"reachable", "clock", "redis-version", "role", "acl", "eviction-policy"} <= each.keys()
    with every_redis_server.client() as client:
        assert str(client.info("server")["redis_version"]) in each["redis-version"].found


def test_nothing_is_left_behind(app: Celery, task: Any, redis_factory: RedisServers) -> None:
    server = redis_factory()
    behind(app)
    lead_to(app, server.url(), cachetiers_l1_tracking=True)

    assert found(app)["acl"].level == "ok"

    with server.client() as client:
        assert client.keys("*") == []
        CacheTiers(app).reset()  # it had connections before, too
        wait_until(lambda: client.info("clients")["connected_clients"] == 1, timeout=10, message="closed connections")


def test_no_other_process_hears_of_it(app: Celery, task: Any) -> None:
    wait_listening(app)
    task(1)
    heard: list[Any] = []
    CacheTiers(app).events.subscribe(
        lambda event, *_: heard.append(event.value) if event.value in ("gap", "heard") else 0
    )
    l1 = CacheTiers(app).cache.parts.l1

    found(app)
    CacheTiers(app).invalidate_tag("user:2")  # what it had announced would have been heard before

    assert "gap" not in heard
    assert l1.trusted()


def test_announcements_cannot_come_in_between_its_answers(
    app: Celery, task: Any, namespace: str, redis_proxy: RedisProxy
) -> None:
    sent: list[tuple[bytes, ...]] = []
    redis_proxy.on_command = sent.append
    behind(app)
    lead_to(app, redis_proxy.url(), cachetiers_l1_tracking=True)

    found(app)

    asked = [command for command in sent if command[0] in (b"SUBSCRIBE", b"SADD", b"GETDEL", b"EXEC")]
    assert {command[0] for command in asked} == {b"SUBSCRIBE", b"SADD", b"GETDEL", b"EXEC"}
    assert asked[-1] == (b"SUBSCRIBE", f"{namespace}:inv".encode())
    assert asked[-3] == (b"SUBSCRIBE", b"__redis__:invalidate")


@pytest.mark.parametrize(
    ("conf", "status", "level"),
    [({}, 0, "warning"), ({"cachetiers_url": "redis://127.0.0.1:1/0"}, 1, "error")],
)
def test_the_exit_status_tells_whether_anything_is_an_error(
    app: Celery, task: Any, run: Run, conf: Any, status: int, level: str
) -> None:
    app.conf.update(conf)

    for arguments in ([], ["--json"]):
        done = run(*arguments)
        assert done.exit_code == status, done.output

    told = json.loads(done.stdout)
    assert told["level"] == level
    assert sorted(told) == ["findings", "level"]
    assert all(sorted(each) == ["code", "found", "level", "remedy"] for each in told["findings"])


def test_settings_that_cannot_be_used_are_an_exit_status_of_their_own(app: Celery, run: Run) -> None:
    app.conf.cachetiers_ttl = -1

    done = run()

    assert done.exit_code == 2
    assert "cachetiers_ttl=-1" in done.output


def test_people_see_level_code_words_and_remedy(app: Celery, task: Any, run: Run) -> None:
    lead_to(app, "redis://127.0.0.1:1/0")

    lines = run().output.splitlines()

    [at] = [number for number, line in enumerate(lines) if "reachable" in line]
    assert lines[at].startswith("error    reachable ")
    assert "127.0.0.1:1/0 cannot be used" in lines[at]
    assert lines[at + 1].strip().startswith("-> start it")
    assert lines[-1].startswith("1 error, ")


# ---- not reached -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refuse", "hang", "reset"])
def test_without_redis_everything_else_is_told(app: Celery, task: Any, redis_proxy: RedisProxy, how: str) -> None:
    lead_to(app, redis_proxy.url(), cachetiers_timeout=0.2)
    if how == "reset":
        redis_proxy.on_command = lambda command: redis_proxy.cut()
    else:
        getattr(redis_proxy, how)()

    each = found(app)

    assert each["reachable"].level == "error"
    assert {"url", "versions", "tasks", "acks-late", "wait-limit", "workers"} <= each.keys()
    assert not {"acl", "maxmemory", "clock"} & each.keys()


def test_a_server_that_stops_answering_half_way_is_told_as_such(
    app: Celery, task: Any, redis_proxy: RedisProxy
) -> None:
    def lose(command: tuple[bytes, ...]) -> None:
        if command[0] == b"SADD":
            redis_proxy.cut()

    redis_proxy.on_command = lose
    lead_to(app, redis_proxy.url())

    each = found(app)

    assert each["reachable"].level == "ok"
    assert (each["acl"].level, "not checked" in each["acl"].found) == ("info", True)


def test_a_wrong_password_is_told_without_it(app: Celery, task: Any, redis_factory: RedisServers) -> None:
    server = redis_factory("--user", "me", "on", ">right", "~*", "&*", "+@all")
    lead_to(app, server.url().replace("//", "//me:wr0ng@"))
    refused = found(app)["reachable"]
    lead_to(app, server.url().replace("//", "//me:right@"))

    assert refused.level == "error"
    assert "password" in refused.found
    assert "wr0ng" not in refused.found
    assert found(app)["acl"].found.startswith("user me ")


def test_a_server_that_loads_is_told_as_such(app: Celery, task: Any, redis_factory: RedisServers) -> None:
    # 1 ms for each key; in between it answers INFO, and nothing else.
    server = redis_factory("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    lead_to(app, server.url())
    with server.client() as client:
        client.mset({f"key{number}": "x" * 100 for number in range(50_000)})
        assert found(app)["reachable"].level == "ok"
        client.save()
    server.restart()

    told = found(app)

    assert told["reachable"].level == "error"
    assert "loading" in told["reachable"].found
    assert "acl" not in told


def test_one_server_is_not_asked_for_ever(redis_server: RedisServer) -> None:
    client = RedisClient(redis_server.url(), 2.0, Breaker(0.0, SystemClock()))
    patient, hasty = Conversation(client), Conversation(client, seconds=0.0)

    assert isinstance(patient.ask("GET", "nothing"), type(None))
    with pytest.raises(TierUnavailable, match="too long"):
        hasty.ask("GET", "nothing")

    patient.close(), hasty.close()


def test_a_server_that_is_far_away_is_slow_for_its_timeout(app: Celery, task: Any, redis_proxy: RedisProxy) -> None:
    lead_to(app, redis_proxy.url(), cachetiers_timeout=1.0)
    assert "timeout" not in found(app)
    redis_proxy.delay(0.12)

    assert found(app)["timeout"].level == "warning"


def test_a_clock_that_is_off(app: Celery, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(app)["clock"].level == "ok"
    clock = CacheTiers(app).clock
    monkeypatch.setattr(clock, "time", lambda: time.time() - 100, raising=False)

    told = found(app)["clock"]

    assert told.level == "warning"
    assert "ahead of" in told.found


# ---- what a server is like -------------------------------------------------------------------------------------------


def test_a_replica_is_an_error(app: Celery, task: Any, redis_factory: RedisServers) -> None:
    primary = redis_factory()
    replica = redis_factory("--replicaof", "127.0.0.1", str(primary.port))
    lead_to(app, primary.url())
    assert found(app)["role"].level == "ok"
    lead_to(app, replica.url())

    assert found(app)["role"].level == "error"


def test_policies_and_limits(app: Celery, task: Any, redis_factory: RedisServers) -> None:
    server = redis_factory()
    lead_to(app, server.url())
    seen = {}
    with server.client() as client:
        for limit, policy in (
            ("0", "noeviction"),
            ("1gb", "noeviction"),
            ("1gb", "allkeys-lru"),
            ("1gb", "volatile-lfu"),
        ):
            client.config_set("maxmemory", limit)
            client.config_set("maxmemory-policy", policy)
            each = found(app)
            seen[limit, policy] = each["maxmemory"].level, each["eviction-policy"].level

    assert seen == {
        ("0", "noeviction"): ("warning", "ok"),
        ("1gb", "noeviction"): ("ok", "warning"),
        ("1gb", "allkeys-lru"): ("ok", "ok"),
        ("1gb", "volatile-lfu"): ("ok", "ok"),
    }


def test_a_full_server_is_told_by_its_rights_as_any_other(app: Celery, task: Any, redis_factory: RedisServers) -> None:
    server = redis_factory("--maxmemory", "1mb", "--maxmemory-policy", "noeviction")
    lead_to(app, server.url())

    each = found(app)

    assert each["acl"].level == "ok"
    assert each["maxmemory"].level == "warning"


def test_a_journal_is_looked_at_where_tasks_write_behind(app: Celery, redis_factory: RedisServers) -> None:
    server = redis_factory("--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru")
    lead_to(app, server.url())
    order = behind(app, attempts=1)
    worst = found(app)
    with server.client() as client:
        client.config_set("maxmemory-policy", "volatile-lru")
        client.config_set("appendonly", "yes")
        order.cache.put(("a",), "a")

        best = found(app)

    assert worst["journal-eviction"].level == "error"
    assert worst["persistence"].level == "warning"
    assert {best[code].level for code in ("journal-eviction", "persistence", "backlog")} == {"ok"}
    assert best["backlog"].found == "rows: 1 write waits"


@pytest.mark.parametrize("named", [False, True])
def test_a_journal_beside_the_entries_is_that_of_l2_though_a_setting_names_it(
    app: Celery, redis_server: RedisServer, named: bool
) -> None:
    behind(app)
    lead_to(app, redis_server.url(), cachetiers_journal_url=redis_server.url() if named else None)
    tiers = CacheTiers(app)
    facts = ask_servers(tiers, subject_of(tiers), 0.0)

    assert facts.journal is facts.l2
    assert set(facts.backlogs) == {"rows"}


def test_what_was_given_up_is_told(app: Celery, redis_server: RedisServer) -> None:
    def save(writes: list[Any]) -> None:
        if any(write.value == "a" for write in writes):
            raise ValueError("never")

    sink("rows", attempts=1)(save)
    order = app.task(_row, base=CachedTask, name="order", sink="rows", write="behind")
    assert "dead-letter" not in found(app)
    for row in ("a", "b"):  # a failure counts where the sink takes others
        order.cache.put((row,), row)
    CacheTiers(app).writes.flush("rows")

    assert found(app)["dead-letter"].found == "rows has 1 write that was given up"


def _row(row: str) -> str:
    return row


def test_a_journal_of_its_own_that_is_away_hides_nothing_of_l2(app: Celery, redis_server: RedisServer) -> None:
    behind(app)
    lead_to(app, redis_server.url(), cachetiers_journal_url="redis://127.0.0.1:1/0")

    each = found(app)

    assert each["reachable"].found.startswith("journal: redis://127.0.0.1:1/0 cannot be used")
    assert each["acl"].level == "ok"
    assert each["backlog"].level == "info"


def test_the_last_report_is_the_newest_in_its_history(app: Celery, namespace: str, redis_server: RedisServer) -> None:
    tiers, layout = CacheTiers(app), Layout(namespace)
    where = tiers.where()
    assert where is not None
    assert last_report_at(tiers.client_of(*where), layout) is None
    assert "beat" not in found(app)
    with redis_server.client() as client:
        for at in (1_000_000, 2_000_500):
            client.xadd(layout.stats("@history"), {"ratio": 1}, id=f"{at}-0")
        assert last_report_at(tiers.client_of(*where), layout) == 2000.5
        assert found(app)["beat"].level == "warning"
        client.xadd(layout.stats("@history"), {"ratio": 1})

        assert found(app)["beat"].level == "ok"
        client.delete(layout.stats("@history"))
        client.set(layout.stats("@history"), "no stream")
        assert last_report_at(tiers.client_of(*where), layout) is None
        client.delete(layout.stats("@history"))


# ---- rights ----------------------------------------------------------------------------------------------------------


class Users:
    """Users of one server, with rights on a namespace."""

    def __init__(self, server: RedisServer, namespace: str) -> None:
        self.server, self.namespace = server, namespace
        self.subcommands = server.flavour != "redis-6.2"

    def url(self, name: str) -> str:
        return self.server.url().replace("//", f"//{name}:x@")

    def have(self, name: str, *granted: str, channels: str | None = None) -> None:
        words = [self._of_version(right) for right in granted]
        keys = f"~{self.namespace}:*"
        listen = f"&{self.namespace}:*" if channels is None else channels
        with self.server.client() as client:
            client.execute_command(
                "ACL", "SETUSER", name, "reset", "on", "nopass", keys, "resetchannels", listen, *words
            )

    def _of_version(self, right: str) -> str:
        return right if self.subcommands else right.replace("+script|load", "+script")

    def log(self, name: str) -> set[str]:
        """What was refused to a user since the log was emptied."""
        with self.server.client() as client:
            return {str(row["object"]) for row in client.acl_log() if row["username"] == name}

    def forget(self) -> None:
        with self.server.client() as client:
            client.acl_log_reset()


@pytest.fixture(params=["redis-6.2", "redis-7.0"])
def users(request: pytest.FixtureRequest, redis_factory: RedisServers, namespace: str) -> Users:
    return Users(redis_factory(flavour=request.param), namespace)


def rights_of(namespace: str, *, journal: bool = False, tracking: bool = False) -> dict[str, list[str]]:
    """What the doctor asks for, by code."""
    needs = rights.needs_of_l2(Layout(namespace), tracking)
    if journal:
        needs += rights.needs_of_journal(namespace, {"rows": None}, beside_entries=True)
    return {need.code: [step.command for step in need.steps] for need in needs}


def granted(namespace: str, **which: bool) -> list[str]:
    return sorted({right for each in rights_of(namespace, **which).values() for right in each} | {"+select", "+info"})


def tour(app: Celery) -> None:
    """All that a cache does: computes, waits, invalidations, results with tags, counters."""
    profile = app.tasks["profile"]
    everybody = app.task(_everybody, base=CachedTask, name="everybody", tags_from=lambda result: ["user:1"],
                         consistency="strict")  # fmt: skip
    wait_listening(app)
    assert profile(1) == profile(1) == profile.cache.refresh(1) == 1
    profile.cache.put((2,), 3)
    assert profile.cache.get(2) == 3
    profile.cache.invalidate(2)
    for _ in range(3):
        everybody()
    tiers = CacheTiers(app)
    tiers.invalidate_tag("user:1")
    everybody()
    tiers.clear("profile")
    assert profile.cache.why(1).verdict == "miss"
    server = tiers.server()
    assert server is not None
    assert tiers.roll_call.merged(server, patience=5.0) == 0
    server.close()
    assert tiers.roll_call.collect(TELL, {os.getpid()}, patience=5.0) != {}
    assert tiers.counting.hot() != {}
    assert tiers.reporting.make() is not None
    assert len(tiers.history()) == 1
    assert tiers.stats()["total"]["failed_open"] == 0


def _everybody() -> list[int]:
    return [1]


def write_behind(app: Celery) -> None:
    order = app.tasks["order"]
    order.cache.invalidate("z")
    for row in ("a", "b"):
        order.cache.put((row,), row)
    assert order("c") == "c"
    writes = CacheTiers(app).writes
    assert writes.flush("rows")["rows"].taken == 3
    writes.backlog("rows")


def test_who_has_what_the_doctor_asks_for_is_refused_nothing(
    app: Celery, task: Any, users: Users, namespace: str
) -> None:
    behind(app)
    users.have("web", *granted(namespace, journal=True, tracking=True), "&__redis__:invalidate")
    lead_to(app, users.url("web"), cachetiers_l1_tracking=True)
    users.forget()

    tour(app)
    write_behind(app)

    assert users.log("web") == set()
    told = found(app)
    assert {code: each.level for code, each in told.items() if code.startswith(("acl", "info"))} == {"acl": "ok"}


def test_what_is_sent_is_what_the_doctor_asks_for(
    app: Celery, task: Any, redis_factory: RedisServers, namespace: str
) -> None:
    """No right is asked for in vain: each of the cache's commands occurs, those inside scripts included."""
    server = redis_factory(flavour="redis-7.0")
    lead_to(app, server.url())
    with server.client() as client:
        client.config_resetstat()
    tour(app)

    sent = {name.lower() for name in server.command_stats()}
    asked = {right[1:] for each in rights_of(namespace).values() for right in each}

    handshake = {"info", "config|resetstat", "client|setinfo", "client|setname", "select", "hello"}
    assert sent - asked <= handshake
    seldom = {"sadd": "somebody waits", "hexists": "too many counters", "zunionstore": "later", "rename": "a day later"}
    assert asked - sent == set(seldom)


@pytest.mark.parametrize(
    ("code", "denied"),
    [
        (rights.CACHE, "mget"), (rights.CACHE, "getrange"), (rights.CACHE, "sadd"), (rights.CACHE, "evalsha"),
        (rights.CACHE, "script|load"), (rights.INVALIDATE, "unlink"), (rights.INVALIDATE, "publish"),
        (rights.COUNTERS, "zremrangebyscore"), (rights.COUNTERS, "hincrbyfloat"),
        (rights.COUNTERS, "bitfield"), (rights.REPORT, "xadd"),
        (rights.JOURNAL, "zscore"),
        (rights.JOURNAL, "getdel"), (rights.JOURNAL, "exec"), (rights.TRACKING, "client|tracking"),
    ],
)  # fmt: skip
def test_a_right_that_is_missing_is_found(
    app: Celery, task: Any, users: Users, namespace: str, code: str, denied: str
) -> None:
    behind(app)
    without = [right for right in granted(namespace, journal=True, tracking=True) if right != f"+{denied}"]
    users.have("web", *without, "&__redis__:invalidate")
    lead_to(app, users.url("web"), cachetiers_l1_tracking=True)

    told = found(app)

    wrong = {name for name in told if name.startswith("acl-")}
    assert code in wrong
    assert all(denied in told[name].found for name in wrong), told
    with users.server.client() as client:
        assert client.keys("*") == []


def test_what_is_to_be_done_about_a_missing_right_helps(app: Celery, task: Any, users: Users, namespace: str) -> None:
    behind(app)
    missing = ("+mget", "+zadd", "+subscribe", "+exec", *(["+script|load"] if users.subcommands else []))
    without = [right for right in granted(namespace, journal=True) if right not in missing]
    users.have("web", *without, channels="&nothing")
    lead_to(app, users.url("web"))
    told = found(app)
    assert {code for code in told if code.startswith("acl-")} == {
        rights.CACHE, rights.INVALIDATE, rights.COUNTERS, rights.JOURNAL, rights.BACKPLANE,
    }  # fmt: skip

    with users.server.client() as client:
        for _ in range(2):  # a command that was denied told nothing of its channel
            for code in [code for code in told if code.startswith("acl-")]:
                client.execute_command(*told[code].remedy.replace("'", "").split())
            told = found(app)

    assert told["acl"].level == "ok"


def test_channels_that_are_denied_leave_the_backplane_deaf(
    app: Celery, task: Any, users: Users, namespace: str
) -> None:
    users.have("web", *granted(namespace), channels=f"&{namespace}:in:*")
    lead_to(app, users.url("web"))

    told = found(app)

    assert told[rights.BACKPLANE].level == "warning"
    assert f"&{namespace}:inv" in told[rights.BACKPLANE].found
    assert f"&{namespace}:in:" not in told[rights.BACKPLANE].found


def test_without_info_p4_has_an_exception(app: Celery, task: Any, users: Users, namespace: str) -> None:
    users.have("web", *(right for right in granted(namespace) if right != "+info"))
    lead_to(app, users.url("web"))

    told = found(app)

    assert told["info"].level == "warning"
    assert "restarts from an old snapshot" in told["info"].found
    assert told["eviction-policy"].level == "info"
    assert told["acl"].level == "ok"


def test_keys_that_are_denied(app: Celery, task: Any, users: Users, namespace: str) -> None:
    users.have("web", *granted(namespace))
    lead_to(app, users.url("web"), cachetiers_namespace="another")

    assert found(app)[rights.CACHE].level == "error"


# ---- workers and broker ----------------------------------------------------------------------------------------------


def deployed(namespace: str, server: RedisServer, **conf: Any) -> Celery:
    app = cached_app(namespace, server.url(), **conf)
    app.task(_row, base=CachedTask, name="row")
    return app


def test_workers_answer_for_themselves(namespace: str, redis_server: RedisServer) -> None:
    with closing(deployed(namespace, redis_server)) as app, worker_of(app):
        told = found(app)

    assert told["workers"].level == "ok"
    assert "1 answer" in told["workers"].found
    assert told["worker-settings"].level == "ok"
    assert "worker-version" not in told


def test_a_worker_of_another_namespace_is_an_error(namespace: str, redis_server: RedisServer) -> None:
    other = deployed(namespace, redis_server, cachetiers_namespace="another")
    with closing(deployed(namespace, redis_server)) as app, worker_of(app), closing(other):
        told = found(other)

    assert told["worker-settings"].level == "error"
    assert "another" in told["worker-settings"].found


def test_a_task_that_no_worker_knows(namespace: str, redis_server: RedisServer) -> None:
    other = deployed(namespace, redis_server)
    other.task(_everybody, base=CachedTask, name="news")
    with closing(deployed(namespace, redis_server)) as app, worker_of(app), closing(other):
        told = found(other)

    assert told["workers"].level == "warning"
    assert told["workers"].found == "no worker knows news"


def test_a_worker_without_the_extension(namespace: str, redis_server: RedisServer) -> None:
    plain = LocalCelery("plain", broker="memory://", set_as_current=False)
    plain.conf.update(task_default_queue=namespace, broker_transport_options={"polling_interval": 0.05})
    with worker_of(plain), closing(deployed(namespace, redis_server)) as app:
        told = [each for each in examine(CacheTiers(app)) if each.code == "workers"]

    assert any("without this extension" in each.found for each in told)
    plain.close()


def test_no_worker_is_a_warning(namespace: str, redis_server: RedisServer) -> None:
    with closing(deployed(namespace, redis_server)) as app:
        assert found(app)["workers"].level == "warning"


@pytest.mark.parametrize("how", ["refuse", "hang"])
def test_a_broker_that_is_away_is_given_up(
    namespace: str, redis_server: RedisServer, redis_proxy: RedisProxy, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(asking_workers, "SECONDS", 0.5)
    with closing(deployed(namespace, redis_server, broker_url=redis_proxy.url(5), broker_read_url=None)) as app:
        getattr(redis_proxy, how)()
        began = time.monotonic()
        told = found(app)
        took = time.monotonic() - began
        redis_proxy.refuse()  # whoever still asks is answered

    assert told["broker"].level == "error"
    assert f"redis://127.0.0.1:{redis_proxy.port}/5" in told["broker"].found
    assert told["acl"].level == "ok"
    assert took < 30, "whatever the machine does meanwhile"


# ---- RabbitMQ --------------------------------------------------------------------------------------------------------


def on_rabbit(namespace: str, server: RedisServer, rabbit: RabbitServer, **conf: Any) -> Celery:
    return deployed(namespace, server, broker_url=rabbit.url(), broker_transport_options={}, **conf)


def held_at_most(app: Celery) -> list[int]:
    """What the waiting rooms of the workers say of themselves."""
    stats = app.control.inspect(timeout=2.0).stats() or {}
    return [told["waiting_room"]["capacity"] for told in stats.values()]


def test_workers_answer_through_rabbitmq_and_the_broker_is_told_as_what_it_is(
    namespace: str, redis_server: RedisServer, rabbit_server: RabbitServer
) -> None:
    with closing(on_rabbit(namespace, redis_server, rabbit_server)) as app, worker_of(app):
        told, capacity = found(app), held_at_most(app)

    assert (told["workers"].level, told["worker-settings"].level) == ("ok", "ok")
    assert "1 answer" in told["workers"].found
    assert told["wait-limit"].found.startswith("the broker delivers what is unacknowledged again after 30")
    assert (told["prefetch"].level, capacity[0] > 100) == ("ok", True)
    assert not {"broker", "broker-shared", "worker-version"} & told.keys()


def test_quorum_queues_are_told_as_what_keeps_the_waiting_room_of_a_worker_small(
    namespace: str, redis_server: RedisServer, rabbit_server: RabbitServer
) -> None:
    conf = {"task_default_queue_type": "quorum", "worker_detect_quorum_queues": True, "worker_prefetch_multiplier": 1}
    with closing(on_rabbit(namespace, redis_server, rabbit_server, **conf)) as app, worker_of(app):
        told, capacity = found(app), held_at_most(app)

    assert capacity == [0]
    assert told["prefetch"].level == "warning"
    assert told["prefetch"].found.startswith("with quorum queues and worker_prefetch_multiplier=1 workers hold no dup")
    assert told["workers"].level == "ok"


def test_a_wait_limit_past_half_of_what_rabbitmq_waits_is_an_error_with_its_remedy(
    namespace: str, redis_server: RedisServer, rabbit_server: RabbitServer
) -> None:
    with closing(on_rabbit(namespace, redis_server, rabbit_server, cachetiers_wait_limit=900)) as app:
        refused = found(app)["wait-limit"]
        app.conf.broker_transport_options = {"consumer_timeout": 7200}
        told = found(app)["wait-limit"]

    assert (refused.level, told.level) == ("error", "ok")
    assert "consumer_timeout" in refused.remedy
    assert "after 2 h" in told.found


@pytest.mark.slow
def test_a_rabbitmq_that_hangs_or_is_gone_is_given_up_and_told_without_its_password(
    namespace: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking_workers, "SECONDS", 3.0)
    with RabbitServer() as rabbit, closing(on_rabbit(namespace, redis_server, rabbit)) as app:
        os.kill(rabbit.pid, signal.SIGSTOP)
        try:
            hanging = found(app)
        finally:
            os.kill(rabbit.pid, signal.SIGCONT)
        rabbit.kill()
        gone = found(app)

        for told in (hanging, gone):
            assert told["broker"].level == "error"
            assert f"amqp://127.0.0.1:{rabbit.port}" in told["broker"].found
            assert told["acl"].level == "ok"
            assert not any("guest" in f"{each.found}{each.remedy}" for each in told.values())
        assert "cannot be reached" in gone["broker"].found
