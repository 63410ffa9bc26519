"""What waits for a commit: which transactions are open, what a rollback drops, what a session's savepoints change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from celery_cachetiers import MISSING, CachedTask, CacheTiers, ConfigurationError, TierUnavailable, UnusableEntry, sink
from celery_cachetiers.commits import Watch, check_on_commit, open_transactions
from celery_cachetiers.events import Event


@pytest.fixture
def session() -> Iterator[Session]:
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        session.execute(text("CREATE TABLE users (name TEXT)"))
        session.commit()
        yield session
    engine.dispose()


def write(session: Session) -> None:
    session.execute(text("INSERT INTO users VALUES ('Ada')"))


class Acts(list[str]):
    """What has been done."""

    def after(self, on_commit: object, name: str = "act") -> None:
        """Notes the name after the commit; at once, if nothing is open."""
        waits = open_transactions(on_commit)
        for wait in waits:
            wait(lambda: self.append(name))
        if not waits:
            self.append(name)


# ---- SQLAlchemy ------------------------------------------------------------------------------------------------------

NAMED: dict[str, Callable[[Session], object]] = {
    "session": lambda session: session,
    "scoped_session": lambda session: scoped_session(lambda: session),
    "callable": lambda session: lambda: session,
    "callable of a scoped_session": lambda session: lambda: scoped_session(lambda: session),
}


@pytest.mark.parametrize("named", NAMED)
def test_it_waits_for_the_commit_of_the_session_however_it_is_named(session: Session, named: str) -> None:
    acts, on_commit = Acts(), NAMED[named](session)
    check_on_commit(on_commit)
    write(session)
    acts.after(on_commit)
    assert acts == []

    session.commit()

    assert acts == ["act"]
    write(session)
    session.commit()
    assert acts == ["act"]


def test_without_a_transaction_it_acts_at_once(session: Session) -> None:
    acts = Acts()
    acts.after(session)
    acts.after(lambda: None)
    acts.after(False)
    acts.after(None)

    assert acts == ["act"] * 4


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_what_waits_is_dropped_with_the_transaction(session: Session, end: str) -> None:
    acts = Acts()
    write(session)
    acts.after(session)
    getattr(session, end)()

    write(session)
    session.commit()

    assert acts == []


def test_the_end_of_a_savepoint_is_no_commit(session: Session) -> None:
    acts = Acts()
    write(session)
    with session.begin_nested():
        write(session)
        acts.after(session, "inside")
    acts.after(session, "outside")
    assert acts == []
    with pytest.raises(LookupError), session.begin_nested():
        raise LookupError
    assert acts == []

    session.commit()

    assert acts == ["inside", "outside"]


def test_a_savepoint_does_not_make_a_later_rollback_a_commit(session: Session) -> None:
    acts = Acts()
    write(session)
    acts.after(session)
    with session.begin_nested():
        write(session)
    session.rollback()

    assert acts == []


def test_the_session_is_usable_when_it_acts_and_one_that_raises_keeps_no_other_from_it(session: Session) -> None:
    acts, names = Acts(), []

    def look() -> None:
        names.append(session.execute(text("SELECT count(*) FROM users")).scalar())
        raise TierUnavailable("down")

    write(session)
    for wait in open_transactions(session):
        wait(look)
    acts.after(session)
    with pytest.raises(TierUnavailable):
        session.commit()

    assert (names, acts) == ([1], ["act"])
    session.rollback()
    assert session.execute(text("SELECT count(*) FROM users")).scalar() == 1


@pytest.mark.parametrize("whose", ["session", "class"])
def test_a_listener_that_raises_after_the_commit_does_not_make_it_a_rollback(session: Session, whose: str) -> None:
    acts = Acts()

    class Ours(Session):
        pass

    def fail(_: Session) -> None:
        raise LookupError("another's")

    with Ours(session.get_bind()) as ours:
        event.listen(ours if whose == "session" else Ours, "after_commit", fail)
        watch = Watch(ours)
        write(ours)
        acts.after(ours)
        with pytest.raises(LookupError):
            ours.commit()
        assert acts == []  # SQLAlchemy lets such a session be closed, and nothing else

    assert acts == ["act"]
    assert watch.has_committed()


@pytest.mark.parametrize("fails", ["a listener", "the database"])
def test_a_commit_that_fails_is_a_rollback(session: Session, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    acts = Acts()

    def fail(*_: object) -> None:
        raise LookupError("no commit")

    write(session)
    acts.after(session)
    if fails == "the database":
        monkeypatch.setattr(session.get_bind().dialect, "do_commit", fail)
    else:
        event.listen(session, "before_commit", fail)
    with pytest.raises(LookupError):
        session.commit()
    session.rollback()
    monkeypatch.undo()
    if fails == "a listener":
        event.remove(session, "before_commit", fail)
    write(session)
    session.commit()

    assert acts == []


def test_a_long_lived_session_gathers_no_listeners(session: Session) -> None:
    acts = Acts()
    for _ in range(3):
        write(session)
        acts.after(session)
        session.commit()

    assert acts == ["act"] * 3
    assert len(list(session.dispatch.after_commit)) == 1


def test_a_commit_since_is_seen(session: Session) -> None:
    watch = Watch(session)
    write(session)
    assert not watch.has_committed()
    session.rollback()
    assert not watch.has_committed()
    write(session)
    session.commit()
    write(session)

    assert watch.has_committed()


def test_what_cannot_be_watched_may_have_committed(session: Session) -> None:
    current: list[Session] = []
    watch = Watch(lambda: current[0])
    current.append(session)
    assert watch.has_committed()

    other = Watch(lambda: current[0])
    assert not other.has_committed()
    current[0] = Session(session.get_bind())
    assert other.has_committed()
    assert not Watch(None).has_committed()


@pytest.mark.parametrize("bad", [sessionmaker(), AsyncSession(), object(), "session", 5], ids=repr)
def test_what_is_no_session_is_refused(bad: object) -> None:
    with pytest.raises(ConfigurationError, match="on_commit="):
        check_on_commit(bad, "task rename")


def test_a_callable_that_returns_no_session_raises() -> None:
    with pytest.raises(TypeError, match="not 5"):
        open_transactions(lambda: 5)


# ---- Django, without it; with it: see tests/integration/test_django.py -----------------------------------------------


def test_true_needs_a_configured_django_and_names_two_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"DJANGO_SETTINGS_MODULE.*on_commit=<a SQLAlchemy session>"):
        open_transactions(True, "task rename")

    monkeypatch.setattr("celery_cachetiers.commits._has_django", lambda: False)
    with pytest.raises(ConfigurationError, match=r"on_commit=True of task rename.*install it"):
        check_on_commit(True, "task rename")


# ---- the functions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tiers() -> Iterator[CacheTiers]:
    app = Celery("commits", broker="memory://", backend="cache+memory://", set_as_current=False)
    tiers = CacheTiers(app)
    tiers.in_memory = True
    yield tiers
    tiers.reset()


ACTS: dict[str, Callable[[CacheTiers, Any], None]] = {
    "user:1": lambda tiers, session: tiers.invalidate_tag("user:1", on_commit=session),
    "user:2": lambda tiers, session: tiers.invalidate_tags(["user:2"], on_commit=session),
    f"@key:{'0' * 32}": lambda tiers, session: tiers.invalidate_key("0" * 32, on_commit=session),
    "@task:profile": lambda tiers, session: tiers.clear("profile", on_commit=session),
    "@all": lambda tiers, session: tiers.clear(on_commit=session),
}


@pytest.mark.parametrize("name", ACTS)
def test_every_function_waits(tiers: CacheTiers, session: Session, name: str) -> None:
    heard: list[object] = []
    tiers.events.subscribe(lambda event, task, details: heard.append(details["names"]), Event.INVALIDATED)
    write(session)
    ACTS[name](tiers, session)
    assert heard == []

    session.commit()

    assert heard == [(name,)]
    write(session)
    ACTS[name](tiers, False)
    assert len(heard) == 2


def test_what_is_wrong_with_a_tag_is_said_at_once(tiers: CacheTiers, session: Session) -> None:
    write(session)
    with pytest.raises(ValueError, match="cannot be used"):
        tiers.invalidate_tag("", on_commit=session)
    with pytest.raises(ConfigurationError, match=r"on_commit='x' of clear\(\)"):
        tiers.clear(on_commit="x")


def test_and_what_is_wrong_with_the_settings(session: Session) -> None:
    app = Celery("wrong", broker="memory://", set_as_current=False)
    app.conf.cachetiers_ttl = "5m"
    write(session)

    with pytest.raises(ConfigurationError, match="cachetiers_ttl"):
        CacheTiers(app).invalidate_tag("user:1", on_commit=session)


@pytest.mark.parametrize(
    ("name", "operation", "args"),
    [
        ("user:1", "invalidate_tags", [["user:1"]]),
        (f"@key:{'0' * 32}", "invalidate_key", ["0" * 32]),
        ("@task:profile", "clear", ["profile"]),
        ("@all", "clear", [None]),
    ],
)
def test_where_redis_is_away_at_the_commit_a_worker_is_asked(
    session: Session, name: str, operation: str, args: list[object]
) -> None:
    app = Celery("away", broker="memory://", set_as_current=False)
    app.conf.update(cachetiers_url="redis://127.0.0.1:1/0", task_default_queue="at commit")
    tiers = CacheTiers(app)
    with pytest.raises(TierUnavailable):
        ACTS[name](tiers, session)  # nothing is open: the caller is told
    write(session)
    ACTS[name](tiers, session)
    session.commit()

    with app.connection_for_read() as connection:
        queue = app.amqp.queues["at commit"](connection.default_channel)
        message = queue.get(no_ack=True)
        assert queue.get(no_ack=True) is None
    assert message.headers["task"] == f"celery_cachetiers.{operation}"
    assert message.payload[0] == args
    tiers.reset()


# ---- task.cache ------------------------------------------------------------------------------------------------------


def double(n: int) -> int:
    return 2 * n


def cached(tiers: CacheTiers, **options: Any) -> Any:
    return tiers.app.task(double, **{"name": "double", "base": CachedTask, "shared": False, **options})


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_what_is_put_waits_for_the_commit(tiers: CacheTiers, session: Session, end: str) -> None:
    task, values = cached(tiers, on_commit=session), {"row": [1]}
    task(1)
    write(session)
    task.cache.put((1,), values)
    task.cache.put_many([((2,), "two"), ((3,), "three")])
    values["row"].append(2)
    assert [task.cache.get(n) for n in (1, 2, 3)] == [2, MISSING, MISSING]

    getattr(session, end)()

    after = {"commit": [{"row": [1]}, "two", "three"], "rollback": [2, MISSING, MISSING]}
    assert [task.cache.get(n) for n in (1, 2, 3)] == after[end]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_so_does_what_is_invalidated_by_its_arguments(tiers: CacheTiers, session: Session, end: str) -> None:
    task = cached(tiers, on_commit=session)
    task(1)
    write(session)
    task.cache.invalidate(1)
    assert task.cache.get(1) == 2

    getattr(session, end)()

    assert task.cache.get(1) == (MISSING if end == "commit" else 2)


def test_a_put_may_say_what_it_waits_for(tiers: CacheTiers, session: Session) -> None:
    task, hasty = cached(tiers), cached(tiers, name="hasty", on_commit=session)
    write(session)
    task.cache.put((1,), "one", on_commit=session)
    task.cache.put_many([], on_commit=session)
    hasty.cache.put((1,), "one", on_commit=False)
    assert (task.cache.get(1), hasty.cache.get(1)) == (MISSING, "one")

    session.commit()

    assert task.cache.get(1) == "one"


def test_what_is_wrong_with_a_value_is_said_at_once(tiers: CacheTiers, session: Session) -> None:
    write(session)
    with pytest.raises(UnusableEntry):
        cached(tiers).cache.put((1,), object(), on_commit=session)
    with pytest.raises(ConfigurationError, match=r"on_commit='x' of put\(\)"):
        cached(tiers).cache.put((1,), 1, on_commit="x")


def test_of_two_transactions_each_forgets_what_was_put(
    tiers: CacheTiers, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, waiting = cached(tiers), Waiting()
    monkeypatch.setattr(tiers, "open_transactions", lambda on_commit, operation: [waiting.append] * 2)
    task(1)
    task.cache.put((1,), "put")
    [first, second] = waiting
    first()
    assert task.cache.get(1) is MISSING
    assert task(1) == 2
    second()

    assert task.cache.get(1) is MISSING


class Waiting(list[Callable[[], None]]):
    """What two commits will do."""


@pytest.mark.parametrize(
    ("act", "operation", "args"),
    [
        (lambda cache: cache.put((1,), "one"), "invalidate_key", ["{key}"]),
        (lambda cache: cache.put_many([((1,), "one"), ((2,), "two")]), "clear", ["double"]),
        (lambda cache: cache.invalidate(1), "invalidate_key", ["{key}"]),
    ],
)
def test_where_redis_is_away_at_the_commit_a_worker_forgets_what_was_there(
    session: Session, act: Callable[[Any], None], operation: str, args: list[str]
) -> None:
    app = Celery("away", broker="memory://", set_as_current=False)
    app.conf.update(cachetiers_url="redis://127.0.0.1:1/0", task_default_queue="instead")
    tiers = CacheTiers(app)
    task = cached(tiers, on_commit=session)
    write(session)
    act(task.cache)
    session.commit()

    with app.connection_for_read() as connection:
        queue = app.amqp.queues["instead"](connection.default_channel)
        message = queue.get(no_ack=True)
        assert queue.get(no_ack=True) is None
    assert message.headers["task"] == f"celery_cachetiers.{operation}"
    assert message.payload[0] == [each.format(key=task.cache.key(1)) for each in args]
    tiers.reset()


def test_what_goes_to_a_sink_waits_for_no_commit(tiers: CacheTiers, session: Session) -> None:
    got: list[tuple[object, bool]] = []
    sink("commits")(lambda writes: got.extend((each.value, each.deleted) for each in writes))
    task = cached(tiers, on_commit=session, sink="commits", write="through")
    write(session)
    task.cache.put((1,), "one")
    task.cache.put((1,), "two", on_commit=False)
    task.cache.delete(1)

    assert got == [("one", False), ("two", False), (None, True)]
    with pytest.raises(ConfigurationError, match=r"on_commit=.*written when put returns"):
        task.cache.put((1,), "three", on_commit=session)
    assert len(got) == 3


# ---- tasks -----------------------------------------------------------------------------------------------------------


def rename(tiers: CacheTiers, body: Callable[[], object], on_commit: object) -> list[str]:
    """Runs a task with such a body; the list is what is invalidated, now and later."""
    heard: list[str] = []
    tiers.events.subscribe(lambda event, task, details: heard.extend(details["names"]), Event.INVALIDATED)

    def run() -> None:
        body()

    tiers.app.task(run, name="rename", invalidates=["users"], on_commit=on_commit, shared=False)()
    return heard


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_task_waits_for_the_transaction_that_its_body_leaves_open(
    tiers: CacheTiers, session: Session, end: str
) -> None:
    heard = rename(tiers, lambda: write(session), session)
    assert heard == []

    getattr(session, end)()

    assert heard == (["users"] if end == "commit" else [])


def test_a_body_that_reads_after_its_commit_leaves_nothing_to_wait_for(tiers: CacheTiers, session: Session) -> None:
    def commit_and_read() -> None:
        write(session)
        session.commit()
        session.execute(text("SELECT * FROM users"))

    heard = rename(tiers, commit_and_read, lambda: session)
    session.close()

    assert heard == ["users"]


def test_a_session_that_cannot_be_had_after_the_body_fails_no_task(tiers: CacheTiers) -> None:
    failed: list[object] = []
    tiers.events.subscribe(lambda event, task, details: failed.append(details["tags"]), Event.NOT_INVALIDATED)

    def gone() -> Session:
        raise LookupError("no session here")

    assert rename(tiers, lambda: None, gone) == ["users"]
    assert failed == [("users",)]
