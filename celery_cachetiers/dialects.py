"""What a message serializer makes of a value: which distinctions survive the broker."""

from __future__ import annotations

import base64
import enum
import uuid
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from types import NoneType
from typing import Any, Final

SCALARS: Final = frozenset({int, str, bool, float, bytes, NoneType})
only_scalars: Final = SCALARS.issuperset


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


#
# Each function looks at one value, not into it, and returns what the worker gets in its place, or REFUSED where the
# serializer raises. Read in kombu/utils/json.py and kombu/serialization.py (5.7), msgpack's Packer and PyYAML's
# SafeRepresenter; tests/unit/test_keys_broker.py holds them against the real ones.

REFUSED: Final[Any] = object()


class NoForm(Exception):
    """Raised inside a reduction; becomes `UncacheableArgument` with the argument's name."""


def bare(value: object) -> object:
    """The str, int, float or bytes inside an instance of a subclass (a str Enum, say); other values as they are."""
    if type(value) in SCALARS:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__pos__(value)
    if isinstance(value, float):
        return float.__pos__(value)
    return b"".join((value,)) if isinstance(value, bytes) else value


def joined(text: str) -> str:
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
    return REFUSED


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
            return REFUSED
        received[name] = content
    if received.keys() == {"__type__", "__value__"}:
        return _opened(_through_json(received["__type__"]), _through_json(received["__value__"]))
    return received


def _json_key(key: object) -> str | None:
    if isinstance(key, str):
        return joined(str.__str__(key))
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
        return _ENVELOPES[kind](joined(content))
    raise NoForm("a dict with the keys __type__ and __value__ is kombu's envelope, here of an unknown type")


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
        return received if all(isinstance(key, (str, bytes)) for key in received) else REFUSED
    if isinstance(value, (list, tuple)):
        extension = type(value).__module__ == "msgpack.ext"  # ExtType is a named tuple and stays one
        return REFUSED if extension else list(value)
    return REFUSED


def _through_yaml(value: Any) -> Any:
    kind = type(value)  # safe_dump knows exact types only
    if kind is tuple:
        return list(value)
    if kind is datetime:
        return datetime.fromisoformat(value.isoformat())
    if kind in (dict, set) and tuple in map(type, value):
        return REFUSED  # they come back as lists, which are no keys
    return value if kind in (list, dict, set, date) else REFUSED


def _through_pickle(_: Any) -> Any:
    return REFUSED  # nothing is merged: the native form is the one that counts


THROUGH: Final[dict[Dialect, Callable[[Any], Any]]] = {
    Dialect.JSON: _through_json,
    Dialect.MSGPACK: _through_msgpack,
    Dialect.YAML: _through_yaml,
    Dialect.NATIVE: _through_pickle,
}
