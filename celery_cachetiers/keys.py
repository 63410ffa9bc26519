"""From a call to its key: arguments bound, reduced to a canonical typed form, and hashed.

It decides which calls are the same call. Two rules shape it. What the task's serializer merges on the way to the worker
is one key, so that the caller and the worker agree; everything else that a body can tell apart is another key.
A value of which this cannot be said has no key: `UncacheableArgument`. What then happens is the engine's decision.
"""

from __future__ import annotations

import base64
import enum
import inspect
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from operator import itemgetter
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from types import NoneType
from typing import Any, Final, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from celery_cachetiers.errors import ConfigurationError, UncacheableArgument

KEY_FORMAT: Final = 1
"""Part of every key. Raise it with any change of the canonical text, as old entries must not be found under it."""

Tree: TypeAlias = "int | str | bytes | float | bool | tuple[Tree, ...] | None"

_DEEPEST: Final = 100
_MOST: Final = 1_000_000
# Python refuses to print an int of more than 4,300 digits; a process may set the limit as low as 640 or to none at all.
# From 2,000 bits on (603 digits) an int is written in hex, so that its text does not depend on that setting.
_BIG: Final = 1 << 2000
_LONGEST_SHORT_TEXT: Final = 600

_SCALARS: Final = frozenset({int, str, bool, float, bytes, NoneType})
_MICROSECOND: Final = timedelta(microseconds=1)
_PLAIN: Final = frozenset({bool, float, bytes, NoneType})
only_scalars: Final = _SCALARS.issuperset
_only_text: Final = frozenset({str}).issuperset


class Dialect(enum.Enum):
    """Which distinctions survive a task serializer."""

    JSON = "json"
    MSGPACK = "msgpack"
    YAML = "yaml"
    NATIVE = "native"
    """All of them: pickle. Serializers of which nothing is known are taken for it as well."""


def dialect_of(serializer_name: str) -> Dialect:
    """The dialect of a kombu serializer.

    >>> dialect_of("json"), dialect_of("pickle")
    (<Dialect.JSON: 'json'>, <Dialect.NATIVE: 'native'>)
    """
    return {"json": Dialect.JSON, "msgpack": Dialect.MSGPACK, "yaml": Dialect.YAML}.get(serializer_name, Dialect.NATIVE)


