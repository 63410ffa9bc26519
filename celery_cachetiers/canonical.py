"""A value in exact scalars and tagged tuples: equal trees are one value, as far as the serializer can tell."""

from __future__ import annotations

import enum
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from itertools import chain
from operator import itemgetter
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from types import NoneType
from typing import Any, Final, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from celery_cachetiers.dialects import REFUSED, SCALARS, THROUGH, Dialect, NoForm, joined
from celery_cachetiers.errors import UncacheableArgument

Tree: TypeAlias = "int | str | bytes | float | bool | tuple[Tree, ...] | None"
_DEEPEST: Final = 100
_MOST: Final = 1_000_000
# Python refuses to print an int of more than 4,300 digits; a process may set the limit as low as 640 or to none at all.
# From 2,000 bits on (603 digits) an int is written in hex, so that its text does not depend on that setting.
_BIG: Final = 1 << 2000
_MICROSECOND: Final = timedelta(microseconds=1)
_PLAIN: Final = frozenset({bool, float, bytes, NoneType})
_only_text: Final = frozenset({str}).issuperset


def canonical(value: object, dialect: Dialect, argument: str = "value") -> Tree:
    """A tree of plain scalars and tuples that is equal for equal values and differs for different ones.

    A scalar stands for itself, everything else is a tuple that begins with a tag, so data is never taken for a tag.
    The text that counts is ``ascii(tree)``: `repr` escapes by the Unicode tables of the Python version.

    Args:
        value: What a task is called with.
        dialect: What its serializer keeps apart.
        argument: The name that an error gives it.

    Raises:
        UncacheableArgument: If the value has no canonical form. No other exception comes out of it, whatever the
            methods of the value raise.

    >>> canonical((1, "1"), Dialect.NATIVE), canonical((1, "1"), Dialect.JSON)
    (('tuple', 1, '1'), ('list', 1, '1'))
    """
    try:
        return _Reduction().tree(value, dialect, 0)
    except NoForm as error:
        raise UncacheableArgument(argument, str(error)) from None
    except Exception as error:
        raise UncacheableArgument(argument, repr(error)) from error


class _Class(NamedTuple):
    """A class that a value's pickle names."""

    name: str


