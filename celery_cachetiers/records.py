"""What a record in the journal looks like: a write, packed as an entry is, and signed for a key of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_cachetiers.codec import Codec
from celery_cachetiers.entry import Times, tag_names, unpack_body
from celery_cachetiers.errors import UnusableEntry
from celery_cachetiers.journal_port import Record
from celery_cachetiers.writes import Write


def record_key(digest: str) -> str:
    """The key that a record is signed for: it must never be taken for an entry."""
    return f"{digest}:write"


def packed(codec: Codec, write: Write, tags: Sequence[str]) -> bytes:
    """The body of a record, which can be read again. Raises `UnusableEntry`."""
    content = {
        "task": write.task,
        "args": list(write.args),
        "kwargs": dict(write.kwargs),
        "value": write.value,
        "deleted": write.deleted,
        "at": write.written_at,
    }
    times = Times(write.written_at, write.written_at, write.written_at, 0.0)
    return codec.encode(content, times, tags, record_key(write.key), readable=True)


def unpacked(codec: Codec, record: Record) -> tuple[Write, tuple[str, ...]]:
    """A record's write, and the tags that it invalidates. Raises `UnusableEntry`."""
    raw = unpack_body(record.body)
    content: Any = codec.decode(raw, record_key(record.key))
    try:
        write = Write(
            task=content["task"],
            args=tuple(content["args"]),
            kwargs=dict(content["kwargs"]),
            key=record.key,
            value=content["value"],
            deleted=content["deleted"],
            sequence=record.sequence,
            written_at=content["at"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableEntry("malformed") from error
    return write, tag_names(raw.header)