# ---- binding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Binder:
    """Binds a call to a signature; made by `compile_binder`.

    Attributes:
        names: The parameters, in the order of the bound values.
        var_positional: The name of ``*args``, or ``None``.
        var_keyword: The name of ``**kwargs``, or ``None``.
        parameters: The parameters as `inspect` describes them.
        bind: Called as the function is, returns the bound values.
    """

    names: tuple[str, ...]
    var_positional: str | None
    var_keyword: str | None
    parameters: tuple[inspect.Parameter, ...] = field(repr=False)
    bind: Callable[..., tuple[Any, ...]] = field(repr=False)

    def __call__(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values in the order of `names`, defaults applied; ``*args`` is a tuple, ``**kwargs`` a dict.

        Raises:
            TypeError: As the function would, with the same words.
        """
        return self.bind(*args, **kwargs)

    @property
    def argument_names(self) -> tuple[str, ...]:
        """The names that `arguments` always has."""
        return tuple(name for name in self.names if name != self.var_keyword)

    def arguments(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """The bound values by name, those of ``**kwargs`` under their own names; a parameter's name goes first."""
        named = dict(zip(self.names, values, strict=True))
        extra = named.pop(self.var_keyword) if self.var_keyword else {}
        return {**extra, **named}


def compile_binder(function: Callable[..., Any], *, skip_first: bool) -> Binder:
    """A binder for the function's signature.

    Args:
        function: The task's body. Decorators are looked through (``__wrapped__``), as Celery's own wrap it.
        skip_first: Leave out the first parameter: ``self`` of ``bind=True``.

    Costs:
        A compilation now, then 0.2 µs per call, where `inspect.Signature.bind` takes 4.
    """
    parameters = tuple(inspect.signature(function).parameters.values())
    if skip_first and parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        parameters = parameters[1:]
    named = {parameter.kind: parameter.name for parameter in parameters}
    bind = _compile(parameters)
    bind.__qualname__ = getattr(function, "__qualname__", bind.__qualname__)
    return Binder(
        names=tuple(parameter.name for parameter in parameters),
        var_positional=named.get(inspect.Parameter.VAR_POSITIONAL),
        var_keyword=named.get(inspect.Parameter.VAR_KEYWORD),
        parameters=parameters,
        bind=bind,
    )


def _compile(parameters: tuple[inspect.Parameter, ...]) -> Any:
    """A lambda with these parameters that returns their values; defaults are closed over, never printed."""
    defaults = {f"_{at}": p.default for at, p in enumerate(parameters) if p.default is not p.empty}
    renamed = [
        p.replace(annotation=p.empty, default=_Source(f"_{at}") if f"_{at}" in defaults else p.empty)
        for at, p in enumerate(parameters)
    ]
    head = str(inspect.Signature(renamed))[1:-1]
    values = "".join(f"{p.name}, " for p in parameters)
    return eval(f"lambda {', '.join(defaults)}: lambda {head}: ({values})", {})(*defaults.values())


class _Source(str):
    """A default that `inspect.Signature` prints as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


# ---- what a serializer makes of a value ------------------------------------------------------------------------------
#
# Each function looks at one value, not into it, and returns what the worker gets in its place, or _REFUSED where the
# serializer raises. Read in kombu/utils/json.py and kombu/serialization.py (5.7), msgpack's Packer and PyYAML's
# SafeRepresenter; tests/unit/test_keys_broker.py holds them against the real ones.

_REFUSED: Final[Any] = object()


class _NoForm(Exception):
    """Raised inside a reduction; becomes `UncacheableArgument` with the argument's name."""


def bare(value: object) -> object:
    """The str, int, float or bytes inside an instance of a subclass (a str Enum, say); other values as they are."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__pos__(value)
    if isinstance(value, float):
        return float.__pos__(value)
    return b"".join((value,)) if isinstance(value, bytes) else value


def _joined(text: str) -> str:
    """JSON writes a character beyond U+FFFF as two surrogates, so two that stand side by side come back as one."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _through_json(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str, int, float)):
        return bare(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, dict):
        return _dict_through_json(value)
    reducer = getattr(value, "__json__", None)
    if reducer is not None:
        return _through_json(reducer())
    for kind, received in _JSON_TYPES:
        if isinstance(value, kind):
            return received(value)
    return _REFUSED


_JSON_TYPES: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (datetime, lambda value: datetime.fromisoformat(datetime.isoformat(value))),
    (date, lambda value: datetime.fromisoformat(value.isoformat()).date()),
    (time, lambda value: time.fromisoformat(value.isoformat())),
    (Decimal, lambda value: Decimal(str(value))),
    (uuid.UUID, lambda value: uuid.UUID(value.hex)),
    (bytes, bare),
)


def _dict_through_json(value: dict[Any, Any]) -> Any:
    received = {}
    for key, content in value.items():  # keys that become one: the last wins, as in json.loads
        name = _json_key(key)
        if name is None:
            return _REFUSED
        received[name] = content
    if received.keys() == {"__type__", "__value__"}:
        return _opened(_through_json(received["__type__"]), _through_json(received["__value__"]))
    return received


def _json_key(key: object) -> str | None:
    if isinstance(key, str):
        return _joined(str.__str__(key))
    if isinstance(key, float):
        return _JSON_FLOATS.get(text := float.__repr__(key), text)
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    return int.__repr__(key) if isinstance(key, int) else None


