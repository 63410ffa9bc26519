"""The bytes of an entry: what is written can be read, and all other bytes are refused with a reason."""

from __future__ import annotations

import copy
import json
import math
import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_cachetiers.entry import (
    MISSING,
    Header,
    RawEntry,
    Times,
    pack_body,
    pack_head,
    stamp_matches,
    tag_block,
    tag_names,
    unpack,
)
from celery_cachetiers.errors import UnusableEntry

TIMES = Times(1_700_000_000.5, 1_700_000_300.5, 1_700_000_360.5, 0.25)
TAGS = ("~all", "user:1")
STAMP = b"nonce--1" + b"nonce--2"
HEADER = Header(TIMES, 2, tag_block(TAGS), "application/json", "utf-8", "application/x-gzip", b"signed")
ENTRY = pack_body(HEADER, b"payload") + STAMP

names = st.text(st.characters(max_codepoint=127), max_size=255)
finite = st.floats(min_value=-1e300, max_value=1e300)
headers = st.builds(
    lambda times, tags, kind, encoding, compression, signature: Header(
        times, len(tags), tag_block(tags), kind, encoding, compression, signature
    ),
    st.builds(Times, finite, finite, finite, finite),
    st.lists(st.text(), max_size=5),
    names,
    names,
    names,
    st.binary(max_size=255),
)


def reason_of(data: bytes) -> str | None:
    """The reason for which these bytes are no entry; ``None`` if they are one."""
    try:
        unpack(data)
    except UnusableEntry as error:
        return error.reason
    return None


@given(headers, st.binary(), st.data())
def test_what_is_packed_is_unpacked(header: Header, payload: bytes, data: st.DataObject) -> None:
    size = 8 * header.tag_count
    stamp = data.draw(st.binary(min_size=size, max_size=size))

    raw = unpack(pack_body(header, payload) + stamp)

    assert raw == RawEntry(header, payload, stamp)


def test_the_layout_is_the_documented_one() -> None:
    block = b'["~all","user:1"]'
    fixed = struct.pack("<dddd", *TIMES) + struct.pack("<HI", 2, len(block)) + bytes([16, 5, 18, 6])
    texts = b"application/json" + b"utf-8" + b"application/x-gzip"

    expected = b"ct" + bytes([1, 0]) + fixed + block + texts + b"signed" + b"payload" + STAMP

    assert expected == ENTRY
    assert len(b"ct" + bytes([1, 0]) + fixed) == 46


def test_an_entry_without_tags_has_no_stamp() -> None:
    raw = unpack(pack_body(Header(TIMES, 0, tag_block([]), "a/b", ""), b"payload"))

    assert (raw.payload, raw.stamp) == (b"payload", b"")


def test_the_repr_of_an_entry_hides_its_payload() -> None:
    shown = repr(unpack(ENTRY))

    assert "payload of 7 bytes" in shown
    assert "b'payload'" not in shown


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_as_foreign_or_truncated(data: bytes) -> None:
    if data[:2] != b"ct":
        assert reason_of(data) in {"foreign", "truncated"}


@given(st.binary(min_size=42, max_size=400))
def test_bytes_behind_our_magic_are_an_entry_or_refused_and_nothing_else(tail: bytes) -> None:
    data = b"ct\x01\x00" + tail
    if reason_of(data) is None:
        raw = unpack(data)

        assert pack_body(raw.header, raw.payload) + raw.stamp == data


@given(st.integers(0, len(ENTRY) - 1), st.binary(max_size=12), st.integers(0, 12))
def test_a_damaged_entry_is_an_entry_or_refused_and_nothing_else(at: int, new: bytes, lost: int) -> None:
    data = ENTRY[:at] + new + ENTRY[at + lost :]
    if reason_of(data) is None:
        raw = unpack(data)

        assert pack_body(raw.header, raw.payload) + raw.stamp == data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"c", "truncated"),
        (b"x", "foreign"),
        (b"\x80\x04", "foreign"),
        (b"PK" + ENTRY[2:], "foreign"),
        (ENTRY[:45], "truncated"),
        (ENTRY[:2] + b"\x02" + ENTRY[3:], "newer"),
        (ENTRY[:2] + b"\x00" + ENTRY[3:], "malformed"),
        (ENTRY[:3] + b"\x01" + ENTRY[4:], "newer"),
        (ENTRY[:36] + b"\xff\xff" + ENTRY[38:], "truncated"),
        (ENTRY[:38] + b"\xff\xff\xff\xff" + ENTRY[42:], "truncated"),
        (ENTRY[:46] + b"\xff" + ENTRY[47:], "malformed"),
        (ENTRY.replace(b"application/json", b"application/js\xc3\xb6"), "malformed"),
        (ENTRY.replace(b"utf-8", b"utf-\xb2"), "malformed"),
        (ENTRY.replace(b"x-gzip", b"x-gzi\xfe"), "malformed"),
    ],
)
def test_bytes_that_are_no_entry_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