class _Reduction:
    """One value on its way to a tree; it counts what it has seen, as shared parts make a small graph a huge tree."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = _MOST

    def tree(self, value: Any, dialect: Dialect, depth: int) -> Tree:
        """The tree of what the worker gets; where the serializer refuses the value, of the value itself.

        Only a direct call can hand over the latter, so nothing inside it is merged either.
        """
        if type(value) in SCALARS:
            return self._exact(value, dialect, depth)
        received = THROUGH[dialect](value)
        if received is REFUSED:
            return self._native(value, depth)
        return self._exact(received, dialect, depth)

    def _exact(self, value: Any, dialect: Dialect, depth: int) -> Tree:
        kind = type(value)
        if kind is str:
            return joined(value) if dialect is Dialect.JSON else value
        if kind is int and not -_BIG < value < _BIG:
            return "int", hex(value)
        if kind in SCALARS:
            return value  # type: ignore[no-any-return]  # exact scalars are trees
        if kind is dict:
            return "dict", *self._pairs(value, dialect, depth)
        if kind is set or kind is frozenset:
            return kind.__name__, *sorted(self._all(value, dialect, depth), key=ascii)
        tag, parts = _EXACT[kind]
        return tag, *self._all(parts(value), dialect, depth)

    def _native(self, value: Any, depth: int) -> Tree:
        kind = type(value)
        if kind in _EXACT or kind in (dict, set, frozenset):
            return self._exact(value, Dialect.NATIVE, depth)
        tag, *parts = _object_form(value)
        return tag, *self._all(parts, Dialect.NATIVE, depth)

    def _all(self, values: Iterable[Any], dialect: Dialect, depth: int) -> list[Tree]:
        values = list(values)
        self._left -= len(values) + 1
        if self._left < 0:
            raise NoForm(f"more than {_MOST:,} elements, counting shared ones as often as they occur")
        if depth == _DEEPEST:
            raise NoForm(f"nested deeper than {_DEEPEST}, or it contains itself")
        return [
            value  # most are of this kind: not even a call for them
            if (kind := type(value)) in _PLAIN
            or (kind is int and -_BIG < value < _BIG)
            or (kind is str and value.isascii())
            else self.tree(value, dialect, depth + 1)
            for value in values
        ]

    def _pairs(self, value: Mapping[Any, Any], dialect: Dialect, depth: int) -> Iterable[Tree]:
        """Keys and contents in turn, in an order that only depends on them."""
        if not value:
            return ()
        keys = self._all(value, dialect, depth)
        pairs = list(zip(keys, self._all(value.values(), dialect, depth), strict=True))
        pairs.sort(key=itemgetter(0) if _only_text(map(type, keys)) else ascii)  # texts are no two the same
        return chain.from_iterable(pairs)


def _whole(value: Iterable[Any]) -> Iterable[Any]:
    return value


_EXACT: Final[dict[type, tuple[str, Callable[[Any], Iterable[Any]]]]] = {
    list: ("list", _whole),
    tuple: ("tuple", _whole),
    bytearray: ("bytearray", lambda value: (bytes(value),)),
    complex: ("complex", lambda value: (value.real, value.imag)),
    range: ("range", lambda value: (value.start, value.stop, value.step)),
    Fraction: ("fraction", lambda value: (value.numerator, value.denominator)),
    Decimal: ("decimal", lambda value: (str(value).upper(),)),  # the context decides between "e" and "E"
    uuid.UUID: ("uuid", lambda value: (value.hex,)),
    datetime: ("datetime", lambda value: (value.replace(tzinfo=None).isoformat(), value.fold, value.tzinfo)),
    date: ("date", lambda value: (value.isoformat(),)),
    time: ("time", lambda value: (value.replace(tzinfo=None).isoformat(), value.fold, value.tzinfo)),
    timedelta: ("timedelta", lambda value: (value.days, value.seconds, value.microseconds)),
    timezone: ("timezone", lambda value: (value.utcoffset(None) // _MICROSECOND, *value.__getinitargs__()[1:])),
    ZoneInfo: ("zone", lambda value: (_zone_key(value),)),
    PurePosixPath: ("PurePosixPath", lambda value: (str(value),)),
    PureWindowsPath: ("PureWindowsPath", lambda value: (str(value),)),
    PosixPath: ("PosixPath", lambda value: (str(value),)),
    WindowsPath: ("WindowsPath", lambda value: (str(value),)),
    _Class: ("class", _whole),
}

# Instances of subclasses may carry more than the base shows: attributes, the order of an OrderedDict, the factory of a
# defaultdict, the nanoseconds of a pandas.Timestamp. What pickle writes down for them is all of it.
_BASES: Final = (
    str, int, float, bytes, bytearray, complex, list, tuple, dict, Fraction, Decimal, uuid.UUID, date, time, timedelta,
    tzinfo, PurePath,
)  # fmt: skip


def _object_form(value: Any) -> tuple[Any, ...]:
    """Tag and parts of an object of no built-in type, all that a body could see of it.

    1. It says itself what counts: `__cachetiers_key__`.
    2. A member of an Enum is known by its name, a combination of flags by its value.
    3. A set's elements have no order, so its pickle has none that could be relied on.
    4. An instance of a subclass of a built-in type is what pickle writes down.
    5. A dataclass or pydantic model is its state: with fields that `==`, `repr` or `model_dump` leave out.
    6. Of anything else nobody knows what makes two of them equal.
    """
    kind = type(value)
    if hasattr(kind, "__cachetiers_key__"):
        return "keyed", _class_name(kind), value.__cachetiers_key__()
    if isinstance(value, enum.Enum):
        return "enum", _class_name(kind), value.value if isinstance(value, enum.Flag) else value.name
    if isinstance(value, (set, frozenset)):
        return "object", _class_name(kind), frozenset(value), _state(value)
    if isinstance(value, _BASES):
        return _pickled_form(value)
    if hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__pydantic_fields_set__"):
        return "object", _class_name(kind), _state(value)
    raise NoForm(f"{kind.__module__}.{kind.__qualname__} has no canonical form; give it __cachetiers_key__()")


def _pickled_form(value: Any) -> tuple[Any, ...]:
    reduced = value.__reduce_ex__(4)
    if not isinstance(reduced, tuple) or any(part is not None for part in reduced[5:]):
        raise NoForm(f"{type(value).__qualname__} has a pickle of its own kind; give it __cachetiers_key__()")
    maker, arguments, state, items, pairs = (*reduced[:5], None, None, None)[:5]
    arguments = tuple(_Class(_class_name(part)) if isinstance(part, type) else part for part in arguments)
    if pairs is not None:
        pairs = tuple(pairs) if isinstance(value, OrderedDict) else dict(pairs)
    return "pickled", _class_name(type(value)), _class_name(maker), arguments, state, [*(items or ())], pairs


def _state(value: object) -> dict[str, Any]:
    """The attributes, in `__dict__` and in slots, without what `cached_property` derives from the others."""
    state = object.__getstate__(value)
    found, slots = state if isinstance(state, tuple) else (state, None)
    everything = {**(found or {}), **(slots or {})}
    kind = type(value)
    return {
        name: content
        for name, content in everything.items()
        if not isinstance(getattr(kind, name, None), cached_property)
    }


def _class_name(kind: Any) -> str:
    if "<locals>" in kind.__qualname__:
        raise NoForm(f"{kind.__qualname__} is made inside a function, so that its name does not tell it from others")
    return f"{kind.__module__}.{kind.__qualname__}"


def _zone_key(value: ZoneInfo) -> str:
    if value.key is None:
        raise NoForm("a ZoneInfo that was read from a file has no name")
    return value.key
