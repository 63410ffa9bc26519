"""What a report of Redis does to L1, in any order of read, change, report, look and put; when it is looked into."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from celery_cachetiers.backplane import tracking
from celery_cachetiers.backplane.tracking import CHANNEL, LOOK_EVERY, Tracking
from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.local_port import Mark
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.testing import FakeClock, RecordingListener
from celery_cachetiers.tiers import tracked
from celery_cachetiers.tiers.layout import Layout
from celery_cachetiers.tiers.tracked import TrackedTier

ONE, TWO, THREE = b"11111111", b"22222222", b"33333333"


@pytest.fixture
def tier() -> TrackedTier:
    return tracked_tier()


def tracked_tier() -> TrackedTier:
    return TrackedTier(100, 1024**2, FakeClock(), trusted=True)


def put(tier: TrackedTier, digest: str, versions: dict[str, bytes], mark: Mark | None = None) -> bool:
    names, stamp = (*versions, f"@key:{digest}"), b"".join(versions.values())
    return tier.put(digest, digest, names, 10.0, mark or tier.mark(), stamp=stamp)


def has(tier: TrackedTier, digest: str) -> bool:
    return tier.get(digest, Tally()) is not MISSING


# -- L1 under reports -------------------------------------------------------------------------------------------------


def test_a_report_of_a_version_that_is_what_it_was_ends_nothing(tier: TrackedTier) -> None:
    assert put(tier, "a", {"@all": ONE, "user:1": TWO})

    assert tier.reported(["@all", "user:1"]) == ["@all", "user:1"]
    assert tier.compare([("@all", ONE), ("user:1", TWO)]) == []
    assert has(tier, "a")


@pytest.mark.parametrize("present", [None, THREE])
def test_a_version_that_is_gone_or_another_is_one_to_invalidate(tier: TrackedTier, present: bytes | None) -> None:
    put(tier, "a", {"@all": ONE, "user:1": TWO})
    tier.reported(["user:1"])

    assert tier.compare([("user:1", present)]) == ["user:1"]


def test_a_tag_that_nothing_depends_on_is_not_looked_up_and_ends_nothing(tier: TrackedTier) -> None:
    put(tier, "a", {"@all": ONE, "user:1": TWO})

    assert tier.reported([f"other:{number}" for number in range(10_000)]) == []
    assert has(tier, "a")


def test_a_put_that_was_under_way_when_its_tag_was_reported_is_refused(tier: TrackedTier) -> None:
    mark = tier.mark()
    tier.reported(["user:1"])

    assert not put(tier, "a", {"user:1": ONE}, mark)
    assert put(tier, "a", {"user:1": ONE})


def test_a_put_that_was_under_way_is_not_refused_when_its_tag_was_known(tier: TrackedTier) -> None:
    put(tier, "b", {"user:1": ONE})
    mark = tier.mark()
    tier.compare([(name, ONE) for name in tier.reported(["user:1"])])

    assert put(tier, "a", {"user:1": ONE}, mark)


def test_two_stamps_that_differ_end_everything_under_the_tag(tier: TrackedTier) -> None:
    put(tier, "old", {"@all": ONE, "user:1": ONE})
    put(tier, "other", {"@all": ONE, "user:2": ONE})

    assert not put(tier, "new", {"@all": ONE, "user:1": TWO})
    assert [has(tier, digest) for digest in ("old", "new", "other")] == [False, False, True]
    assert put(tier, "new", {"@all": ONE, "user:1": TWO})


def test_a_value_without_a_stamp_is_not_kept(tier: TrackedTier) -> None:
    assert not tier.put("a", "a", ("user:1", "@key:a"), 10.0, tier.mark())


def test_the_librarys_own_tags_are_known_from_the_first_report_on(tier: TrackedTier) -> None:
    """Else, while others compute all the time, each report would refuse the put that makes them known."""
    assert tier.reported(["@all", "@task:page", "@@mine"]) == ["@all", "@task:page"]
    tier.compare([("@all", ONE), ("@task:page", TWO)])
    mark = tier.mark()
    tier.compare([(name, {"@all": ONE, "@task:page": TWO}[name]) for name in tier.reported(["@all", "@task:page"])])

    assert put(tier, "a", {"@all": ONE, "@task:page": TWO}, mark)


def test_what_was_invalidated_or_cleared_is_known_no_longer(tier: TrackedTier) -> None:
    put(tier, "a", {"user:1": ONE, "user:2": ONE})
    tier.invalidate(["user:1"])
    assert tier.reported(["user:1", "user:2"]) == ["user:2"]
    tier.clear()

    assert tier.reported(["user:2"]) == []


def test_one_tag_too_many_and_l1_starts_over(tier: TrackedTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked, "TAGS", 4)
    for digest in ("a", "b"):
        put(tier, digest, {f"user:{digest}": ONE, f"page:{digest}": ONE})
    mark = tier.mark()
    assert not put(tier, "c", {"user:c": ONE}, mark)

    assert [has(tier, digest) for digest in "abc"] == [False, False, False]
    assert put(tier, "c", {"user:c": ONE})
    assert len(tier._versions) == 1


def test_after_a_fork_nothing_is_known_and_no_lock_is_held(tier: TrackedTier) -> None:
    put(tier, "a", {"user:1": ONE})
    with tier._versions_lock:
        tier.reset_after_fork()
        done = threading.Thread(target=lambda: put(tier, "b", {"user:2": ONE}), daemon=True)
        done.start()
        done.join(10)

    assert not done.is_alive()
    assert list(tier._versions) == ["user:2"]


class Deployment(RuleBasedStateMachine):
    """A server whose versions come, go and live longer, and one process that hears of it later.

    When everything that was reported has been looked into, no entry in L1 may stand on a version that is not the
    server's.
    """

    tags = ("@all", "x")

    @initialize()
    def begin(self) -> None:
        self.tier = tracked_tier()
        self.count = 0
        self.server: dict[str, bytes] = {}
        self.reports: list[str] = []
        self.looks: list[str] = []
        self.present: list[tuple[str, bytes | None]] = []
        self.changed: list[str] = []
        self.step = "hear"
        self.reads: list[tuple[Mark, dict[str, bytes]]] = []
        self.kept: dict[str, dict[str, bytes]] = {}

    def fresh(self, tag: str) -> None:
        self.count += 1
        self.server[tag] = self.count.to_bytes(8, "big")
        self.reports.append(tag)

    @rule(tag=st.sampled_from(tags))
    def lose(self, tag: str) -> None:
        if self.server.pop(tag, None):
            self.reports.append(tag)

    @rule(tag=st.sampled_from(tags))
    def replace(self, tag: str) -> None:
        self.fresh(tag)

    @rule(tag=st.sampled_from(tags))
    def prolong(self, tag: str) -> None:
        if tag in self.server:
            self.reports.append(tag)

    @rule()
    def read(self) -> None:
        mark = self.tier.mark()
        for tag in self.tags:
            if tag not in self.server:
                self.fresh(tag)
        self.reads.append((mark, dict(self.server)))

    @rule()
    def read_and_keep(self) -> None:
        self.read()
        self.keep(len(self.reads) - 1)

    @rule(choose=st.integers(0, 9))
    def keep(self, choose: int) -> None:
        if self.reads:
            mark, versions = self.reads.pop(choose % len(self.reads))
            self.count += 1
            if put(self.tier, f"{self.count}", versions, mark):
                self.kept[f"{self.count}"] = versions

    @rule(tag=st.sampled_from(tags))
    def announce(self, tag: str) -> None:
        if self.server.pop(tag, None):
            self.reports.append(tag)
        self.tier.invalidate([tag])

    @rule(many=st.integers(1, 5))
    def hear(self, many: int) -> None:
        if self.step == "hear":
            heard, self.reports = self.reports[:many], self.reports[many:]
            self.looks += self.tier.reported(heard)

    @rule()
    def look(self) -> None:
        """One of the three steps of a look: others act between them, but nothing more is heard."""
        match self.step:
            case "hear":
                self.present = [(tag, self.server.get(tag)) for tag in self.looks]
                self.looks, self.step = [], "compare"
            case "compare":
                self.changed, self.step = self.tier.compare(self.present), "tell"
            case "tell":
                self.tier.invalidate(self.changed)
                self.step = "hear"

    @rule()
    def settle(self) -> None:
        while self.step != "hear":
            self.look()
        self.hear(len(self.reports) + 1)
        for _ in range(3):
            self.look()

        standing = {digest: versions for digest, versions in self.kept.items() if has(self.tier, digest)}
        for versions in standing.values():
            assert versions == {tag: self.server.get(tag) for tag in versions}


TestDeployment = Deployment.TestCase
TestDeployment.settings = settings(deadline=None, max_examples=400, stateful_step_count=40)


# -- when reports are looked into -----------------------------------------------------------------------------------


class Server:
    """Stands for a `RedisClient`: answers ``MGET``."""

    def __init__(self) -> None:
        self.versions: dict[str, bytes] = {}
        self.asked: list[list[str]] = []
        self.away = False

    def call(self, build: Callable[[str], Any]) -> list[bytes | None]:
        command, *keys = build("run")
        assert command == "MGET"
        self.asked.append(keys)
        if self.away:
            raise TierUnavailable("away")
        return [self.versions.get(key) for key in keys]


class Setup:
    def __init__(self) -> None:
        self.server, self.clock, self.heard, self.tier = Server(), FakeClock(), RecordingListener(), tracked_tier()
        self.server.versions = {"ns:{0}:t:@all:run": ONE, **{f"ns:{{0}}:t:{tag}": ONE for tag in "abc"}}
        self.tracking = Tracking(self.server, Layout("ns"), self.tier, self.heard, self.clock)  # type: ignore[arg-type]
        self.tracking._run_id = "run"
        put(self.tier, "entry", {"@all": ONE, "a": ONE, "b": ONE})

    def note(self, *tags: str) -> None:
        self.tracking.note([f"ns:{{0}}:t:{tag}".encode() for tag in tags])


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_there_is_nothing_to_look_at_before_a_report(setup: Setup) -> None:
    setup.note("c", "unheard of")
    setup.tracking.note([b"another:{0}:t:a", b"ns:{0}:t:@all:another run"])

    assert setup.tracking.due_in() == float("inf")


def test_the_first_report_is_looked_into_at_once_and_the_next_ones_together(setup: Setup) -> None:
    setup.note("a")
    assert setup.tracking.due_in() == 0
    setup.tracking.look()
    for _ in range(50):
        setup.note("a", "b")
    assert setup.tracking.due_in() == pytest.approx(LOOK_EVERY)
    setup.clock.advance(LOOK_EVERY)
    assert setup.tracking.due_in() == 0
    setup.tracking.look()

    assert setup.server.asked == [["ns:{0}:t:a"], ["ns:{0}:t:a", "ns:{0}:t:b"]]
    assert setup.heard.lost_names == []
    assert setup.tracking.due_in() == float("inf")


def test_what_is_gone_is_told(setup: Setup) -> None:
    del setup.server.versions["ns:{0}:t:b"]
    setup.note("a", "b")

    assert not setup.tracking.look()
    assert setup.heard.lost_names == ["b"]


def test_what_cannot_be_looked_up_is_told_as_gone(setup: Setup) -> None:
    setup.server.away = True
    setup.note("a", "b")

    assert not setup.tracking.look()
    assert setup.heard.lost_names == ["a", "b"]


def test_a_flush_is_looked_into_at_once_and_is_one_if_the_namespace_has_another_version(setup: Setup) -> None:
    setup.note("a")
    setup.tracking.look()
    setup.tracking.note(None)
    assert setup.tracking.due_in() == 0
    assert not setup.tracking.look()

    for version in (TWO, None):
        setup.server.versions["ns:{0}:t:@all:run"] = version  # type: ignore[assignment]
        setup.tracking.note(None)
        assert setup.tracking.look()
    assert setup.heard.lost_names == []


def test_many_versions_are_asked_for_in_parts(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "AT_ONCE", 2)
    put(setup.tier, "other", {"c": ONE})
    setup.note("a", "b", "c")
    setup.tracking.look()

    assert [len(keys) for keys in setup.server.asked] == [2, 1]
    assert setup.heard.lost_names == []


def test_a_new_connection_begins_without_the_reports_of_the_old_one(setup: Setup) -> None:
    class Connection:
        run_id = "another"

        def __init__(self) -> None:
            self.sent: list[tuple[Any, ...]] = []

        def send_command(self, *command: Any) -> None:
            self.sent.append(command)

        def read_response(self) -> Any:
            return 7 if self.sent[-1][:2] == ("CLIENT", "ID") else b"OK"

    setup.note("a")
    setup.tracking.note(None)
    connection = Connection()
    setup.tracking.begin(connection)

    assert setup.tracking.due_in() == float("inf")
    assert connection.sent == [
        ("CLIENT", "ID"),
        ("CLIENT", "TRACKING", "ON", "REDIRECT", 7, "BCAST", "PREFIX", "ns:{0}:t:"),
        ("SUBSCRIBE", CHANNEL),
    ]


# -- keys of versions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["user:1", "@all", "@@all", "@@all:run", "@task:proj.page", "}:t:x", "grün", "a:}:t:b"])
@pytest.mark.parametrize("run_id", ["run", ""])
def test_a_key_names_its_tag(tag: str, run_id: str) -> None:
    layout = Layout("a:b", 3)
    (key,) = layout.versions(2, (tag,), run_id)

    assert layout.tag_of(key, run_id) == tag
    assert key.startswith(layout.prefixes_of_versions[2])


@pytest.mark.parametrize(
    "key", ["ns:{0}:e:00", "ns2:{0}:t:a", "other:{0}:t:a", "ns:{0}:inv", "ns:{0}:t:@all:other", "", "}:t:a"]
)
def test_another_key_names_none(key: str) -> None:
    assert Layout("ns").tag_of(key, "run") is None