@pytest.mark.parametrize("length_at", [42, 43, 44, 45])
def test_a_length_that_leads_past_the_end_is_truncated(length_at: int) -> None:
    assert reason_of(ENTRY[:length_at] + b"\xff" + ENTRY[length_at + 1 :]) == "truncated"


@pytest.mark.parametrize("end", range(len(pack_head(HEADER)) + len(HEADER.signature) + len(STAMP)))
def test_an_entry_cut_off_before_its_payload_is_truncated(end: int) -> None:
    assert reason_of(ENTRY[:end]) == "truncated"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", range(4))
def test_times_that_are_not_finite_are_malformed(field: int, number: float) -> None:
    at = 4 + 8 * field

    assert reason_of(ENTRY[:at] + struct.pack("<d", number) + ENTRY[at + 8 :]) == "malformed"


def test_infinities_that_cancel_out_are_malformed() -> None:
    times = struct.pack("<dddd", math.inf, -math.inf, 0.0, 0.0)

    assert reason_of(ENTRY[:4] + times + ENTRY[36:]) == "malformed"


@pytest.mark.parametrize(
    "header",
    [
        HEADER._replace(times=Times(0.0, math.nan, 0.0, 0.0)),
        HEADER._replace(times=Times(0.0, 0.0, math.inf, 0.0)),
        HEADER._replace(tag_count=65_536),
        HEADER._replace(content_type="a" * 256),
        HEADER._replace(content_encoding="grün"),
        HEADER._replace(compression="x" * 256),
        HEADER._replace(signature=b"s" * 256),
    ],
)
def test_what_no_reader_would_take_is_not_written(header: Header) -> None:
    with pytest.raises(UnusableEntry, match="malformed"):
        pack_body(header, b"payload")


@given(st.lists(st.text(st.characters()) | st.text('ab\\",:/\x7f\n', max_size=4), max_size=5))
def test_a_tag_block_is_what_the_json_encoder_writes(tags: list[str]) -> None:
    assert tag_block(tags) == tag_block(iter(tags)) == json.dumps(tags, separators=(",", ":")).encode()


@given(st.lists(st.text(st.characters()), max_size=5))
def test_tag_names_come_back_from_their_block(tags: list[str]) -> None:
    block = tag_block(tags)

    assert tag_names(Header(TIMES, len(tags), block, "", "")) == tuple(tags)
    assert block.isascii()


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"[",
        b"{}",
        b'"ab"',
        b"[1,2]",
        b'["one"]',
        b'["a","b","c"]',
        b'["a",null]',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_block_that_does_not_name_the_tags_is_malformed(block: bytes) -> None:
    with pytest.raises(UnusableEntry, match="malformed"):
        tag_names(Header(TIMES, 2, block, "", ""))


def test_the_block_is_the_same_json_that_lua_reads() -> None:
    assert json.loads(tag_block(["a b", 'quo"te', "grün", "\U0001f600"])) == [
        "a b",
        'quo"te',
        "grün",
        "\U0001f600",
    ]
    assert tag_block(["a", "grün"]) == b'["a","gr\\u00fcn"]'


def test_the_stamp_matches_the_versions_it_was_made_of() -> None:
    assert stamp_matches(unpack(ENTRY), [b"nonce--1", b"nonce--2"])


@pytest.mark.parametrize(
    "nonces",
    [
        [b"nonce--1", b"nonce--3"],
        [b"nonce--2", b"nonce--1"],
        [b"nonce--1"],
        [b"nonce--1", b"nonce--2", b"nonce--3"],
        [b"nonce--1", b"nonce--2", None],
        [b"nonce--1", None],
        [None, None],
        [],
        [b"nonce--1nonce--2"],
        [b"nonce--1n", b"once--2"],
        [b"", STAMP],
    ],
)
def test_the_stamp_matches_no_other_versions(nonces: list[bytes | None]) -> None:
    assert not stamp_matches(unpack(ENTRY), nonces)


def test_a_missing_nonce_never_validates_even_in_an_entry_without_tags() -> None:
    raw = unpack(pack_body(Header(TIMES, 0, tag_block([]), "", ""), b""))

    assert not stamp_matches(raw, [None])


def test_missing_stays_one_object() -> None:
    copies = [copy.copy(MISSING), copy.deepcopy(MISSING), pickle.loads(pickle.dumps(MISSING))]

    assert all(same is MISSING for same in copies)
    assert repr(MISSING) == "MISSING"
