"""What every codec promises: values come back, fresh each time, and nothing but `UnusableEntry` is raised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from celery_cachetiers.entry import Times, tag_block, unpack
from celery_cachetiers.errors import UnusableEntry
from celery_cachetiers.ports import Codec

KEY = "0123456789abcdef0123456789abcdef"
TIMES = Times(1_700_000_000.0, 1_700_000_300.0, 1_700_000_360.0, 0.25)
TAGS = ("@all", "user:1")
STAMP = b"nonce--1nonce--2"


class CodecConformance:
    """Subclass it with a fixture ``codec`` that returns a `celery_cachetiers.ports.Codec`.

    Attributes:
        values: What the codec must carry.
        unserializable: What it cannot carry.
    """

    values: ClassVar[Sequence[object]] = (None, True, 0, 1.5, "", "grün \0", [1, [2]], {"a": {"b": None}})
    unserializable: ClassVar[Sequence[object]] = (lambda: None,)

    def test_a_value_comes_back(self, codec: Codec) -> None:
        for value in self.values:
            body = codec.encode(value, TIMES, TAGS, KEY)

            got = codec.decode(unpack(body + STAMP), KEY)
            assert got == value, value
            assert type(got) is type(value)

    def test_a_value_is_made_afresh_each_time(self, codec: Codec) -> None:
        raw = unpack(codec.encode([1, [2]], TIMES, TAGS, KEY) + STAMP)
        first = codec.decode(raw, KEY)
        assert isinstance(first, list)
        first[1].append(3)

        assert codec.decode(raw, KEY) == [1, [2]]

    def test_a_body_carries_times_and_tag_names(self, codec: Codec) -> None:
        raw = unpack(codec.encode("value", TIMES, TAGS, KEY) + STAMP)

        assert raw.header.times == TIMES
        assert raw.header.tag_block == tag_block(TAGS)
        assert raw.stamp == STAMP

    def test_a_value_that_cannot_be_carried_is_unusable_and_nothing_else(self, codec: Codec) -> None:
        for value in self.unserializable:
            assert _is_unusable(lambda value=value: codec.encode(value, TIMES, TAGS, KEY)), value

    def test_a_damaged_payload_is_a_value_or_unusable_and_nothing_else(self, codec: Codec) -> None:
        raw = unpack(codec.encode({"a": [1, "text"]}, TIMES, TAGS, KEY) + STAMP)
        for at in range(len(raw.payload)):
            for payload in (raw.payload[:at], raw.payload[:at] + b"\xff" + raw.payload[at + 1 :]):
                _is_unusable(lambda payload=payload: codec.decode(raw._replace(payload=payload), KEY))

    def test_a_foreign_content_type_is_unusable(self, codec: Codec) -> None:
        raw = unpack(codec.encode("value", TIMES, TAGS, KEY) + STAMP)
        header = raw.header._replace(content_type="application/x-of-somebody-else")

        assert _is_unusable(lambda: codec.decode(raw._replace(header=header), KEY))


def _is_unusable(act: object) -> bool:
    assert callable(act)
    try:
        act()
    except UnusableEntry:
        return True
    return False
