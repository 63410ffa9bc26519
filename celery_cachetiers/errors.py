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


class SinkTimeout(CacheTiersError):
    """Raised when a sink has not taken a batch within its ``time_limit``; see what it hangs on, or raise the limit.

    The batch may have been written, and may still be: it is handed over again.

    Attributes:
        sink: Its name.
        seconds: The limit.
    """

    def __init__(self, sink: str, seconds: float) -> None:
        self.sink, self.seconds = sink, seconds
        super().__init__(sink, seconds)

    def __str__(self) -> str:
        return f"sink {self.sink} has not taken a batch within time_limit={self.seconds:g} seconds"


class SinkUnavailable(CacheTiersError):
    """Raised when a sink cannot take anything at all; raise it in yours while what it writes to is down.

    No write's attempt counts then: they wait until the sink is back.
    """


class SinkRejected(CacheTiersError):
    """Raised when a sink has refused some writes and taken all others; raise it in yours where it knows which.

    Attributes:
        failures: Why, by `Write.key`.
    """

    def __init__(self, failures: Mapping[str, BaseException]) -> None:
        self.failures = dict(failures)
        super().__init__(self.failures)

    def __str__(self) -> str:
        first = next(iter(self.failures.items()), None)
        return f"{len(self.failures)} writes were refused" + (f", {first[0]}: {first[1]!r}" if first else "")


class JournalFull(CacheTiersError):
    """Raised when a sink's journal holds ``max_pending`` records and it is ``when_full="raise"``; write again later.

    Attributes:
        sink: Its name.
        max_pending: How many records there may be.
    """

    def __init__(self, sink: str, max_pending: int) -> None:
        self.sink, self.max_pending = sink, max_pending
        super().__init__(sink, max_pending)

    def __str__(self) -> str:
        return f"the journal of sink {self.sink} is full: {self.max_pending} writes wait for it"
