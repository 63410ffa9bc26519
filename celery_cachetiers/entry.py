"""What one entry looks like in Redis: it decides the bytes, and leaves the value inside them to the codec.

An entry is ``body + stamp``. The body is made before the tag versions are known to hold, so whoever stores
it, the Lua script or the client, appends the stamp: 8 raw bytes per tag, in the order of the tag names.
Nothing has to be parsed to splice it. Little-endian:

======  =====  ==========================================================================
offset  bytes  content
======  =====  ==========================================================================
0       2      magic ``ct``
2       1      wire version, 1
3       1      flags, 0 (reserved: a reader that meets another value takes it as newer)
4       32     computed_at, fresh_until, expires_at, compute_seconds, each an f64
36      2      number of tags
38      4      length of the tag-name block
42      4      lengths of content type, content encoding, compression, signature, a u8 each
46             tag-name block, content type, content encoding, compression, signature
               payload: whatever lies between here and the stamp
-8 n           stamp of n tags
======  =====  ==========================================================================

The length of the payload is not stored. Bytes that were cut off or appended therefore shift the stamp, which
then equals no tag version: they end as a miss at the stamp (or at the signature), not here.

The parts are named tuples, not frozen dataclasses: `unpack` is part of every L2 hit, and three frozen
dataclasses take it from 1.8 to 3.0 µs, as each of their fields is set through ``object.__setattr__``.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Final, NamedTuple

from celery_cachetiers.errors import UnusableEntry

MAGIC: Final = b"ct"
WIRE_VERSION: Final = 1
NONCE_BYTES: Final = 8

_FIXED: Final = struct.Struct("<2sBB4dHI4B")
_FIXED_BYTES: Final = _FIXED.size
_TIMES: Final = struct.Struct("<4d")
_TAG_COUNT_AT: Final = slice(36, 38)
_NONCE_LENGTHS: Final = frozenset({NONCE_BYTES})

TIMES_AT: Final = slice(4, 4 + _TIMES.size)
"""Where the times lie: two entries under one key never have the same."""
_compact_json: Final = json.JSONEncoder(separators=(",", ":")).encode


class Missing(enum.Enum):
    """The type of `MISSING`; an enum, so that type checkers narrow on ``is`` and pickling keeps identity."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING
"""A miss, where ``None`` is a value like any other. It is true, as any object: compare by ``is MISSING``."""


class Times(NamedTuple):
    """When an entry was computed and how long it may be served.

    Attributes:
        computed_at: Start of the compute, epoch seconds.
        fresh_until: End of the soft TTL, epoch seconds; stale from here on.
        expires_at: End of the hard TTL, epoch seconds; expired from here on.
        compute_seconds: What the compute took.
    """

    computed_at: float
    fresh_until: float
    expires_at: float
    compute_seconds: float


class Header(NamedTuple):
    """Everything of an entry but its payload and its stamp.

    Attributes:
        times: When it was computed and how long it may be served.
        tag_count: How many nonces the stamp has.
        tag_block: The tag names as `tag_block` writes them; equal bytes are equal names in equal order.
        content_type: How the payload is serialized, a MIME type.
        content_encoding: Character set of the payload, or ``binary``.
        compression: Name of the payload's compression, empty for none.
        signature: Written and verified by the codec, empty for none.
    """

    times: Times
    tag_count: int
    tag_block: bytes
    content_type: str
    content_encoding: str
    compression: str = ""
    signature: bytes = b""


class RawEntry(NamedTuple):
    """An entry as it was read: taken apart, its value not decoded, signature and stamp not yet compared."""

    header: Header
    payload: bytes
    stamp: bytes

    def __repr__(self) -> str:
        return f"RawEntry({self.header!r}, payload of {len(self.payload)} bytes, stamp={self.stamp.hex()})"


def tag_block(names: Iterable[str]) -> bytes:
    r"""Return the tag names as they lie in an entry: a compact JSON array in ASCII, as Lua can read it.

    >>> tag_block(["user:1", "gr\u00fcn"])
    b'["user:1","gr\\u00fcn"]'
    """
    names = tuple(names)
    text = '","'.join(names)
    # Most names need no escaping: to see that takes a third of the encoder's time, and every L2 hit compares blocks.
    if names and text.isascii() and text.isprintable() and "\\" not in text and text.count('"') == 2 * len(names) - 2:
        return f'["{text}"]'.encode("ascii")
    return _compact_json(names).encode("ascii")


def tag_names(header: Header) -> tuple[str, ...]:
    """Return the names in the entry's tag block, in the order of its stamp.

    Raises:
        UnusableEntry: ``malformed``, when the block is not an array of as many strings as there are tags.
    """
    names = _names_in(header.tag_block)
    if len(names) != header.tag_count:
        raise UnusableEntry("malformed")
    return names


