"""Every exception the library raises; it decides their names and leaves when to raise them to others."""

from __future__ import annotations


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
        place = f" of {where}" if where else ""
        super().__init__(f"{option}={value!r}{place} is not usable: {allowed}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.option, self.value, self.allowed, self.where)


class NotCached(CacheTiersError, LookupError):
    """Raised when ``cache_mode="only"`` finds no entry; compute it, or ask with ``cache_mode="use"``.

    Attributes:
        task: Name of the task that was asked.
        key: The key that has no entry.
    """

    def __init__(self, task: str, key: str) -> None:
        self.task, self.key = task, key
        super().__init__(f"{task}: no entry under key {key}, and cache_mode='only' never computes")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.task, self.key)


class UncacheableArgument(CacheTiersError, TypeError):
    """Raised when a call has no key; the call runs uncached unless ``cachetiers_strict_keys`` is on.

    Attributes:
        argument: Name of the argument (or path inside it) without a canonical form.
        reason: Why it has none.
    """

    def __init__(self, argument: str, reason: str) -> None:
        self.argument, self.reason = argument, reason
        super().__init__(f"argument {argument!r} cannot be part of a key: {reason}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.argument, self.reason)


class TagError(CacheTiersError, ValueError):
    """Raised when a tag cannot be used; correct the template or the callable that made it.

    Attributes:
        tag: The tag, or the template that failed to render.
        reason: What is wrong with it.
    """

    def __init__(self, tag: object, reason: str) -> None:
        self.tag, self.reason = tag, reason
        super().__init__(f"tag {tag!r} cannot be used: {reason}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.tag, self.reason)


class UnusableEntry(CacheTiersError):
    """Raised when bytes cannot be read or written as an entry; the engine counts it and takes it as a miss.

    Attributes:
        reason: One word: foreign, newer, truncated, malformed, unsigned, forged, refused, bomb, oversize,
            undecodable or unserializable.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the entry is not usable: {reason}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.reason,)


class TierUnavailable(CacheTiersError):
    """Raised when L2 cannot be reached; reads fail open, an explicit invalidation or write lets it through.

    The driver's error is the ``__cause__``. An operation that raised it may or may not have happened: repeat it.
    """
