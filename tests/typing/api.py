"""What users write, checked by `mypy --strict` and never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

from celery import Celery, Task, shared_task
from sqlalchemy.orm import scoped_session, sessionmaker

from celery_cachetiers import (
    MISSING,
    CachedResult,
    CachedTask,
    CachedTaskMixin,
    CacheTiers,
    CacheTiersError,
    ConfigurationError,
    JournalFull,
    NotCached,
    SinkRejected,
    SinkTimeout,
    SinkUnavailable,
    SQLAlchemySink,
    TagError,
    TierUnavailable,
    UncacheableArgument,
    UnusableEntry,
    Why,
    Write,
    __version__,
    clear,
    invalidate_key,
    invalidate_tag,
    invalidate_tags,
    sink,
)
from celery_cachetiers.signals import cache_hit, cache_miss, cache_stored, tag_invalidated

app = Celery("typed")
app.conf.cachetiers_url = "redis://localhost/2"


@app.task(base=CachedTask, ttl=300, tags=["user:{user_id}"])
def profile(user_id: int) -> str:
    return str(user_id)


@app.task(base=CachedTask, bind=True, grace=60.0, refresh_ahead=0.8, ignore=("request_id",), version=2)
def bound(self: CachedTask, user_id: int, request_id: str = "") -> list[int]:
    assert_type(self.cache.get(user_id), Any)
    return [user_id]


@app.task(
    base=CachedTask,
    key=lambda user_id: user_id,
    tags=lambda user_id: [f"user:{user_id}"],
    cache_if=lambda result: result is not None,
    ttl_from=lambda result: 60.0,
    consistency="strict",
    coalesce=False,
)
def by_callables(user_id: int) -> int:
    return user_id


@shared_task(base=CachedTask)
def shared(number: int) -> int:
    return number


class ProjectTask(Task[Any, Any]):
    abstract = True


@app.task(invalidates=["user:{user_id}"], invalidate_on_failure=False, on_commit=False)
def rename(user_id: int, name: str) -> None: ...


def changed(arguments: Mapping[str, Any], result: Any) -> list[str]:
    return [] if result is MISSING else [f"user:{arguments['user_id']}"]


session = scoped_session(sessionmaker())


@shared_task(base=ProjectTask, invalidates=changed, on_commit=session)
def merge(user_id: int) -> int:
    return user_id


class Report(CachedTask):
    name = "report"
    ttl = 3600.0
    tags = ("report:{day}",)

    def run(self, day: str) -> int:
        return len(day)


class ProjectCachedTask(CachedTaskMixin, ProjectTask):
    abstract = True
    ttl = 60.0


def calls(task: CachedTask) -> None:
    task.delay(1)
    task.apply_async((1,), cache_mode="refresh")
    task.apply_async(kwargs={"user_id": 1}, countdown=5, task_id="known", headers={"a": 1})
    task.apply((1,), cache_mode="only")
    task.s(1).apply_async(cache_mode="bypass")
    task.delay_on_commit(1)
    task.apply_async_on_commit((1,))


def task_cache(task: CachedTask) -> None:
    cache = task.cache
    assert_type(cache.key(1), str)
    value = cache.get(1, verbose=True)
    if value is MISSING:
        cache.put((1,), {"a": 1}, {"verbose": True}, ttl=5, on_commit=False)
    cache.invalidate(1)
    assert_type(cache.refresh(1), Any)
    assert_type(cache.info().l1_hits, int)
    why = cache.why(1, verbose=True)
    assert_type(why, Why)
    assert_type(cache.explain((1,), {"verbose": True}, mode="only"), Why)
    assert_type(why.verdict, str)
    assert_type(why.as_dict(), dict[str, Any])
    if why.entry is not None and why.lease is not None:
        assert_type(why.entry.fresh_for, float | None)
        assert_type(why.lease.task_id, str)
    assert_type(cache.info().hit_ratio, float | None)


def functions() -> None:
    invalidate_tag("user:1")
    invalidate_tags(["user:1", "user:2"])
    invalidate_key("0" * 32)
    clear()
    clear(task="typed.profile")
    invalidate_tag("user:1", on_commit=session)
    invalidate_tags(["user:1"], on_commit=False)
    invalidate_key("0" * 32, on_commit=True)
    clear(on_commit=lambda: session)
    invalidate_tag.delay("user:1")
    invalidate_tags.apply_async((["user:1"],), countdown=5)
    invalidate_tag.s("user:1")
    invalidate_tag.si("user:1")


def extension() -> None:
    tiers = CacheTiers(app)
    assert_type(tiers, CacheTiers)
    assert_type(tiers.stats(), dict[str, Any])
    assert_type([made.ratio for made in tiers.history(since=0.0)], list[float | None])
    assert_type(tiers.stats("proj.profile"), dict[str, Any])
    tiers.invalidate_tag("user:1")
    tiers.invalidate_tags(("user:1",))
    tiers.invalidate_key("0" * 32)
    tiers.clear("typed.profile")
    tiers.invalidate_tag("user:1", on_commit=session)
    assert_type(tiers.registry.patterns(), tuple[str, ...])
    assert_type(tiers.registry.dependants("user:{}"), tuple[str, ...])
    assert_type(tiers.registry.invalidators("user:1"), tuple[str, ...])
    tiers.reset()


def signals(task: CachedTask) -> None:
    def receiver(sender: Any, key: str, **kwargs: Any) -> None: ...

    cache_hit.connect(receiver)
    cache_miss.connect(receiver, sender=task, weak=False)
    cache_stored.connect(receiver, dispatch_uid="mine")
    cache_hit.disconnect(receiver)

    def invalidated(sender: Celery, tag: str, heard: bool, **kwargs: Any) -> None: ...

    tag_invalidated.connect(invalidated, sender=app)


def errors(error: CacheTiersError) -> None:
    match error:
        case ConfigurationError():
            assert_type(error.option, str)
            assert_type(error.allowed, str)
            assert_type(error.where, str | None)
        case NotCached():
            assert_type(error.task, str)
            assert_type(error.key, str)
        case TagError():
            assert_type(error.reason, str)
        case UncacheableArgument():
            assert_type(error.argument, str)
        case UnusableEntry():
            assert_type(error.reason, str)
        case TierUnavailable():
            raise error


def results(result: CachedResult) -> None:
    assert_type(result.id, str)
    result.get(timeout=1)
    result.then(print)
    result.forget()


assert_type(__version__, str)


@sink("orders", batch_size=100, max_delay=2, when_full="raise", durability="disk")
def save(writes: list[Write]) -> None:
    raise SinkRejected({write.key: ValueError(write.value) for write in writes if write.deleted})


@sink("files")
class Files:
    def open(self) -> None:
        raise SinkUnavailable("the disk is full")

    def write(self, writes: list[Write]) -> None: ...


def sinks() -> None:
    assert_type(save([]), None)
    Files().open()
    assert_type(
        sink("table")(SQLAlchemySink("sqlite://", "orders", key=("id",), columns=lambda write: {"id": write.args[0]})),
        SQLAlchemySink,
    )
    try:
        save([])
    except SinkTimeout as slow:
        assert_type(slow.seconds, float)
    except JournalFull as full:
        assert_type(full.max_pending, int)
