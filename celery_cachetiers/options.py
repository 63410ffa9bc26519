"""Rules that one option's value must keep: each checks, normalizes, and says in words what it allows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from celery_cachetiers.errors import ConfigurationError

HIDDEN = "(hidden)"


class _Refused(Exception):
    """Raised inside a rule; `Rule.check` turns it into the user's error."""


def _as_it_is(value: object) -> object:
    return value


@dataclass(frozen=True, slots=True)
class Rule:
    """A check of one value.

    Attributes:
        normalize: Returns the value in its one form, or raises `_Refused`.
        allowed: The allowed values, in words.
        show: What of a refused value may stand in an error text.
    """

    normalize: Callable[[object], object]
    allowed: str
    show: Callable[[object], object] = _as_it_is

    def check(self, option: str, value: object, where: str | None) -> object:
        """The normalized value.

        Raises:
            ConfigurationError: Naming option, value and allowed range.
        """
        try:
            return self.normalize(value)
        except _Refused:
            raise ConfigurationError(option, self.show(value), self.allowed, where) from None


def _number(low: float, high: float = math.inf, *, open_low: bool = False) -> Callable[[object], float]:
    def normalize(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _Refused
        try:
            number = float(value)
        except OverflowError:
            raise _Refused from None
        if not math.isfinite(number) or number < low or number > high or (open_low and number == low):
            raise _Refused
        return number

    return normalize


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _Refused
    return value


def _bytes(value: object) -> int:
    if _count(value) > 512 * 1024**2:
        raise _Refused
    return _count(value)


def _batch(value: object) -> int:
    if _count(value) > 1000:
        raise _Refused
    return _count(value)


def _of_type(kind: type) -> Callable[[object], object]:
    def normalize(value: object) -> object:
        if not isinstance(value, kind):
            raise _Refused
        return value

    return normalize


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _Refused
    return value


def _callable(value: object) -> object:
    if not callable(value):
        raise _Refused
    return value


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple, set, frozenset)):
        raise _Refused
    if not all(isinstance(name, str) and name for name in value):
        raise _Refused
    return tuple(value)


def _tags(value: object) -> object:
    return value if callable(value) else _names(value)


def _invalidates(value: object) -> object:
    found = _tags(value)
    if found == ():
        raise _Refused
    return found


def _on_commit(value: object) -> object:
    if not isinstance(value, bool) and not callable(value) and not callable(getattr(value, "get_transaction", None)):
        raise _Refused
    return value


def _version(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _Refused
    return str(value)


def _namespace(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:/-]{1,64}", value):
        raise _Refused
    return value


def _sink_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise _Refused
    return value


def _url(value: object) -> str:
    if not isinstance(value, str):
        raise _Refused
    try:
        parts = urlsplit(value)
        usable = parts.path if parts.scheme == "unix" else parts.hostname and (parts.port or True)
    except ValueError:
        raise _Refused from None
    database = parts.path.strip("/") if parts.scheme != "unix" else ""
    if parts.scheme not in ("redis", "rediss", "unix") or not usable or (database and not database.isdigit()):
        raise _Refused
    return value


def _signing_keys(value: object) -> tuple[bytes, ...]:
    keys = value if isinstance(value, (list, tuple)) else [value]
    encoded = [key.encode() if isinstance(key, str) else key for key in keys]
    usable = tuple(key for key in encoded if isinstance(key, bytes) and len(key) >= 16)
    if not usable or len(usable) != len(encoded):
        raise _Refused
    return usable


def without_secrets(url: object) -> object:
    """As much of a URL as may stand in an error text: all, if it has neither credentials nor options."""
    if not {"@", "?"} & set(str(url)):
        return url
    scheme = re.match(r"[a-z+]+://", url) if isinstance(url, str) else None
    return f"{scheme.group() if scheme else ''}{HIDDEN}"


def plain_only(value: object) -> object:
    """The value of a setting that nobody knows, which may be a secret under a misspelt name: numbers and the like."""
    return value if value is None or isinstance(value, (bool, int, float)) else HIDDEN


def choice(*allowed: object) -> Rule:
    """One of a few values, compared with their types, as ``0 == False``."""

    def normalize(value: object) -> object:
        for each in allowed:
            if type(value) is type(each) and value == each:
                return value
        raise _Refused

    return Rule(normalize, "one of " + ", ".join(map(repr, allowed)))


def optional(rule: Rule) -> Rule:
    """The rule, or ``None``."""

    def normalize(value: object) -> object:
        return None if value is None else rule.normalize(value)

    return Rule(normalize, f"{rule.allowed}, or None", rule.show)


BOOL = Rule(_of_type(bool), "True or False")
TEN_YEARS = 315_360_000.0
POSITIVE = Rule(
    _number(0, TEN_YEARS, open_low=True), "a number above 0 (seconds are numbers: 300, not '5m'), at most ten years"
)
NOT_NEGATIVE = Rule(_number(0, TEN_YEARS), "a number of at least 0, at most ten years of seconds")
FRACTION = Rule(_number(0, 1, open_low=True), "a number above 0, at most 1")
LEASE = Rule(_number(0.1, 3600), "a number of seconds from 0.1 to 3600")
TIMEOUT = Rule(_number(0.001, 60), "a number of seconds from 0.001 to 60")
REPORT_EVERY = Rule(_number(1, 86_400), "a number of seconds from 1 to 86400")
RATIO = Rule(_number(0, 1), "a number from 0 to 1")
FLUSH_EVERY = Rule(_number(0.1, 86_400), "a number of seconds from 0.1 to 86400")
COUNT = Rule(_count, "a whole number of at least 1")
BYTES = Rule(_bytes, "a whole number of bytes from 1 to 512 MiB")
BATCH = Rule(_batch, "a whole number from 1 to 1000")
TEXT = Rule(_text, "a name that is not empty")
CALLABLE = Rule(_callable, "a callable")
NAMES = Rule(_names, "a list or tuple of names (a single name needs the brackets too)")
TAGS = Rule(_tags, 'a list or tuple of templates such as ["user:{user_id}"], or a callable over the arguments')
INVALIDATES = Rule(
    _invalidates,
    'a list or tuple of templates such as ["user:{user_id}"], or a callable over (arguments, result); None for nothing',
)
ON_COMMIT = Rule(
    _on_commit, "True, False, a SQLAlchemy session or scoped_session, or a callable that returns the session in use"
)
VERSION = Rule(_version, "text or a whole number")
NAMESPACE = Rule(_namespace, "1 to 64 letters, digits or any of _ . : / -")
SINK_NAME = Rule(_sink_name, "1 to 64 letters, digits or any of _ . -")
URL = Rule(_url, "redis://host:port/db, rediss://host:port/db or unix:///path/to.sock?db=0", without_secrets)
SIGNING_KEYS = Rule(_signing_keys, "text or bytes of at least 16 bytes, or a list of such", lambda _: HIDDEN)