_JSON_FLOATS: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _opened(kind: object, content: Any) -> Any:
    """What kombu makes of a dict that looks like its envelope of a typed value."""
    if kind == "uuid" and isinstance(content, dict) and content.keys() == {"hex"}:
        return uuid.UUID(_through_json(content["hex"]))
    if isinstance(kind, str) and isinstance(content, str) and kind in _ENVELOPES:
        return _ENVELOPES[kind](_joined(content))
    raise _NoForm("a dict with the keys __type__ and __value__ is kombu's envelope, here of an unknown type")


_ENVELOPES: Final[dict[str, Callable[[str], Any]]] = {
    "bytes": str.encode,
    "base64": lambda text: base64.b64decode(text.encode()),
    "datetime": datetime.fromisoformat,
    "date": lambda text: datetime.fromisoformat(text).date(),
    "time": time.fromisoformat,
    "decimal": Decimal,
}


def _through_msgpack(value: Any) -> Any:
    if isinstance(value, (str, int, float, bytes)):
        return bare(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, dict):
        received = {bare(key): content for key, content in value.items()}
        return received if all(isinstance(key, (str, bytes)) for key in received) else _REFUSED
    if isinstance(value, (list, tuple)):
        extension = type(value).__module__ == "msgpack.ext"  # ExtType is a named tuple and stays one
        return _REFUSED if extension else list(value)
    return _REFUSED


def _through_yaml(value: Any) -> Any:
    kind = type(value)  # safe_dump knows exact types only
    if kind is tuple:
        return list(value)
    if kind is datetime:
        return datetime.fromisoformat(value.isoformat())
    if kind in (dict, set) and tuple in map(type, value):
        return _REFUSED  # they come back as lists, which are no keys
    return value if kind in (list, dict, set, date) else _REFUSED


def _through_pickle(_: Any) -> Any:
    return _REFUSED  # nothing is merged: the native form is the one that counts


_THROUGH: Final[dict[Dialect, Callable[[Any], Any]]] = {
    Dialect.JSON: _through_json,
    Dialect.MSGPACK: _through_msgpack,
    Dialect.YAML: _through_yaml,
    Dialect.NATIVE: _through_pickle,
}


# ---- the canonical form ----------------------------------------------------------------------------------------------


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
    except _NoForm as error:
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
        if type(value) in _SCALARS:
            return self._exact(value, dialect, depth)
        received = _THROUGH[dialect](value)
        if received is _REFUSED:
            return self._native(value, depth)
        return self._exact(received, dialect, depth)

    def _exact(self, value: Any, dialect: Dialect, depth: int) -> Tree:
        kind = type(value)
        if kind is str:
            return _joined(value) if dialect is Dialect.JSON else value
        if kind is int and not -_BIG < value < _BIG:
            return "int", hex(value)
        if kind in _SCALARS:
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
            raise _NoForm(f"more than {_MOST:,} elements, counting shared ones as often as they occur")
        if depth == _DEEPEST:
            raise _NoForm(f"nested deeper than {_DEEPEST}, or it contains itself")
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
    raise _NoForm(f"{kind.__module__}.{kind.__qualname__} has no canonical form; give it __cachetiers_key__()")


def _pickled_form(value: Any) -> tuple[Any, ...]:
    reduced = value.__reduce_ex__(4)
    if not isinstance(reduced, tuple) or any(part is not None for part in reduced[5:]):
        raise _NoForm(f"{type(value).__qualname__} has a pickle of its own kind; give it __cachetiers_key__()")
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
        raise _NoForm(f"{kind.__qualname__} is made inside a function, so that its name does not tell it from others")
    return f"{kind.__module__}.{kind.__qualname__}"


def _zone_key(value: ZoneInfo) -> str:
    if value.key is None:
        raise _NoForm("a ZoneInfo that was read from a file has no name")
    return value.key


# ---- keys ------------------------------------------------------------------------------------------------------------


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
        1 µs for a call with a few scalars, about 0.5 µs more for each element of a container.
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