def result_tags(block: bytes, own: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the names that a tag block has beyond those of a call, ``None`` if it does not begin with these.

    Raises:
        UnusableEntry: ``malformed``, when the block is not an array of strings.
    """
    names = _names_in(block)
    return names[len(own) :] if names[: len(own)] == own else None


def _names_in(block: bytes) -> tuple[str, ...]:
    try:
        names = json.loads(block)
    except (ValueError, RecursionError) as error:
        raise UnusableEntry("malformed") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UnusableEntry("malformed")
    return tuple(names)


def pack_times(times: Times) -> bytes:
    """Return the times as they lie at `TIMES_AT`."""
    return _TIMES.pack(*times)


def pack_head(header: Header) -> bytes:
    """Return the bytes before the signature; `pack_body` joins them with signature and payload.

    Raises:
        UnusableEntry: ``malformed``, when a reader would refuse it: times that are not finite, more than
            65,535 tags, a content type, encoding or compression past 255 bytes or outside ASCII.
    """
    times = header.times
    seconds = (times.computed_at, times.fresh_until, times.expires_at, times.compute_seconds)
    names = (header.content_type, header.content_encoding, header.compression)
    if not isfinite(sum(seconds)):
        raise UnusableEntry("malformed")
    try:
        lengths = (*map(len, names), len(header.signature))
        counts = (header.tag_count, len(header.tag_block))
        fixed = _FIXED.pack(MAGIC, WIRE_VERSION, 0, *seconds, *counts, *lengths)
        return b"".join((fixed, header.tag_block, "".join(names).encode("ascii")))
    except (struct.error, UnicodeEncodeError) as error:
        raise UnusableEntry("malformed") from error


def pack_body(header: Header, payload: bytes) -> bytes:
    """Return an entry without its stamp: append one nonce per tag, and `unpack` reads it.

    Raises:
        UnusableEntry: ``malformed``, as `pack_head` does.
    """
    return b"".join((pack_head(header), header.signature, payload))


def unpack(data: bytes) -> RawEntry:
    """Return an entry taken apart; neither its signature nor its stamp has been compared.

    Args:
        data: What Redis holds: body and stamp.

    Raises:
        UnusableEntry: ``foreign`` (not ours), ``newer`` (a later wire version or an unknown flag),
            ``truncated`` (shorter than its own lengths) or ``malformed``; never anything else.

    Costs:
        About 2 µs, and one copy of the payload.
    """
    if len(data) < _FIXED_BYTES:
        raise UnusableEntry("truncated" if MAGIC.startswith(data[:2]) else "foreign")
    (magic, version, flags, computed_at, fresh_until, expires_at, compute_seconds, tag_count,
     tags_length, type_length, encoding_length, compression_length, signature_length,
    ) = _FIXED.unpack_from(data)  # fmt: skip
    if magic != MAGIC or version != WIRE_VERSION or flags:
        raise UnusableEntry(_unknown_layout(magic, version))
    names_at = _FIXED_BYTES + tags_length
    encoding_at = type_length + encoding_length
    names_length = encoding_at + compression_length
    signature_at = names_at + names_length
    payload_at = signature_at + signature_length
    stamp_at = len(data) - NONCE_BYTES * tag_count
    if stamp_at < payload_at:
        raise UnusableEntry("truncated")
    block, names = data[_FIXED_BYTES:names_at], data[names_at:signature_at]
    # One test for four numbers: a sum with an inf or a nan in it is never finite.
    finite = isfinite(computed_at + fresh_until + expires_at + compute_seconds)
    if not (finite and block.isascii() and names.isascii()):
        raise UnusableEntry("malformed")
    text = names.decode("ascii")
    return RawEntry(
        Header(
            Times(computed_at, fresh_until, expires_at, compute_seconds),
            tag_count,
            block,
            text[:type_length],
            text[type_length:encoding_at],
            text[encoding_at:],
            data[signature_at:payload_at],
        ),
        data[payload_at:stamp_at],
        data[stamp_at:],
    )


def unpack_body(body: bytes) -> RawEntry:
    """Return an entry that has no stamp yet, taken apart; its stamp is zeros. Raises as `unpack`."""
    return unpack(body + bytes(NONCE_BYTES * int.from_bytes(body[_TAG_COUNT_AT], "little")))


def stamp_matches(raw: RawEntry, nonces: Sequence[bytes | None]) -> bool:
    """Return whether every tag still has the version that the entry was computed under.

    Args:
        raw: The entry.
        nonces: The tags' present versions, in the order of the entry's tag names; ``None`` for a missing one.
            A missing nonce never validates, nor does one that is not 8 bytes long: joined, two wrong lengths
            could make up a right one.
    """
    if None in nonces:
        return False
    return b"".join(nonces) == raw.stamp and _NONCE_LENGTHS.issuperset(map(len, nonces))  # type: ignore[arg-type]


def stamp_begins(raw: RawEntry, nonces: Sequence[bytes | None]) -> bool:
    """Return whether the first tags of an entry still have the versions that it was computed under."""
    return stamp_matches(raw._replace(stamp=raw.stamp[: NONCE_BYTES * len(nonces)]), nonces)


def _unknown_layout(magic: bytes, version: int) -> str:
    if magic != MAGIC:
        return "foreign"
    return "newer" if version >= WIRE_VERSION else "malformed"
