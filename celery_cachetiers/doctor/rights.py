"""What the library sends to Redis, as an ACL sees it, each in a form that changes nothing.

A command is refused for want of a right before anything else is looked at: so it is sent with a key that nobody has, or
with an argument that it does not take. Two have no such form (``SADD``, ``RPUSH``); their keys are removed in the same
packet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from celery_cachetiers.tiers.layout import Layout

CACHE, INVALIDATE, BACKPLANE = "acl-cache", "acl-invalidate", "acl-backplane"
TRACKING, COUNTERS, REPORT, JOURNAL = "acl-tracking", "acl-counters", "acl-report", "acl-journal"
_NONE: Final = "@"
"""Where the name of a key that nobody has is put."""
_SAME: Final = "~"
"""Where the same key comes once more."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command.

    Attributes:
        command: As ``ACL SETUSER`` takes it.
        words: The same with arguments, and `_NONE` for what makes a name unique.
        place: Which of them is a key (``~``) or a channel (``&``), as ``ACL SETUSER`` takes it; empty without one.
    """

    command: str
    words: tuple[str | int, ...]
    place: str = ""

    @property
    def subscribes(self) -> bool:
        """Whether others' messages come on its connection afterwards."""
        return self.command == "+subscribe"

    def missing(self, refusal: str) -> str:
        """Which of the two the refusal is about: a server says whether it is the command."""
        about_place = self.place and re.search(r"access .*(key|channel)", refusal)
        return self.place if about_place else self.command

    def packet(self, unique: str) -> list[str | int]:
        """The command as it is sent."""
        return [word.replace(_NONE, unique) if isinstance(word, str) else word for word in self.words]


@dataclass(frozen=True, slots=True)
class Need:
    """Commands that are needed for one thing; the code is that of the finding."""

    code: str
    steps: tuple[Step, ...]


def needs_of_l2(layout: Layout, tracking: bool) -> list[Need]:
    """What is sent to L2."""
    space = layout.namespace
    key = f"{space}:{{0}}:w:{_NONE}"
    needs = [Need(TRACKING, _tracking(layout))] if tracking else []
    return [
        *needs,
        Need(CACHE, (*_steps(space, key, *_CACHE), *_SCRIPTS)),
        Need(INVALIDATE, (*_steps(space, key, "UNLINK"), _publishing(layout))),
        Need(COUNTERS, _steps(space, layout.stats(f"@doctor:{_NONE}"), *_COUNTERS)),
        Need(REPORT, _steps(space, layout.stats(f"@doctor:{_NONE}"), *_REPORT)),
        Need(BACKPLANE, _listening(layout)),
    ]


def needs_of_journal(namespace: str, sinks: Mapping[str, str | None], *, beside_entries: bool) -> list[Need]:
    """What is sent to the journal, of some sinks and what their writes wait for."""
    steps = [*_SCRIPTS]
    for sink in sinks:
        steps += _steps(namespace, f"{namespace}:{{wb:{sink}}}:{_NONE}", *_JOURNAL)
    for wait, words in _WAITS.items():
        if wait in sinks.values():
            steps.append(Step(f"+{str(words[0]).lower()}", words))
    if beside_entries:  # in this order: what is begun is ended, and has nothing in it
        steps += [Step("+multi", ("MULTI",)), Step("+exec", ("EXEC",))]
    return [Need(JOURNAL, tuple(steps))]


_FORMS: Final[dict[str, tuple[str | int, ...]]] = {
    "MGET": (), "GET": (), "EXISTS": (), "PTTL": (), "SMEMBERS": (), "HLEN": (), "HGETALL": (), "ZCARD": (),
    "DEL": (), "UNLINK": (), "GETDEL": (),
    "GETRANGE": (0, 0), "HMGET": ("f",), "HGET": ("f",), "HEXISTS": ("f",), "ZRANGE": (0, 0), "ZSCORE": ("m",),
    "ZMSCORE": ("m",),
    "ZRANGEBYSCORE": (0, 0), "ZREMRANGEBYSCORE": (0, 0), "HDEL": ("f",), "ZREM": ("m",),
    "SET": ("v", "XX", "PX", 1), "PEXPIRE": (1,), "ZADD": ("XX", 1, "m"), "SADD": ("m",),
    "HSET": ("f", "v", "f2"), "HINCRBY": ("f", "x"), "HINCRBYFLOAT": ("f", "x"), "INCRBY": ("x",), "RENAME": (_SAME,),
    "ZINCRBY": ("x", "m"), "ZUNIONSTORE": (1, _SAME), "ZREMRANGEBYRANK": (0, 0), "ZREVRANGE": (0, 0),
    "BITFIELD": ("GET", "u1", 0), "RPUSH": ("v",), "LLEN": (), "LRANGE": (0, 0),
    "XADD": ("NOMKSTREAM", "*", "f", "v"), "XTRIM": ("MAXLEN", 0), "XREVRANGE": ("+", "-"),
}  # fmt: skip
"""What follows the key, so that nothing happens where there is no such key."""

