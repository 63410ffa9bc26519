"""What a task's options and an app's settings may be, and the two frozen dataclasses they resolve to.

A field's metadata holds its rule and its meaning: the checks, the error texts and the reference documentation come
from the same place. Task option before app setting before default.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from celery_cachetiers import options as rules
from celery_cachetiers.errors import ConfigurationError
from celery_cachetiers.options import Rule, plain_only

PREFIX = "cachetiers_"


def _field(default: Any, rule: Rule, doc: str, *, setting: str | None = None, secret: bool = False) -> Any:
    return dataclasses.field(default=default, repr=not secret, metadata={"rule": rule, "doc": doc, "setting": setting})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The app's settings, each under ``cachetiers_<name>`` in ``app.conf``."""

    enabled: bool = _field(True, rules.BOOL, "off switch; the environment's ``CACHETIERS_ENABLED=0`` wins")
    url: str | None = _field(
        None,
        rules.optional(rules.URL),
        "L2; by default the result backend's Redis, else L1 only, said once",
        secret=True,
    )
    namespace: str = _field("cachetiers", rules.NAMESPACE, "prefix of every key and channel")
    ttl: float = _field(300.0, rules.POSITIVE, "seconds a value is fresh")
    grace: float = _field(0.0, rules.NOT_NEGATIVE, "seconds more during which it may be served stale")
    jitter: float = _field(0.0, rules.NOT_NEGATIVE, "up to so many seconds are taken off ``ttl``, at random")
    l1_maxsize: int = _field(10_000, rules.COUNT, "entries in L1 at most")
    l1_max_bytes: int = _field(64 * 1024**2, rules.COUNT, "bytes in L1 at most")
    l1_ttl: float = _field(30.0, rules.POSITIVE, "seconds in L1 at most")
    l1_tracking: bool = _field(
        False,
        rules.BOOL,
        "let Redis report flushes, evictions and deletions that nobody announces, so that L1 forgets at once; each "
        "process then gets a message for every new tag anywhere",
    )
    serializer: str | None = _field(
        None, rules.optional(rules.TEXT), "kombu serializer of values; by default the result serializer"
    )
    compression: str | None = _field(None, rules.optional(rules.TEXT), "kombu compression of values")
    max_bytes: int = _field(16 * 1024**2, rules.BYTES, "bytes of one value at most, before and after compression")
    signing_key: tuple[bytes, ...] = _field(
        (),
        rules.SIGNING_KEYS,
        "key (or list of keys: the first signs, all verify) that entries are signed with",
        secret=True,
    )
    lease_ttl: float = _field(10.0, rules.LEASE, "seconds a dead leader blocks its key at most")
    wait_limit: float = _field(300.0, rules.POSITIVE, "seconds a follower waits before one takes over")
    timeout: float = _field(0.25, rules.TIMEOUT, "seconds to connect to L2 and for each of its answers")
    breaker_window: float = _field(5.0, rules.NOT_NEGATIVE, "seconds L2 is left alone after it failed")
    publish_hits: bool = _field(True, rules.BOOL, "answer hits at ``delay()`` with no message")
    strict_keys: bool = _field(False, rules.BOOL, "raise for an argument without a canonical form")

    journal_url: str | None = _field(
        None, rules.optional(rules.URL), "Redis of the write-behind journal; by default L2's", secret=True
    )
    flush_every: float = _field(5.0, rules.FLUSH_EVERY, "seconds between two flushes that beat sends")
    flush_queue: str | None = _field(
        None, rules.optional(rules.TEXT), "queue of the flushes; by default as Celery routes them"
    )

    report_every: float | None = _field(
        60.0,
        rules.optional(rules.REPORT_EVERY),
        "seconds between two hit-ratio reports that beat sends; ``None`` sends none",
    )
    report_queue: str | None = _field(
        None, rules.optional(rules.TEXT), "queue of the reports; by default as Celery routes them"
    )
    hit_ratio_target: float = _field(0.9, rules.RATIO, "the report warns, and says why, below this hit ratio")

    @classmethod
    def resolve(cls, given: Mapping[str, object], where: str) -> Settings:
        """Checks what was given under names without the prefix.

        Raises:
            ConfigurationError: For a bad value, or an unknown name.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in given:
            if name not in fields:
                raise ConfigurationError(PREFIX + name, plain_only(given[name]), _unknown(name, fields, PREFIX), where)
        checked = {
            name: fields[name].metadata["rule"].check(PREFIX + name, value, where) for name, value in given.items()
        }
        return cls(**checked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One task's options, resolved: the names are those of the task options."""

    cache_enabled: bool = _field(True, rules.BOOL, "off switch of this task", setting="enabled")
    ttl: float = _field(300.0, rules.POSITIVE, "seconds a value is fresh", setting="ttl")
    grace: float = _field(0.0, rules.NOT_NEGATIVE, "seconds more during which it may be served stale", setting="grace")
    jitter: float = _field(
        0.0, rules.NOT_NEGATIVE, "up to so many seconds are taken off ``ttl``, at random", setting="jitter"
    )
    refresh_ahead: float | None = _field(
        None,
        rules.optional(rules.FRACTION),
        "share of ``ttl`` after which a hit at ``delay()`` also sends a refresh",
    )
    beta: float | None = _field(
        None, rules.optional(rules.POSITIVE), "XFetch: eagerness of random early refreshes; 1 is the paper's"
    )
    ttl_from: Callable[[Any], float | None] | None = _field(
        None,
        rules.optional(rules.CALLABLE),
        "``ttl_from(result)``: this result's ``ttl``; ``None`` keeps the task's",
    )
    tags: tuple[str, ...] | Callable[..., Any] = _field(
        (), rules.TAGS, "templates over the arguments, or ``tags(**arguments)``"
    )
    tags_from: Callable[[Any], Any] | None = _field(
        None,
        rules.optional(rules.CALLABLE),
        "``tags_from(result)``: more tags, which depend on what the body returned",
    )
    invalidates: tuple[str, ...] | Callable[..., Any] = _field(
        (),
        rules.INVALIDATES,
        "on any task: tags that its body invalidates, as templates or ``invalidates(arguments, result)``",
    )
    invalidate_on_failure: bool = _field(True, rules.BOOL, "a body that fails invalidates too, as it may have written")
    on_commit: Any = _field(
        None,
        rules.optional(rules.ON_COMMIT),
        "what an invalidation waits for, and what is put or invalidated by ``task.cache``: ``None`` for an open atomic "
        "block of Django, ``False`` for nothing, a session for its commit",
    )
    key: Callable[..., Any] | None = _field(
        None,
        rules.optional(rules.CALLABLE),
        "``key(**arguments)``: what the key is made of instead of the arguments",
    )
    ignore: tuple[str, ...] = _field((), rules.NAMES, "arguments that are left out of the key")
    version: str = _field("", rules.VERSION, "part of the key: change it when the body's meaning changes")
    consistency: str = _field(
        "eventual",
        rules.choice("eventual", "strict"),
        '``"eventual"``: L1 by backplane; ``"strict"``: every L1 hit is validated, one round trip',
    )
    coalesce: str | bool = _field(
        "wait",
        rules.choice("wait", "publish", False),
        '``"wait"``: duplicates wait for the leader; ``"publish"``: and plain ``.delay()`` calls send no message '
        "meanwhile; ``False``: each computes",
    )
    lease_ttl: float = _field(10.0, rules.LEASE, "seconds a dead leader blocks its key at most", setting="lease_ttl")
    wait_limit: float = _field(
        300.0, rules.POSITIVE, "seconds a follower waits before one takes over", setting="wait_limit"
    )
    share_errors: bool = _field(
        True,
        rules.BOOL,
        "followers that waited for a leader get the exception it failed with; ``False``: the next one computes",
    )
    cache_if: Callable[[Any], bool] | None = _field(
        None, rules.optional(rules.CALLABLE), "``cache_if(result)``: whether to store it"
    )
    sink: str | None = _field(
        None, rules.optional(rules.SINK_NAME), "name of the sink that gets what the body returns; with ``write``"
    )
    write: str | None = _field(
        None,
        rules.optional(rules.choice("through", "behind")),
        '``"through"``: the sink has a value before the cache has; ``"behind"``: a journal has it, and a flush '
        "hands it on",
    )
    l1: bool = _field(True, rules.BOOL, "keep entries in L1 too")
    l1_ttl: float = _field(30.0, rules.POSITIVE, "seconds in L1 at most", setting="l1_ttl")
    l1_copy: bool = _field(True, rules.BOOL, "an L1 hit is a copy; ``False`` shares one object: do not change it")
    cache_serializer: str | None = _field(
        None, rules.optional(rules.TEXT), "kombu serializer of values", setting="serializer"
    )
    max_bytes: int = _field(16 * 1024**2, rules.BYTES, "bytes of one value at most", setting="max_bytes")
    publish_hits: bool = _field(True, rules.BOOL, "answer hits at ``delay()`` with no message", setting="publish_hits")

    NOT_BUILT = frozenset({"cache_errors", "error_ttl", "fail_safe"})

    @classmethod
    def names(cls) -> frozenset[str]:
        """Every task option of the design, built or not."""
        return frozenset(field.name for field in dataclasses.fields(cls)) | cls.NOT_BUILT

    @classmethod
    def check(cls, given: Mapping[str, object], where: str) -> dict[str, Any]:
        """The given options, each checked on its own; needs no settings, so a task class can ask at its creation.

        Raises:
            ConfigurationError: For a bad value, or an option whose feature this version lacks.
        """
        _refuse_unbuilt(given, cls.NOT_BUILT, where)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        return {name: fields[name].metadata["rule"].check(name, value, where) for name, value in given.items()}

    @classmethod
    def resolve(cls, given: Mapping[str, object], settings: Settings, where: str) -> Policy:
        """Task option before app setting before default.

        Raises:
            ConfigurationError: As `check`; and when ``jitter`` is not below ``ttl``.
        """
        inherited = {
            field.name: getattr(settings, field.metadata["setting"])
            for field in dataclasses.fields(cls)
            if field.metadata["setting"]
        }
        policy = cls(**{**inherited, **cls.check(given, where)})
        check_sink(policy.sink, policy.write, where)
        if policy.jitter >= policy.ttl:
            raise ConfigurationError("jitter", policy.jitter, f"below ttl={policy.ttl!r}, as it shortens it", where)
        return policy

    @property
    def hard_ttl(self) -> float:
        """Seconds after which an entry is gone."""
        return self.ttl + self.grace


def check_sink(sink: object, write: object, where: str) -> None:
    """Checks two options that go together. Raises `ConfigurationError`."""
    if sink is not None and write is None:
        raise ConfigurationError("write", write, '"through" or "behind", as the task has a sink', where)
    if write is not None and sink is None:
        raise ConfigurationError("sink", sink, f"the name of a sink, as the task has write={write!r}", where)


def near_miss(name: str) -> str | None:
    """The task option that a name was probably meant to be, or ``None``."""
    close = difflib.get_close_matches(name, Policy.names(), n=1, cutoff=0.8)
    return close[0] if close and close[0] != name else None


def _unknown(name: str, known: Mapping[str, object], prefix: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean {prefix}{close[0]}?" if close else ""
    return f"there is no setting of this name{meant}"


def _refuse_unbuilt(given: Mapping[str, object], unbuilt: frozenset[str], where: str) -> None:
    for name in given:
        if name in unbuilt:
            allowed = "this version does not have the feature yet; leave it out"
            raise ConfigurationError(name, given[name], allowed, where)
