"""What the doctor makes of settings and answers, each check in both directions; no server is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from celery_cachetiers import CachedTask, CacheTiers, sink
from celery_cachetiers.address import address_of
from celery_cachetiers.doctor import on_app, on_journal, on_server, on_workers, rights
from celery_cachetiers.doctor.examination import CHECKS, judged, versions
from celery_cachetiers.doctor.facts import Denial, Facts, ServerAnswers, WorkerAnswer, Workers
from celery_cachetiers.doctor.findings import LEVELS, Finding
from celery_cachetiers.doctor.subject import Subject, subject_of
from celery_cachetiers.journal_port import Backlog
from celery_cachetiers.server_info import ServerInfo
from tests.integration.apps.local import LocalCelery

pytestmark = pytest.mark.usefixtures("own_sinks", "own_tasks")

ROOT = Path(__file__).parents[2]
NOW = 1_000_000.0
HEALTHY = ServerInfo(
    run_id="a", redis_version="7.2.4", role="master", used_memory=100, maxmemory=1000, aof_enabled=1,
    maxmemory_policy="volatile-lru", rdb_last_bgsave_status="ok", aof_last_write_status="ok", connected_slaves=1,
)  # fmt: skip
L2 = ServerAnswers(address_of("redis://cache:6379/0"), info=HEALTHY, round_trips=(0.001,) * 5, ahead=0.0)
FACTS = Facts(NOW, l2=L2, versions=versions())


@pytest.fixture
def app() -> Iterator[Celery]:
    app = LocalCelery("doctor", broker="redis://broker:6379/0", backend="redis://results:6379/0", set_as_current=False)
    app.conf.update(cachetiers_url="redis://cache:6379/0", accept_content=["json"])
    yield app
    CacheTiers(app).reset()


def cached(app: Celery, **options: Any) -> Any:
    def body(user: int) -> int:
        return user

    task = app.task(body, **{"base": CachedTask, "name": "profile", **options})
    app.finalize()
    return task


def of(app: Celery) -> Subject:
    return subject_of(CacheTiers(app))


def behind(app: Celery, **options: Any) -> Subject:
    sink("orders", **options)(lambda writes: None)
    cached(app, sink="orders", write="behind")
    return of(app)


def told(check: Any, subject: Any, facts: Any = FACTS) -> dict[str, Finding]:
    """The worst finding of each code."""
    found: dict[str, Finding] = {}
    for finding in check(subject, facts):
        if finding.code not in found or finding.rank > found[finding.code].rank:
            found[finding.code] = finding
    return found


def levels(check: Any, subject: Any, facts: Any = FACTS) -> dict[str, str]:
    return {code: finding.level for code, finding in told(check, subject, facts).items()}


def server(**changed: Any) -> ServerAnswers:
    """A healthy server, with some of what it tells, or answers, changed."""
    names = {name for name in changed if hasattr(HEALTHY, name)}
    given = {name: value for name, value in changed.items() if name not in names}
    info = replace(HEALTHY, **{name: changed[name] for name in names})
    return replace(L2, **{"info": info, **given})


# ---- the switch and the addresses ------------------------------------------------------------------------------------


def test_an_app_as_it_should_be_has_no_complaint(app: Celery) -> None:
    cached(app, reject_on_worker_lost=True)

    found = judged(of(app), replace(FACTS, workers=workers({})))

    # It is a name of another machine, and nobody said that the network between is one's own.
    assert [finding.code for finding in found if finding.level != "ok"] == ["tls"], found
    assert found[0].code == "enabled"
    assert len({finding.code for finding in found}) > 12


def test_the_switch_is_said_first(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(app)
    app.conf.cachetiers_enabled = False
    assert told(on_app.switch, of(app))["enabled"].level == "warning"
    assert "cachetiers_enabled" in told(on_app.switch, of(app))["enabled"].found
    assert CHECKS[0] is on_app.switch

    CacheTiers(app).reset()
    app.conf.cachetiers_enabled = True
    monkeypatch.setenv("CACHETIERS_ENABLED", "0")
    found = told(on_app.switch, of(app))["enabled"]
    assert (found.level, "CACHETIERS_ENABLED" in found.found) == ("warning", True)
    assert levels(on_app.tasks, of(app)) == {"tasks": "ok"}, "tasks are looked at all the same"


@pytest.mark.parametrize(
    ("conf", "level", "words"),
    [
        ({"cachetiers_url": "redis://cache/3"}, "ok", "redis://cache:6379/3, from cachetiers_url"),
        ({"cachetiers_url": None}, "ok", "redis://results:6379/0, from the result backend"),
        ({"cachetiers_url": None, "result_backend": "rpc://"}, "warning", "its own cache in memory"),
    ],
)
def test_where_l2_comes_from(app: Celery, conf: Mapping[str, Any], level: str, words: str) -> None:
    app.conf.update(conf)

    found = told(on_app.url, of(app))["url"]

    assert found.level == level
    assert words in found.found


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("redis://broker:6379/0", "warning"),
        ("redis://broker", "warning"),
        ("redis://broker:6379/1", "info"),
        ("redis://broker:6380/0", None),
        ("redis://cache", None),
        ("unix:///run/redis.sock", None),
    ],
)
def test_a_server_that_is_the_brokers_too(app: Celery, url: str, level: str | None) -> None:
    app.conf.cachetiers_url = url

    assert levels(on_app.url, of(app)).get("broker-shared") == level


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("redis://cache", "info"),
        ("rediss://cache", None),
        ("redis://localhost", None),
        ("redis://127.0.0.1:7000/1", None),
        ("unix:///run/redis.sock", None),
    ],
)
def test_a_connection_that_others_can_read(app: Celery, url: str, level: str | None) -> None:
    app.conf.cachetiers_url = url

    assert levels(on_app.url, of(app)).get("tls") == level


@pytest.mark.parametrize(("journal", "hosts"), [(None, ["cache"]), ("redis://journal:6379/0", ["cache", "journal"])])
def test_a_connection_that_both_share_is_told_of_once(app: Celery, journal: str | None, hosts: list[str]) -> None:
    app.conf.cachetiers_journal_url = journal
    found = [each.found for each in on_app.url(behind(app), FACTS) if each.code == "tls"]

    assert sorted(text.partition(" at ")[2].split()[0] for text in found) == hosts


def test_no_secret_is_told(app: Celery) -> None:
    secret = "s3cr3t-0123456789"
    app.conf.update(
        cachetiers_url=f"redis://me:{secret}@cache/0?password={secret}", cachetiers_signing_key=secret,
        cachetiers_journal_url=f"redis://:{secret}@journal", broker_url=f"redis://u:{secret}@cache/0",
        result_backend=f"redis://u:{secret}@results/0",
    )  # fmt: skip
    subject = behind(app)
    away = replace(L2, address=subject.l2, away="refused", round_trips=())

    for facts in (FACTS, replace(FACTS, l2=away, journal=away, workers=Workers(broker_away="it is away"))):
        found = judged(subject, facts)
        assert secret not in json.dumps([each.as_dict() for each in found])
        assert any("redis://cache:6379/0" in each.found for each in found)


# ---- versions, declarations, serializers -----------------------------------------------------------------------------


def test_versions_that_go_together(app: Celery) -> None:
    assert levels(on_app.versions, of(app)) == {"versions": "ok"}

    for name, version in {"redis": "4.0.0", "celery": "5.2.0", "cachetools": "5.0"}.items():
        found = told(on_app.versions, of(app), replace(FACTS, versions={**FACTS.versions, name: version}))["versions"]
        assert (found.level, name in found.found, version in found.found) == ("error", True, True)


def test_a_redis_py_that_kombu_was_not_made_for(app: Celery) -> None:
    assert not list(on_app.unmet(FACTS.versions))

    wrong = list(on_app.unmet({**FACTS.versions, "redis": "999.0"}))

    assert [(name, "by kombu" in wanted) for name, wanted, _ in wrong] == [("redis", True)]


def test_tasks_that_are_cached_and_that_are_not(app: Celery) -> None:
    assert levels(on_app.tasks, of(app)) == {"tasks": "info"}
    cached(app)
    cached(app, name="other", cache_enabled=False)

    found = told(on_app.tasks, of(app))

    assert found["tasks"].level == "ok"
    assert found["tasks"].found == "cached: profile; switched off: other"


def test_an_option_that_cannot_be_is_told_and_hides_nothing(app: Celery) -> None:
    cached(app, ttl=1, jitter=5)
    cached(app, name="good")

    found = told(on_app.tasks, of(app))

    assert found["task-options"].level == "error"
    assert "jitter" in found["task-options"].found
    assert "good" in found["tasks"].found


def test_a_sink_that_nobody_has_registered_is_an_error(app: Celery) -> None:
    cached(app, sink="nowhere", write="behind")

    assert "nowhere" in told(on_app.tasks, of(app))["task-options"].found


def test_tags_that_no_task_depends_on(app: Celery) -> None:
    cached(app, tags=["user:{user}"])
    cached(app, name="rename", base=None, invalidates=["user:{user}"])
    assert "unused-tags" not in levels(on_app.tasks, of(app))

    cached(app, name="typo", base=None, invalidates=["usr:{user}"])
    assert told(on_app.tasks, of(app))["unused-tags"].level == "info"


@pytest.mark.parametrize(
    ("conf", "level"),
    [
        ({}, "ok"),
        ({"cachetiers_serializer": "pickle", "accept_content": ["pickle"]}, "warning"),
        ({"cachetiers_serializer": "pickle", "accept_content": ["pickle"], "cachetiers_signing_key": "k" * 16}, "ok"),
        ({"accept_content": ["json", "pickle"]}, "warning"),
        ({"accept_content": ["json", "application/x-python-serialize"]}, "warning"),
        ({"accept_content": ["json", "pickle"], "result_accept_content": ["json"]}, "ok"),
        ({"accept_content": ["json", "pickle"], "cachetiers_signing_key": "k" * 16}, "ok"),
    ],
)
def test_who_can_write_to_redis_can_run_code_only_under_pickle(
    app: Celery, conf: Mapping[str, Any], level: str
) -> None:
    app.conf.update(conf)
    cached(app)

    assert levels(on_app.serializers, of(app)) == {"pickle": level}


def test_a_serializer_that_is_not_accepted_is_an_error(app: Celery) -> None:
    cached(app, cache_serializer="pickle")

    assert "accept_content" in told(on_app.tasks, of(app))["task-options"].found


# ---- what Celery is told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"acks-late": "ok", "worker-lost": "info"}),
        ({"reject_on_worker_lost": True}, {"acks-late": "ok"}),
        ({"acks_late": False}, {"acks-late": "warning"}),
    ],
)
def test_when_messages_are_acknowledged(app: Celery, options: Any, expected: dict[str, str]) -> None:
    cached(app, **options)

    assert levels(on_app.acknowledgement, of(app)) == expected


@pytest.mark.parametrize(
    ("seconds", "options", "expected"),
    [
        (3600, {}, {"wait-limit": "ok"}),
        (600, {}, {"wait-limit": "error"}),
        (602, {}, {"wait-limit": "ok"}),
        (600, {"wait_limit": 100}, {"wait-limit": "ok"}),
        (600, {"coalesce": False}, {}),
        (3600, {"time_limit": 3600}, {"wait-limit": "ok", "time-limit": "warning"}),
        (3600, {"time_limit": 3599}, {"wait-limit": "ok"}),
    ],
)
def test_how_long_the_broker_waits(app: Celery, seconds: int, options: Any, expected: dict[str, str]) -> None:
    app.conf.broker_transport_options = {"visibility_timeout": seconds}
    cached(app, **options)

    assert levels(on_app.redelivery, of(app)) == expected
    assert all("visibility_timeout" in each.remedy for each in on_app.redelivery(of(app), FACTS) if each.remedy)


@pytest.mark.parametrize(("wait_limit", "level"), [(300, "ok"), (900, "error")])
def test_rabbitmq_waits_for_half_an_hour(app: Celery, wait_limit: int, level: str) -> None:
    app.conf.broker_url = "amqp://rabbit"
    cached(app, wait_limit=wait_limit)

    found = told(on_app.redelivery, of(app))["wait-limit"]

    assert found.level == level
    assert "30 min" in found.found
    assert ("consumer_timeout" in found.remedy) is (level == "error")


def test_the_time_limit_may_be_the_apps(app: Celery) -> None:
    app.conf.task_time_limit = 7200
    cached(app)

    assert levels(on_app.redelivery, of(app))["time-limit"] == "warning"


@pytest.mark.parametrize(
    ("conf", "options", "level"),
    [
        ({}, {}, "ok"),
        ({"result_expires": 100}, {}, "info"),
        ({"result_expires": 300}, {}, "ok"),
        ({"result_expires": 300}, {"grace": 1}, "info"),
        ({"result_expires": None}, {}, "ok"),
        ({"result_backend": None}, {}, "info"),
        ({"result_backend": "disabled://"}, {}, "info"),
        ({"task_ignore_result": True}, {}, "info"),
        ({}, {"ignore_result": True}, "info"),
    ],
)
def test_how_long_results_can_be_read(app: Celery, conf: Any, options: Any, level: str) -> None:
    app.conf.update(conf)
    cached(app, **options)

    assert [(each.code, each.level) for each in on_app.results(of(app), FACTS)] == [("results", level)]


@pytest.mark.parametrize(
    ("broker", "conf", "level"),
    [
        ("redis://broker", {}, "ok"),
        ("redis://broker", {"worker_disable_prefetch": True}, "info"),
        ("redis://broker", {"worker_eta_task_limit": 10}, "info"),
        ("redis://broker", {"worker_disable_prefetch": True, "worker_prefetch_multiplier": 1}, "warning"),
        ("redis://broker", {"worker_prefetch_multiplier": 1}, "ok"),
        ("amqp://broker", {}, "ok"),
        ("amqp://broker", {"task_default_queue_type": "quorum"}, "info"),
        ("amqp://broker", {"task_queues": [Queue("a", queue_arguments={"x-queue-type": "quorum"})]}, "info"),
        ("amqp://broker", {"task_queues": [Queue("a")]}, "ok"),
        ("amqp://broker", {"task_queues": [Queue("a", queue_arguments={"x-max-priority": 5})]}, "ok"),
        ("amqp://broker", {"task_queues": {"a": {"queue_arguments": {"x-queue-type": "quorum"}}}}, "info"),
        ("redis://broker", {"task_default_queue_type": "quorum"}, "ok"),
    ],
)
def test_what_a_worker_can_hold(app: Celery, broker: str, conf: Any, level: str) -> None:
    app.conf.update(broker_url=broker, **conf)
    cached(app)

    assert levels(on_app.prefetching, of(app)) == {"prefetch": level}


def test_a_broker_that_cannot_be_used_is_told_without_its_url(app: Celery) -> None:
    app.conf.broker_url = "nosuch://user:secret@host"
    cached(app)

    subject = of(app)

    assert subject.driver == ""
    assert levels(on_app.redelivery, subject) == {}
    assert any("the broker cannot be used" in trouble for trouble in subject.troubles)
    assert "secret" not in str(subject.troubles)


# ---- servers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (server(), {"reachable": "ok", "clock": "ok"}),
        (server(away="refused", round_trips=()), {"reachable": "error"}),
        (server(loading=1, round_trips=()), {"reachable": "error"}),
        (server(round_trips=(0.03, 0.03, 9.0)), {"reachable": "ok", "timeout": "warning", "clock": "ok"}),
        (server(round_trips=(0.02, 0.02, 9.0)), {"reachable": "ok", "clock": "ok"}),
        (server(ahead=1.5), {"reachable": "ok", "clock": "warning"}),
        (server(ahead=-1.5), {"reachable": "ok", "clock": "warning"}),
        (server(ahead=0.5), {"reachable": "ok", "clock": "ok"}),
        (server(info=None), {"reachable": "ok", "clock": "ok"}),
        (server(ahead=None), {"reachable": "ok", "clock": "info"}),
    ],
)
def test_how_a_server_answers(app: Celery, answers: ServerAnswers, expected: dict[str, str]) -> None:
    found = {each.code: each.level for each in on_server.reachable(answers, of(app))}

    assert found == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (server(), {"redis-version": "ok", "role": "ok"}),
        (server(redis_version="6.2.0"), {"redis-version": "ok", "role": "ok"}),
        (server(redis_version="6.0.16"), {"redis-version": "error", "role": "ok"}),
        (server(redis_version="10.0.1"), {"redis-version": "ok", "role": "ok"}),
        (server(role="slave"), {"redis-version": "ok", "role": "error"}),
        (server(info=None, info_denied=True), {"info": "warning"}),
        (server(info=None), {"info": "warning"}),
    ],
)
def test_what_a_server_is(app: Celery, answers: ServerAnswers, expected: dict[str, str]) -> None:
    assert {each.code: each.level for each in on_server.state(answers, of(app))} == expected


NO_BROKER, BROKER = "redis://cache:6379/0", "redis://broker:6379/1"


@pytest.mark.parametrize(
    ("url", "info", "expected"),
    [
        (NO_BROKER, {}, {"maxmemory": "ok", "eviction-policy": "ok"}),
        (NO_BROKER, {"maxmemory_policy": "allkeys-lru"}, {"maxmemory": "ok", "eviction-policy": "ok"}),
        (BROKER, {"maxmemory_policy": "allkeys-lru"}, {"maxmemory": "ok", "eviction-policy": "error"}),
        (NO_BROKER, {"maxmemory_policy": "noeviction"}, {"maxmemory": "ok", "eviction-policy": "warning"}),
        (BROKER, {"maxmemory_policy": "noeviction"}, {"maxmemory": "ok", "eviction-policy": "warning"}),
        (BROKER, {"maxmemory_policy": "volatile-lru"}, {"maxmemory": "ok", "eviction-policy": "ok"}),
        (NO_BROKER, {"maxmemory_policy": "noeviction", "used_memory": 901},
         {"maxmemory": "warning", "eviction-policy": "warning"}),
        (NO_BROKER, {"used_memory": 990}, {"maxmemory": "ok", "eviction-policy": "ok"}),
        (NO_BROKER, {"maxmemory": 0, "maxmemory_policy": "noeviction"},
         {"maxmemory": "warning", "eviction-policy": "ok"}),
        (BROKER, {"maxmemory": 0, "maxmemory_policy": "noeviction"}, {"maxmemory": "warning", "eviction-policy": "ok"}),
        (NO_BROKER, {"evicted_keys": 3}, {"maxmemory": "ok", "eviction-policy": "ok", "evicted": "info"}),
    ],
)  # fmt: skip
def test_what_happens_when_l2_is_full(app: Celery, url: str, info: Any, expected: dict[str, str]) -> None:
    app.conf.cachetiers_url = url

    assert {each.code: each.level for each in on_server.memory(server(**info), of(app))} == expected


@pytest.mark.parametrize("broker", ["memory://", "amqp://cache:6379"])
def test_a_broker_that_is_no_redis_shares_nothing(app: Celery, broker: str) -> None:
    app.conf.broker_url = broker

    found = {each.code: each.level for each in on_server.memory(server(maxmemory_policy="allkeys-lru"), of(app))}

    assert found["eviction-policy"] == "ok"
    assert "broker-shared" not in levels(on_app.url, of(app))


@pytest.mark.parametrize(("ahead", "words"), [(5.0, "5 s ahead of"), (-5.0, "5 s behind")])
def test_a_clock_is_ahead_or_behind(app: Celery, ahead: float, words: str) -> None:
    without = {each.code: each.found for each in on_server.reachable(server(ahead=ahead), of(app))}["clock"]
    journal = {each.code: each.found for each in on_server.reachable(server(ahead=ahead), behind(app))}["clock"]

    assert words in without
    assert ("journal" in without, "journal" in journal) == (False, True)


def test_a_journal_that_may_not_tell_of_itself(app: Celery) -> None:
    app.conf.cachetiers_journal_url = "redis://journal"

    found = levels(on_journal.server, behind(app), replace(FACTS, journal=server(info=None, info_denied=True)))

    assert found["info"] == "warning"
    assert "persistence" not in found


def test_noeviction_beside_the_broker_says_that_nothing_can_be_published(app: Celery) -> None:
    app.conf.cachetiers_url = BROKER
    found = {each.code: each for each in on_server.memory(server(maxmemory_policy="noeviction"), of(app))}

    assert "nothing can be published" in found["eviction-policy"].found


@pytest.mark.parametrize(
    ("denied", "expected"),
    [
        ([], {"acl": "ok"}),
        ([Denial(rights.CACHE, "+mget")], {"acl-cache": "error"}),
        ([Denial(rights.INVALIDATE, "+publish")], {"acl-invalidate": "error"}),
        ([Denial(rights.JOURNAL, "+hget")], {"acl-journal": "error"}),
        ([Denial(rights.BACKPLANE, "&cachetiers:inv")], {"acl-backplane": "warning"}),
        ([Denial(rights.TRACKING, "+client|tracking")], {"acl-tracking": "warning"}),
        ([Denial(rights.COUNTERS, "+time"), Denial(rights.CACHE, "+get")],
         {"acl-cache": "error", "acl-counters": "warning"}),
    ],
)  # fmt: skip
def test_what_the_user_may_not_do(app: Celery, denied: list[Denial], expected: dict[str, str]) -> None:
    found = list(on_server.permissions(server(denied=tuple(denied), user="web"), of(app)))

    assert {each.code: each.level for each in found} == expected
    for each in found:
        assert ("ACL SETUSER web" in each.remedy) is bool(denied)
        assert all(denial.right in each.found for denial in denied if denial.need == each.code)


def test_rights_that_could_not_be_found_out(app: Celery) -> None:
    found = list(on_server.permissions(server(rights_unknown="it went away"), of(app)))

    assert [(each.code, each.level) for each in found] == [("acl", "info")]


def test_of_a_server_that_is_away_nothing_else_is_said(app: Celery) -> None:
    assert levels(on_server.l2, of(app), replace(FACTS, l2=server(away="refused", round_trips=()))) == {
        "reachable": "error"
    }
    assert levels(on_server.l2, of(app), replace(FACTS, l2=None)) == {}


# ---- the journal, beat -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "info", "expected"),
    [
        ({}, {}, {"journal-eviction": "ok", "persistence": "ok"}),
        ({}, {"maxmemory_policy": "allkeys-lru"}, {"journal-eviction": "error", "persistence": "ok"}),
        ({}, {"maxmemory_policy": "noeviction"}, {"journal-eviction": "ok", "persistence": "ok"}),
        ({}, {"aof_enabled": 0}, {"journal-eviction": "ok", "persistence": "warning"}),
        ({}, {"aof_last_write_status": "err"}, {"journal-eviction": "ok", "persistence": "error"}),
        ({}, {"rdb_last_bgsave_status": "err"}, {"journal-eviction": "ok", "persistence": "warning"}),
        ({}, {"connected_slaves": 0, "redis_version": "7.0.15"}, {"journal-eviction": "ok", "persistence": "ok"}),
        ({"durability": "replica"}, {}, {"journal-eviction": "ok", "persistence": "ok"}),
        ({"durability": "replica"}, {"connected_slaves": 0},
         {"journal-eviction": "ok", "persistence": "ok", "durability": "warning"}),
        ({"durability": "disk"}, {}, {"journal-eviction": "ok", "persistence": "ok"}),
        ({"durability": "disk"}, {"redis_version": "7.0.15"},
         {"journal-eviction": "ok", "persistence": "ok", "durability": "warning"}),
        ({"durability": "disk"}, {"aof_enabled": 0},
         {"journal-eviction": "ok", "persistence": "warning", "durability": "warning"}),
    ],
)  # fmt: skip
def test_whether_the_journal_keeps_what_it_has(app: Celery, options: Any, info: Any, expected: dict[str, str]) -> None:
    subject, l2 = behind(app, **options), server(**info)

    assert levels(on_journal.server, subject, replace(FACTS, l2=l2, journal=l2)) == expected


def test_where_nothing_is_written_behind_no_journal_is_looked_at(app: Celery) -> None:
    cached(app)
    l2 = server(aof_enabled=0, maxmemory_policy="allkeys-lru")

    assert of(app).behind == {}
    assert levels(on_journal.server, of(app), replace(FACTS, l2=l2)) == {}
    assert levels(on_journal.beat, of(app), replace(FACTS, l2=l2)) == {}


def test_a_journal_on_a_server_of_its_own_is_looked_at_by_itself(app: Celery) -> None:
    app.conf.cachetiers_journal_url = "redis://journal"
    subject, journal = behind(app), server(role="slave", denied=(Denial(rights.JOURNAL, "+zadd"),))

    found = told(on_journal.server, subject, replace(FACTS, journal=journal))

    assert {code for code, each in found.items() if each.level == "error"} == {"role", "acl-journal"}
    assert found["role"].found.startswith("journal: ")
    away = levels(on_journal.server, subject, replace(FACTS, journal=server(away="refused", round_trips=())))
    assert away == {"reachable": "error"}


@pytest.mark.parametrize(
    ("backlog", "expected"),
    [
        (Backlog(0, None, 0), {"backlog": "ok"}),
        (Backlog(5, NOW - 29, 0), {"backlog": "ok"}),
        (Backlog(5, NOW - 31, 0), {"backlog": "warning"}),
        (Backlog(81, NOW, 0), {"backlog": "warning"}),
        (Backlog(80, NOW, 0), {"backlog": "ok"}),
        (Backlog(0, None, 2), {"backlog": "ok", "dead-letter": "warning"}),
        (None, {"backlog": "info"}),
    ],
)
def test_what_waits_for_a_sink(app: Celery, backlog: Backlog | None, expected: dict[str, str]) -> None:
    subject = behind(app, max_pending=100)
    facts = replace(FACTS, backlogs={} if backlog is None else {"orders": backlog})

    assert levels(on_journal.backlogs, subject, facts) == expected


def test_a_slow_schedule_may_let_writes_wait_for_longer(app: Celery) -> None:
    app.conf.cachetiers_flush_every = 60
    facts = replace(FACTS, backlogs={"orders": Backlog(1, NOW - 359, 0)})

    subject = behind(app)

    assert levels(on_journal.backlogs, subject, facts) == {"backlog": "ok"}
    late = replace(FACTS, backlogs={"orders": Backlog(1, NOW - 361, 0)})
    assert levels(on_journal.backlogs, subject, late) == {"backlog": "warning"}


@pytest.mark.parametrize(("age", "level"), [(10.0, "ok"), (359.0, "ok"), (361.0, "warning")])
def test_beat_is_known_by_its_last_report(app: Celery, age: float, level: str) -> None:
    assert levels(on_journal.beat, of(app), replace(FACTS, last_report=NOW - age)) == {"beat": level}


@pytest.mark.parametrize("setting", [{"cachetiers_report_every": None}, {"cachetiers_enabled": False}])
def test_where_none_is_to_be_made_an_old_report_tells_nothing_of_beat(app: Celery, setting: dict[str, Any]) -> None:
    app.conf.update(setting)
    facts = replace(FACTS, last_report=NOW - 100_000)
    alone, writing = levels(on_journal.beat, of(app), facts), levels(on_journal.beat, behind(app), facts)

    assert (alone, writing) == ({}, {"beat": "info"})


def test_without_a_report_it_is_not_known_whether_beat_runs(app: Celery) -> None:
    subject = behind(app)

    found = told(on_journal.beat, subject, replace(FACTS, backlogs={"orders": Backlog(3, NOW, 0)}))

    assert found["beat"].level == "info"
    assert "orders" in found["beat"].found


# ---- workers ---------------------------------------------------------------------------------------------------------


def workers(changed: dict[str, Any], tasks: frozenset[str] | None = frozenset({"profile"})) -> Workers:
    tells = {
        "version": FACTS.versions["celery-cachetiers"], "namespace": "cachetiers", "enabled": True,
        "l2": "redis://cache:6379/0", **changed,
    }  # fmt: skip
    return Workers({"w@1": WorkerAnswer(tells, tasks)})


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (workers({}), {"workers": "ok", "worker-settings": "ok"}),
        (workers({}, frozenset({"other"})), {"workers": "warning", "worker-settings": "ok"}),
        (workers({}, None), {"workers": "ok", "worker-settings": "ok"}),
        (Workers(), {"workers": "warning"}),
        (Workers(unknown="eager"), {"workers": "info"}),
        (Workers(broker_away="it hangs"), {"broker": "error"}),
        (Workers({"w@1": WorkerAnswer({}, frozenset({"profile"}))}), {"workers": "warning"}),
        (workers({"version": "0.0.1"}), {"workers": "ok", "worker-version": "warning"}),
        (workers({"namespace": "x"}), {"workers": "ok", "worker-settings": "error"}),
        (workers({"enabled": False}), {"workers": "ok", "worker-settings": "warning"}),
        (workers({"l2": "redis://other:6379/0"}), {"workers": "ok", "worker-settings": "info"}),
    ],
)
def test_what_the_workers_say(app: Celery, asked: Workers, expected: dict[str, str]) -> None:
    cached(app)
    subject, facts = of(app), replace(FACTS, workers=asked)

    assert levels(on_workers.workers, subject, facts) | levels(on_workers.agreement, subject, facts) == expected


def test_a_broker_that_is_away_is_named_where_that_is_known(app: Celery) -> None:
    away = replace(FACTS, workers=Workers(broker_away="it hangs"))
    known = told(on_workers.workers, of(app), away)["broker"].found
    app.conf.broker_url = "memory://"
    unknown = told(on_workers.workers, of(app), away)["broker"].found

    assert (known, unknown) == ("the broker redis://broker:6379/0: it hangs", "the broker: it hangs")


# ---- the whole -------------------------------------------------------------------------------------------------------


def test_a_check_that_breaks_hinders_no_other(app: Celery) -> None:
    def broken(subject: Subject, facts: Facts) -> Iterator[Finding]:
        yield Finding("ok", "before", "")
        raise ValueError("oh")

    found = judged(of(app), FACTS, (broken, on_app.switch))

    assert [(each.code, each.level) for each in found] == [("before", "ok"), ("broken", "info"), ("enabled", "ok")]
    assert "ValueError('oh')" in found[1].found


def test_the_page_has_every_code_with_the_levels_that_it_can_have() -> None:
    page = (ROOT / "docs" / "howto" / "doctor.md").read_text()
    rows = re.findall(r"^\| (`[^|]*) \| ([a-z, ]*) \|", page, re.MULTILINE)
    documented = {code: set(shown.split(", ")) for codes, shown in rows for code in re.findall(r"`([\w-]+)`", codes)}
    source = "".join(path.read_text() for path in (ROOT / "celery_cachetiers" / "doctor").glob("on_*.py"))
    told: dict[str, set[str]] = {code: {judge.__name__} for code, (judge, _) in on_server._CONSEQUENCES.items()}
    for level, code in re.findall(r'\b(ok|info|warning|error|unknown)\(\s*"([a-z0-9-]+)"', source):
        told.setdefault(code, set()).add(level.replace("unknown", "info"))

    assert told == documented
    assert set().union(*documented.values()) == set(LEVELS)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://", "redis://localhost:6379/0"),
        ("redis://:pass@[::1]:7000/2?x=1", "redis://[::1]:7000/2"),
        ("rediss://user:pass@h", "rediss://h:6379/0"),
        ("redis://h?db=4", "redis://h:6379/4"),
        ("socket:///tmp/r.sock?virtual_host=3", "unix:///tmp/r.sock?db=3"),
        ("amqp://guest:guest@rabbit//", "amqp://rabbit:5672/"),
        ("redis://h:port/0", "redis://h/0"),
    ],
)
def test_an_address_is_a_url_without_its_secrets(url: str, text: str) -> None:
    assert str(address_of(url)) == text


def test_two_names_of_one_server() -> None:
    local = address_of("redis://localhost")

    assert local.same_server(address_of("redis://127.0.0.1:6379/5"))
    assert local.same_server(address_of("rediss://localhost"))
    assert not local.same_server(address_of("redis://localhost:6380"))
    assert not address_of("redis://h:5672").same_server(address_of("amqp://h"))
    assert address_of("unix:///a").same_server(address_of("unix:///a?db=2"))