_CACHE: Final = (
    "SADD", "PEXPIRE", "DEL", "MGET", "GET", "GETRANGE", "SET", "EXISTS", "PTTL", "SMEMBERS", "HMGET", "HSET",
    "HINCRBY", "HLEN",
)  # fmt: skip
_COUNTERS: Final = (
    "RPUSH", "PEXPIRE", "LLEN", "LRANGE", "UNLINK", "GET", "SET", "DEL", "TIME", "PTTL", "ZREMRANGEBYSCORE", "HLEN",
    "HEXISTS", "HINCRBY", "HINCRBYFLOAT", "HSET", "ZADD", "HGETALL", "ZRANGE", "ZINCRBY", "ZUNIONSTORE",
    "ZREMRANGEBYRANK", "ZREVRANGE", "BITFIELD", "INCRBY", "RENAME",
)  # fmt: skip
_REPORT: Final = ("TIME", "HGET", "HMGET", "HSET", "DEL", "PEXPIRE", "XADD", "XTRIM", "XREVRANGE")
_JOURNAL: Final = (
    "HSET", "HGET", "HDEL", "HMGET", "HEXISTS", "HINCRBY", "ZADD", "ZREM", "ZRANGE", "ZREVRANGE", "ZRANGEBYSCORE",
    "ZSCORE", "ZMSCORE", "ZCARD", "ZREMRANGEBYSCORE", "ZREMRANGEBYRANK", "GET", "SET", "GETDEL", "DEL", "EXISTS",
    "PEXPIRE", "TIME",
)  # fmt: skip
_SCRIPTS: Final = (
    Step("+evalsha", ("EVALSHA", "0" * 40, 0)),
    Step("+script|load", ("SCRIPT", "LOAD", "return 1")),
)
_WAITS: Final[dict[str, tuple[str | int, ...]]] = {"replica": ("WAIT", 0, 1), "disk": ("WAITAOF", 0, 0, 1)}


def _steps(namespace: str, key: str, *names: str) -> tuple[Step, ...]:
    return tuple(Step("+time", ("TIME",)) if name == "TIME" else _step(namespace, key, name) for name in names)


def _step(namespace: str, key: str, name: str) -> Step:
    more = (key if word == _SAME else word for word in _FORMS[name])
    return Step(f"+{name.lower()}", (name, key, *more), f"~{namespace}:*")


def _publishing(layout: Layout) -> Step:
    """To nobody's inbox: what is announced is heard by all."""
    return Step("+publish", ("PUBLISH", layout.inboxes + _NONE, ""), f"&{layout.inboxes}*")


def _listening(layout: Layout) -> tuple[Step, ...]:
    channels = {layout.inboxes + _NONE: f"{layout.inboxes}*", layout.announcements: layout.announcements}
    return tuple(Step("+subscribe", ("SUBSCRIBE", channel), f"&{right}") for channel, right in channels.items())


def _tracking(layout: Layout) -> tuple[Step, ...]:
    prefixes: Sequence[str] = [word for prefix in layout.prefixes_of_versions for word in ("PREFIX", prefix)]
    return (
        Step("+client|id", ("CLIENT", "ID")),
        Step("+client|tracking", ("CLIENT", "TRACKING", "ON", "REDIRECT", 0, "BCAST", *prefixes)),
        Step("+client|tracking", ("CLIENT", "TRACKING", "OFF")),
        Step("+subscribe", ("SUBSCRIBE", "__redis__:invalidate"), "&__redis__:invalidate"),
    )
