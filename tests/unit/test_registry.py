"""The registry: who depends on what and who invalidates it, by patterns; and what a worker says of it at its start."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task, _state
from hypothesis import given
from hypothesis import strategies as st

from celery_cachetiers import CachedTask, CacheTiers, ConfigurationError, registry
from celery_cachetiers.registry import StartCheck, meet, pattern_of


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """An app of its own tasks alone: Celery gives every app the shared tasks of all others in the process."""
    monkeypatch.setattr(_state, "_on_app_finalizers", set())
    app = Celery("registry", broker="memory://", set_as_current=False)
    yield app
    CacheTiers(app).reset()


def body(user_id: int, kind: str = "") -> int:
    return user_id


def declare(app: Celery, name: str, **options: Any) -> Any:
    return app.task(body, name=name, shared=False, **options)


def page(app: Celery, name: str, tags: Any, **options: Any) -> Any:
    return declare(app, name, base=CachedTask, tags=tags, **options)


def test_it_tells_who_depends_on_a_pattern_and_who_invalidates_it(app: Celery) -> None:
    page(app, "profile", ["user:{user_id}", "kind:{kind}"])
    page(app, "basket", ["user:{user_id}"])
    declare(app, "rename", invalidates=["user:{user_id}", "users"])
    declare(app, "reset_first", invalidates=["user:1"])
    declare(app, "plain")
    registry = CacheTiers(app).registry

    assert registry.patterns() == ("kind:{}", "user:1", "user:{}", "users")
    assert registry.dependants("user:{}") == ("basket", "profile")
    assert registry.dependants("user:{any_name}") == registry.dependants("user:1") == ("basket", "profile")
    assert registry.invalidators("user:{}") == ("rename", "reset_first")
    assert registry.invalidators("user:2") == ("rename",)
    assert registry.dependants("users") == ()
    assert repr(registry) == "<Registry of 4 patterns>"


def test_a_cached_task_may_do_both(app: Celery) -> None:
    page(app, "both", ["a:{user_id}"], invalidates=["b:{user_id}"])
    registry = CacheTiers(app).registry

    assert (registry.dependants("a:{}"), registry.invalidators("b:{}")) == (("both",), ("both",))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("user:{a}", "user:{b}", True),
        ("user:1", "user:{user_id}", True),
        ("user:1", "user:2", False),
        ("users", "user:{id}", False),
        ("user:", "user:{id}", True),
        ("{tag}", "user:{id}", True),
        ("{kind}:{id}", "user:1", True),
        ("{kind}:{id}", "users", False),
        ("{a}x{b}", "{c}y{d}", True),
        ("a{x}", "b{y}", False),
        ("{x}a", "{y}b", False),
        ("{{{x}}}", "{{1}}", True),
        ("{{x}}", "{x}", True),
        ("{{x}}", "x", False),
        ("", "{x}", True),
        ("x" * 512, "{a}" + "x" * 509, True),
    ],
)
def test_two_patterns_meet_if_one_text_fits_both(one: str, other: str, expected: bool) -> None:
    assert meet(one, other) is meet(other, one) is expected


PATTERN = st.lists(st.sampled_from(["a", "b", "{x}"]), max_size=5).map("".join)
TEXT = st.text("ab", max_size=5)


@given(PATTERN, TEXT)
def test_a_tag_meets_a_pattern_exactly_if_it_fits(pattern: str, tag: str) -> None:
    fits = re.fullmatch(pattern.replace("{x}", ".*"), tag) is not None

    assert meet(pattern, tag) is fits


@given(PATTERN, PATTERN)
def test_patterns_that_meet_share_a_short_text(one: str, other: str) -> None:
    expressions = [re.compile(each.replace("{x}", ".*")) for each in (one, other)]
    texts = [f"{number:b}"[1:].replace("0", "a").replace("1", "b") for number in range(1, 2**9)]
    share = any(all(each.fullmatch(text) for each in expressions) for text in texts)

    if share:
        assert meet(one, other)
    elif len(one.replace("{x}", "")) + len(other.replace("{x}", "")) <= 8:
        assert not meet(one, other)


def test_a_pattern_has_no_names() -> None:
    assert pattern_of("day:{day:%Y-%m}:{user.id!r}") == "day:{}:{}"
    with pytest.raises(ValueError, match="'}'"):
        pattern_of("user:{id")


# ---- at a worker's start ---------------------------------------------------------------------------------------------


def start(app: Celery, caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    with caplog.at_level(level, "celery_cachetiers"):
        StartCheck(SimpleNamespace(app=app))
    return [record.getMessage() for record in caplog.records]


def test_what_nothing_depends_on_is_said_with_the_tasks_name(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    page(app, "profile", ["user:{user_id}"])
    declare(app, "rename", invalidates=["user:{user_id}", "usr:{user_id}"])

    (warning,) = start(app, caplog)

    assert "rename invalidates 'usr:{}'" in warning


@pytest.mark.parametrize("option", ["tags", "tags_from"])
def test_it_is_no_warning_where_it_cannot_be_known(
    app: Celery, caplog: pytest.LogCaptureFixture, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = page(app, "profile", lambda **arguments: [] if option == "tags" else ["user:{user_id}"])
    if option == "tags_from":
        monkeypatch.setattr(type(task._get_current_object()), "tags_from", staticmethod(len), raising=False)
    page(app, "basket", ["user:{user_id}"])
    declare(app, "rename", invalidates=["usr:{user_id}", "user:{user_id}"])

    assert start(app, caplog) == []
    assert CacheTiers(app).registry.computed() == ("profile",)
    (line,) = start(app, caplog, logging.INFO)
    assert "rename invalidates 'usr:{}'" in line
    assert "the tags of profile are computed" in line


def test_nothing_is_said_in_an_app_that_only_invalidates(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    declare(app, "rename", invalidates=["user:{user_id}"])
    page(app, "untagged", None)

    assert start(app, caplog) == []


def test_nothing_is_said_of_callables_and_of_what_is_in_use(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    page(app, "profile", ["user:{user_id}"])
    declare(app, "by_callable", invalidates=lambda arguments, result: ["x"])
    declare(app, "literal", invalidates=["user:1"])

    assert start(app, caplog) == []


def test_a_worker_does_not_start_with_a_bad_declaration(app: Celery) -> None:
    class Unseen(Task):
        """Its base keeps the hook to itself, through which we see tasks."""

        abstract = True

        @classmethod
        def on_bound(cls, app: Celery) -> None:
            pass

    CacheTiers(app)
    declare(app, "rename", base=Unseen, invalidates=["user:{id}"])
    app.finalize()

    with pytest.raises(ConfigurationError, match="'id' is not among"):
        StartCheck(SimpleNamespace(app=app))


def test_nor_with_a_bad_setting(app: Celery) -> None:
    app.conf.cachetiers_ttl = "5m"

    with pytest.raises(ConfigurationError, match="cachetiers_ttl"):
        StartCheck(SimpleNamespace(app=app))


def test_what_is_depended_on_word_for_word_is_compared_with_nothing(
    app: Celery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start does not take longer with the square of the tasks."""
    for number in range(20):
        page(app, f"page{number}", [f"user{number}:{{user_id}}"])
        declare(app, f"rename{number}", invalidates=[f"user{number}:{{user_id}}"])
    declare(app, "stray", invalidates=["usr:{user_id}"])
    declare(app, "stray_too", invalidates=["usr:{user_id}"])
    compared = []
    monkeypatch.setattr(registry, "meet", lambda one, other: compared.append(one) is not None)

    warnings = start(app, caplog)

    assert len(warnings) == 2
    assert compared == ["usr:{}"] * 20
