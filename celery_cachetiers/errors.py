"""Every exception the library raises; it decides their names and leaves when to raise them to others.

Their ``args`` are what they were made with: pickle makes them again from those, and so does Celery when an error
comes out of a result backend.
"""

from __future__ import annotations

from collections.abc import Mapping


class CacheTiersError(Exception):
    """Root of all errors of this library: catch it to catch them all."""


class ConfigurationError(CacheTiersError, ValueError):
    """Raised when a setting or a task option cannot be used; correct the named option.

    Attributes:
        option: The setting or task option as the user types it.
        value: What was given.
        allowed: The allowed values, in words.
        where: The task or app it was given for, or ``None``.
    """

    def __init__(self, option: str, value: object, allowed: str, where: str | None = None) -> None:
        self.option, self.value, self.allowed, self.where = option, value, allowed, where
        super().__init__(option, value, allowed, where)

    def __str__(self) -> str:
        place = f" of {self.where}" if self.where else ""
        return f"{self.option}={self.value!r}{place} is not usable: {self.allowed}"


class NotCached(CacheTiersError, LookupError):
    """Raised when ``cache_mode="only"`` finds no entry; compute it, or ask with ``cache_mode="use"``.

    Attributes:
        task: Name of the task that was asked.
        key: The key that has no entry.
    """

    def __init__(self, task: str, key: str) -> None:
        self.task, self.key = task, key
        super().__init__(task, key)

    def __str__(self) -> str:
        return f"{self.task}: no entry under key {self.key}, and cache_mode='only' never computes"


class UncacheableArgument(CacheTiersError, TypeError):
    """Raised when a call has no key; the call runs uncached unless ``cachetiers_strict_keys`` is on.

    Attributes:
        argument: Name of the argument (or path inside it) without a canonical form.
        reason: Why it has none.
    """

    def __init__(self, argument: str, reason: str) -> None:
        self.argument, self.reason = argument, reason
        super().__init__(argument, reason)

    def __str__(self) -> str:
        return f"argument {self.argument!r} cannot be part of a key: {self.reason}"


class TagError(CacheTiersError, ValueError):
    """Raised when a tag cannot be used; correct the template or the callable that made it.

    Attributes:
        tag: The tag, or the template that failed to render.
        reason: What is wrong with it.
    """

    def __init__(self, tag: object, reason: str) -> None:
        self.tag, self.reason = tag, reason
        super().__init__(tag, reason)

    def __str__(self) -> str:
        return f"tag {self.tag!r} cannot be used: {self.reason}"


class UnusableEntry(CacheTiersError):
    """Raised when bytes cannot be read or written as an entry; the engine counts it and takes it as a miss.

    Attributes:
        reason: One word: foreign, newer, truncated, malformed, unsigned, forged, refused, bomb, oversize,
            undecodable or unserializable.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return f"the entry is not usable: {self.reason}"


class TierUnavailable(CacheTiersError):
    """Raised when L2 cannot be reached; reads fail open, an explicit invalidation or write lets it through.

    The driver's error is the ``__cause__``. An operation that raised it may or may not have happened: repeat it.
    """


class SinkUnavailable(CacheTiersError):
    """Raised when a whole sink is down: raise it in a sink, and its writes are tried again with none counted as failed.

    For example where the database cannot be reached, which says nothing about any of the writes.
    """


class SinkRejected(CacheTiersError):
    """Raised when a sink has taken all writes but some: raise it in a sink, and only those it names have failed.

    Attributes:
        failures: What each of the failed writes failed with, by its ``key``. With a key that the sink was not given, it
            is taken as any other exception.
    """

    def __init__(self, failures: Mapping[str, BaseException]) -> None:
        self.failures = dict(failures)
        super().__init__(self.failures)

    def __str__(self) -> str:
        return f"{len(self.failures)} writes were rejected: {', '.join(map(repr, self.failures.values()))}"


class SinkTimeout(CacheTiersError):
    """Raised when a sink has not returned in time; raise its ``time_limit``, or bound what it waits for.

    Attributes:
        sink: Its name.
        seconds: How long it was given.
    """

    def __init__(self, sink: str, seconds: float) -> None:
        self.sink, self.seconds = sink, seconds
        super().__init__(sink, seconds)

    def __str__(self) -> str:
        return f"sink {self.sink!r} has not returned within {self.seconds} s"
