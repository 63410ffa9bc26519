"""From a call to its key: arguments bound, reduced to a canonical typed form, and hashed.

It decides which calls are the same call. Two rules shape it. What the task's serializer merges on the way to the worker
is one key, so that the caller and the worker agree; everything else that a body can tell apart is another key.
A value of which this cannot be said has no key: `UncacheableArgument`. What then happens is the engine's decision.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from celery_cachetiers.binder import Binder
from celery_cachetiers.canonical import Tree, canonical
from celery_cachetiers.dialects import Dialect, only_scalars
from celery_cachetiers.errors import ConfigurationError, UncacheableArgument

KEY_FORMAT: Final = 1
"""Part of every key. Raise it with any change of the canonical text, as old entries must not be found under it."""
_LONGEST_SHORT_TEXT: Final = 600


def checked_key(key: object) -> str:
    """What is a key, as ``task.cache.key(...)`` gives it. Raises `ValueError` for anything else."""
    if not isinstance(key, str) or len(key) != 32 or not set(key) <= set("0123456789abcdef"):
        raise ValueError(f"{key!r} is not a key: 32 hex characters, as task.cache.key(...) returns them")
    return key


@dataclass(frozen=True, slots=True)
class KeyMaker:
    """Makes the keys of one task's calls.

    Args:
        task_name: The task's name.
        binder: Binds to the body's signature.
        dialect: The task serializer's.
        version: Any text; another one, other keys.
        ignore: Arguments that are left out of the key.
        key: Called with the arguments by name; what it returns is the key's content in place of them.

    Raises:
        ConfigurationError: If `ignore` names what is no argument, or is given beside `key`, which chooses for itself.

    Attributes:
        fingerprint: 8 hex characters of all that shapes keys: two processes with the same one agree on them.

    Costs:
        1 µs for a call with a few scalars; with containers 3 to 5 µs more, and 0.2 µs for each element.
    """

    task_name: str
    binder: Binder
    dialect: Dialect
    version: str = ""
    ignore: tuple[str, ...] = ()
    key: Callable[..., Any] | None = None
    fingerprint: str = field(init=False)
    _seeded: blake2b = field(init=False, repr=False, compare=False)
    _bind: Callable[..., tuple[Any, ...]] = field(init=False, repr=False, compare=False)
    _choose: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = field(init=False, repr=False, compare=False)
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_ignore()
        seed = ascii((KEY_FORMAT, self.task_name, self.version, self.key is not None)) + "\n"
        self._set("_seeded", blake2b(seed.encode(), digest_size=16))
        self._set("_bind", self.binder.bind)
        self._set("_names", tuple(name for name in self.binder.names if name not in self.ignore))
        self._set("_choose", self._without_ignored if self.ignore else None)
        if self.key is not None:
            self._set("_names", ("key",))
            self._set("_choose", self._called_key)
        self._set("fingerprint", blake2b(self._shape().encode(), digest_size=4).hexdigest())

    def digest(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
        """The key of a call: 32 hex characters.

        Raises:
            TypeError: If the arguments do not fit the signature, as the function would.
            UncacheableArgument: If an argument has no canonical form. It is a TypeError too: catch it first.
        """
        return self.digest_of(self._bind(*args, **kwargs))

    def bound(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The bound values, for `digest_of` and `Binder.arguments`, so that one binding serves key and tags.

        Raises:
            TypeError: If the arguments do not fit the signature; no other.
        """
        return self._bind(*args, **kwargs)

    def digest_of(self, values: tuple[Any, ...]) -> str:
        """The key of bound values.

        Raises:
            UncacheableArgument: If one of them has no canonical form; no other.

        Concurrency:
            Safe: the seeded hasher is only ever copied.
        """
        if self._choose is not None:
            values = self._choose(values)
        text = _text_of_scalars(values)
        if text is None:
            named = zip(self._names, values, strict=True)
            text = ascii(tuple(canonical(value, self.dialect, name) for name, value in named))
        hasher = self._seeded.copy()
        hasher.update(text.encode())
        return hasher.hexdigest()

    def content(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """What the key of bound values is made of, besides the task's name and version, to be shown.

        Raises:
            UncacheableArgument: ``key`` has failed with them.
        """
        chosen = values if self._choose is None else self._choose(values)
        return dict(zip(self._names, chosen, strict=True))

    def _without_ignored(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        named = dict(zip(self.binder.names, values, strict=True))
        if extra := self.binder.var_keyword:
            named[extra] = {name: value for name, value in named[extra].items() if name not in self.ignore}
        return tuple(named[name] for name in self._names)

    def _called_key(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        assert self.key is not None
        try:
            return (self.key(**self.binder.arguments(values)),)
        except Exception as error:
            raise UncacheableArgument("key", repr(error)) from error

    def _check_ignore(self) -> None:
        if self.ignore and self.key is not None:
            allowed = "not together with key, which chooses among the arguments itself"
            raise ConfigurationError("ignore", self.ignore, allowed, self.task_name)
        for name in self.ignore:
            if name not in self.binder.names and self.binder.var_keyword is None:
                allowed = f"an argument of the task: {', '.join(self.binder.names) or 'it has none'}"
                raise ConfigurationError("ignore", name, allowed, self.task_name)

    def _shape(self) -> str:
        key = None if self.key is None else getattr(self.key, "__qualname__", type(self.key).__qualname__)
        parameters = tuple(
            (parameter.name, parameter.kind.name, *_default_form(parameter, self.dialect))
            for parameter in self.binder.parameters
        )
        ignored = tuple(sorted(set(self.ignore)))
        return ascii((KEY_FORMAT, self.version, ignored, key, self.dialect.value, parameters))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def _text_of_scalars(values: tuple[Any, ...]) -> str | None:
    """The text of values that are exact scalars, the one that `canonical` leads to; ``None`` asks to go that way."""
    if not only_scalars(map(type, values)):
        return None
    try:
        text = ascii(values)
    except ValueError:  # an int beyond the limit of digits
        return None
    # A long text may hold an int that is written in hex, and a surrogate one that JSON joins with its neighbour.
    return text if len(text) < _LONGEST_SHORT_TEXT and "\\ud" not in text else None


def _default_form(parameter: inspect.Parameter, dialect: Dialect) -> tuple[Tree, ...]:
    if parameter.default is parameter.empty:
        return ()
    try:
        return (canonical(parameter.default, dialect),)
    except UncacheableArgument:
        return ("type", type(parameter.default).__qualname__)
