"""Values to bytes and back: the same value as Celery's, and no trust in what lies in Redis.

``python -m tests.unit.test_codec`` writes the stored entries of the present wire version, once. They are
never written again: a release that cannot read them would turn every user's cache into misses.
"""

from __future__ import annotations

import bz2
import datetime
import decimal
import functools
import importlib.util
import lzma
import tracemalloc
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import PicklingError
from typing import Any

import pytest
from celery import Celery
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import compression as kombu_compression
from kombu.exceptions import EncodeError, SerializerNotInstalled
from kombu.serialization import dumps, loads, register, registry, unregister

from celery_cachetiers.codec import Codec
from celery_cachetiers.entry import (
    Header,
    RawEntry,
    Times,
    pack_body,
    stamp_matches,
    tag_block,
    tag_names,
    unpack,
)
from celery_cachetiers.errors import ConfigurationError, UnusableEntry
from celery_cachetiers.records import packed
from celery_cachetiers.writes import Write

DATA = Path(__file__).parent / "data"
TIMES = Times(1_700_000_000.5, 1_700_000_300.5, 1_700_000_360.5, 0.25)
TAGS = ("~all", "~task:proj.profile", "user:1")
NONCES = [b"nonce--1", b"nonce--2", b"nonce--3"]
STAMP = b"".join(NONCES)
KEY = "9c1185a5c5e9fc54612808977ee8f548"
SECRET = b"a secret of some length"
MIB = 1024 * 1024

COMPRESSIONS = ["gzip", "bzip2", "lzma"]
if "application/zstd" in kombu_compression.encoders():
    COMPRESSIONS.append("zstd")

JSON = Codec("json", ["json"])
PICKLE = Codec("pickle", ["pickle"])
SIGNED = Codec("json", ["json"], signing_keys=[SECRET])

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.dates()
    | st.times()
    | st.uuids()
    | st.decimals()
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)
pickle_values = st.recursive(
    scalars | st.complex_numbers() | st.frozensets(st.integers()),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)


def entry_of(codec: Codec, value: object, key: str = KEY) -> bytes:
    """What Redis holds for a value."""
    return codec.encode(value, TIMES, TAGS, key) + STAMP


def reason_of(act: Callable[..., object], *args: object) -> str | None:
    """The reason for which the entry is not usable; ``None`` if it is."""
    try:
        act(*args)
    except UnusableEntry as error:
        return error.reason
    return None


def is_hit(codec: Codec, data: bytes) -> bool:
    """What a reader does: take apart, compare the stamp, decode."""
    try:
        raw = unpack(data)
        codec.decode(raw, KEY)
    except UnusableEntry:
        return False
    return stamp_matches(raw, NONCES)


# Transparent: a hit is what Celery would have given.


@functools.cache
def celery_app(serializer: str) -> Celery:
    app = Celery("codec", backend="cache+memory://", set_as_current=False)
    app.conf.update(result_serializer=serializer, accept_content=[serializer])
    return app


def through_celery(serializer: str, value: object) -> object:
    """The value as ``AsyncResult.get()`` gives it, over a real result backend."""
    app, task_id = celery_app(serializer), str(uuid.uuid4())
    app.backend.store_result(task_id, value, "SUCCESS")
    return app.AsyncResult(task_id).get(timeout=1)


@given(json_values)
def test_a_json_hit_equals_what_async_result_gives(value: object) -> None:
    hit = JSON.decode(entry_of(JSON, value), KEY)

    # repr tells 1 from True and 1.0, and takes nan for equal to nan.
    assert repr(hit) == repr(through_celery("json", value))


@given(pickle_values)
def test_a_pickle_hit_equals_what_async_result_gives(value: object) -> None:
    hit = PICKLE.decode(entry_of(PICKLE, value), KEY)

    assert repr(hit) == repr(through_celery("pickle", value))


def needs(serializer: str, module: str) -> Any:
    missing = importlib.util.find_spec(module) is None
    return pytest.param(serializer, marks=pytest.mark.skipif(missing, reason=f"{module} is not installed"))


@pytest.mark.parametrize("serializer", ["json", "pickle", needs("yaml", "yaml"), needs("msgpack", "msgpack")])
@given(value=st.recursive(st.none() | st.booleans() | st.text("abc"), st.lists))
def test_every_serializer_of_kombu_gives_what_kombu_loads_gives(serializer: str, value: object) -> None:
    content_type, encoding, payload = dumps(value, serializer=serializer)
    codec = Codec(serializer, [serializer])

    hit = codec.decode(entry_of(codec, value), KEY)

    assert repr(hit) == repr(loads(payload, content_type, encoding, accept={content_type}))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("signing_keys", [(), (SECRET,)])
@given(value=json_values)
@settings(max_examples=25)
def test_compression_and_signature_change_no_value(
    compression: str, signing_keys: tuple[bytes, ...], value: object
) -> None:
    codec = Codec("json", ["json"], compression, signing_keys=signing_keys)
    padded = [value, "x" * 500]

    hit = codec.decode(entry_of(codec, padded), KEY)

    assert repr(hit) == repr(JSON.decode(entry_of(JSON, padded), KEY))
    assert unpack(entry_of(codec, padded)).header.compression


@given(pickle_values)
def test_encode_does_not_change_the_value(value: object) -> None:
    before = repr(value)

    for codec in (JSON, PICKLE, SIGNED):
        reason_of(codec.encode, value, TIMES, TAGS, KEY)

    assert repr(value) == before


def test_every_hit_is_a_value_of_its_own() -> None:
    raw = unpack(entry_of(JSON, {"roles": ["admin"]}))

    first, second = JSON.decode(raw, KEY), JSON.decode(raw, KEY)

    assert isinstance(first, dict)
    first["roles"].append("root")
    assert second == {"roles": ["admin"]}


def test_an_entry_carries_times_and_tags() -> None:
    raw = unpack(entry_of(JSON, 1))

    assert raw.header.times == TIMES
    assert tag_names(raw.header) == TAGS
    assert stamp_matches(raw, NONCES)


@pytest.mark.parametrize("text", ["grün \ud800", "\x00", ""])
def test_a_key_of_any_text_can_be_signed(text: str) -> None:
    assert SIGNED.decode(entry_of(SIGNED, 1, text), text) == 1


# Compression.


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_payload_that_would_grow_is_stored_as_it_is(compression: str) -> None:
    codec = Codec("json", ["json"], compression)

    assert unpack(entry_of(codec, 7)).payload == b"7"
    assert unpack(entry_of(codec, 7)).header.compression == ""


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_entry_stays_readable_when_compression_is_switched_off(compression: str) -> None:
    data = entry_of(Codec("json", ["json"], compression), "x" * 1000)

    assert len(data) < 500
    assert JSON.decode(data, KEY) == "x" * 1000


@functools.cache
def bomb(compression: str) -> bytes:
    """100 MB of zeros, compressed, without ever having them in memory."""
    makers: dict[str, Any] = {"gzip": zlib.compressobj, "bzip2": bz2.BZ2Compressor, "lzma": lzma.LZMACompressor}
    compressor = makers[compression]()
    zeros = bytes(MIB)
    return b"".join([compressor.compress(zeros) for _ in range(100)] + [compressor.flush()])


def compressed_entry(compression: str, payload: bytes) -> RawEntry:
    _, name = kombu_compression.compress(b"", compression)
    header = Header(TIMES, 3, tag_block(TAGS), "application/json", "utf-8", name)
    return unpack(pack_body(header, payload) + STAMP)


def peak_of(act: Callable[[], object]) -> int:
    """The most bytes that were allocated at one time."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_a_bomb_is_refused_before_it_takes_memory(compression: str) -> None:
    raw = compressed_entry(compression, bomb(compression))
    codec = Codec("json", ["json"], max_bytes=MIB)
    reasons: list[str | None] = []

    peak = peak_of(lambda: reasons.append(reason_of(codec.decode, raw, KEY)))

    assert reasons == ["bomb"]
    assert peak < 16 * MIB  # lzma's own dictionary is 8 MiB


def test_an_lzma_header_cannot_ask_for_memory() -> None:
    honest = lzma.compress(b'"x"', format=lzma.FORMAT_ALONE)
    greedy = honest[:1] + (1 << 30).to_bytes(4, "little") + honest[5:]
    raw = compressed_entry("lzma", greedy)
    reasons: list[str | None] = []

    peak = peak_of(lambda: reasons.append(reason_of(JSON.decode, raw, KEY)))

    assert reasons == ["undecodable"]
    assert peak < 16 * MIB
    assert JSON.decode(compressed_entry("lzma", honest), KEY) == "x"


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_exactly_max_bytes_are_decompressed_and_one_more_is_a_bomb(compression: str) -> None:
    data = entry_of(Codec("json", ["json"], compression), "x" * 998)

    assert Codec("json", ["json"], max_bytes=1000).decode(data, KEY) == "x" * 998
    assert reason_of(Codec("json", ["json"], max_bytes=999).decode, data, KEY) == "bomb"


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_damaged_compression_is_undecodable(compression: str) -> None:
    packed, _ = kombu_compression.compress(b'"' + b"x" * 1000 + b'"', compression)

    for payload in (packed[:-1], packed[:5], b"", b"garbage", packed + b"!", packed + packed):
        raw = compressed_entry(compression, payload)
        assert reason_of(JSON.decode, raw, KEY) == "undecodable"


def test_a_compression_without_a_bounded_decompressor_is_refused() -> None:
    header = Header(TIMES, 3, tag_block(TAGS), "application/json", "utf-8", "application/x-brotli")

    assert reason_of(JSON.decode, unpack(pack_body(header, b"1") + STAMP), KEY) == "refused"


# Limits.


def test_an_entry_of_exactly_max_bytes_is_stored_and_one_more_is_oversize() -> None:
    size = len(JSON.encode("x" * 100, TIMES, TAGS, KEY))
    codec = Codec("json", ["json"], max_bytes=size)

    assert codec.decode(entry_of(codec, "x" * 100), KEY) == "x" * 100
    assert reason_of(codec.encode, "x" * 101, TIMES, TAGS, KEY) == "oversize"


def test_a_payload_is_oversize_before_compression_however_small_it_would_be_after() -> None:
    codec = Codec("json", ["json"], "gzip", max_bytes=1000)

    assert reason_of(codec.encode, "x" * 999, TIMES, TAGS, KEY) == "oversize"
    assert codec.decode(entry_of(codec, "x" * 998), KEY) == "x" * 998


def test_an_entry_from_a_process_with_a_higher_limit_is_oversize() -> None:
    data = entry_of(JSON, "x" * 999)

    assert reason_of(Codec("json", ["json"], max_bytes=1000).decode, data, KEY) == "oversize"


# What cannot be written or read.


class Hostile:
    """Its serialization raises."""

    def __json__(self) -> object:
        raise ZeroDivisionError

    def __reduce__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("codec", [JSON, PICKLE])
@pytest.mark.parametrize("value", [lambda: None, Hostile()], ids=["lambda", "hostile"])
def test_a_value_that_its_serializer_does_not_take_is_unserializable(codec: Codec, value: object) -> None:
    with pytest.raises(UnusableEntry, match="unserializable") as caught:
        codec.encode(value, TIMES, TAGS, KEY)

    assert isinstance(caught.value.__cause__, (TypeError, PicklingError, ZeroDivisionError, EncodeError))


def test_a_value_that_contains_itself_is_unserializable() -> None:
    endless: list[object] = []
    endless.append(endless)

    assert reason_of(JSON.encode, endless, TIMES, TAGS, KEY) == "unserializable"


def test_a_value_that_json_writes_and_cannot_read_is_a_miss() -> None:
    data = entry_of(JSON, {"__type__": "no such type", "__value__": 1})

    assert reason_of(JSON.decode, data, KEY) == "undecodable"


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[" * 200_000, b"nope", b'{"__type__":[],"__value__":1}'])
def test_a_payload_that_is_not_json_is_undecodable(payload: bytes) -> None:
    raw = unpack(entry_of(JSON, 1))._replace(payload=payload)

    with pytest.raises(UnusableEntry, match="undecodable") as caught:
        JSON.decode(raw, KEY)

    assert caught.value.__cause__ is not None


def test_a_newer_wire_version_is_a_miss() -> None:
    data = entry_of(JSON, 1)

    assert reason_of(JSON.decode, data[:2] + b"\x02" + data[3:], KEY) == "newer"


@given(st.binary())
def test_random_bytes_are_never_decoded(data: bytes) -> None:
    assert reason_of(JSON.decode, data, KEY) in {"foreign", "truncated"}


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_entry_gives_a_value_or_a_reason_and_nothing_else(data: st.DataObject) -> None:
    whole = entry_of(Codec("json", ["json"], "gzip"), ["x" * 200])
    at = data.draw(st.integers(0, len(whole)))
    damaged = whole[:at] + data.draw(st.binary(max_size=8)) + whole[at + data.draw(st.integers(0, 8)) :]

    reason = reason_of(JSON.decode, damaged, KEY)

    assert reason in {None, "foreign", "newer", "truncated", "malformed", "refused", "bomb", "undecodable"}


@pytest.mark.parametrize("codec", [JSON, PICKLE, SIGNED], ids=["json", "pickle", "signed"])
def test_an_entry_cut_off_anywhere_is_never_a_hit(codec: Codec) -> None:
    data = entry_of(codec, {"user": 1, "name": "Ada"})

    hits = [end for end in range(len(data)) if is_hit(codec, data[:end])]

    assert hits == []
    assert is_hit(codec, data)


@pytest.mark.parametrize("codec", [JSON, PICKLE, SIGNED], ids=["json", "pickle", "signed"])
def test_an_entry_with_bytes_appended_is_never_a_hit(codec: Codec) -> None:
    data = entry_of(codec, {"user": 1, "name": "Ada"})

    hits = [more for more in range(1, 40) for byte in (b"\0", b" ", b"n") if is_hit(codec, data + byte * more)]

    assert hits == []


# Only what Celery accepts.

UNPICKLED: list[str] = []


def spring() -> None:
    UNPICKLED.append("sprung")


class Trap:
    """Counts how often it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return spring, ()


@pytest.fixture
def unpickled() -> Iterator[list[str]]:
    UNPICKLED.clear()
    yield UNPICKLED
    UNPICKLED.clear()


def test_a_pickle_is_never_unpickled_unless_pickle_is_accepted(unpickled: list[str]) -> None:
    data = entry_of(PICKLE, Trap())

    reason = reason_of(JSON.decode, data, KEY)

    assert (reason, len(unpickled)) == ("refused", 0)
    PICKLE.decode(data, KEY)
    assert len(unpickled) == 1


def test_a_forged_pickle_is_never_unpickled(unpickled: list[str]) -> None:
    reader = Codec("pickle", ["pickle"], signing_keys=[SECRET])
    unsigned = entry_of(PICKLE, Trap())
    forged = entry_of(Codec("pickle", ["pickle"], signing_keys=[b"another"]), Trap())

    reasons = [reason_of(reader.decode, data, KEY) for data in (unsigned, forged)]

    assert (reasons, len(unpickled)) == (["unsigned", "forged"], 0)
    reader.decode(entry_of(reader, Trap()), KEY)
    assert len(unpickled) == 1


@pytest.mark.parametrize("content_type", ["application/data", "application/text", "text/plain", "", "json"])
def test_a_content_type_that_is_not_accepted_is_refused(content_type: str) -> None:
    header = Header(TIMES, 3, tag_block(TAGS), content_type, "utf-8")

    assert reason_of(JSON.decode, unpack(pack_body(header, b"1") + STAMP), KEY) == "refused"


def test_accept_takes_names_and_content_types() -> None:
    reader = Codec("json", ["pickle", "application/json"])

    assert reader.decode(entry_of(PICKLE, {1}), KEY) == {1}
    assert reader.accept == {"application/json", "application/x-python-serialize"}


# Signatures.


def test_a_signed_entry_is_read_by_the_key_that_signed_it() -> None:
    assert SIGNED.decode(entry_of(SIGNED, {"user": 1}), KEY) == {"user": 1}


def test_every_flipped_bit_of_a_signed_entry_is_refused() -> None:
    body = SIGNED.encode({"user": 1}, TIMES, TAGS, KEY)

    survivors = []
    for bit in range(8 * len(body)):
        damaged = bytearray(body)
        damaged[bit // 8] ^= 1 << bit % 8
        if reason_of(SIGNED.decode, bytes(damaged) + STAMP, KEY) is None:
            survivors.append(bit)

    assert survivors == []


def test_every_flipped_bit_of_a_stamp_is_a_miss() -> None:
    body = SIGNED.encode({"user": 1}, TIMES, TAGS, KEY)

    for bit in range(8 * len(STAMP)):
        damaged = bytearray(STAMP)
        damaged[bit // 8] ^= 1 << bit % 8
        assert not is_hit(SIGNED, body + bytes(damaged))


def test_every_cut_of_a_signed_entry_is_refused_without_its_stamp() -> None:
    data = entry_of(SIGNED, {"user": 1})

    assert all(reason_of(SIGNED.decode, data[:end], KEY) for end in range(len(data)))
    assert all(reason_of(SIGNED.decode, data + bytes(end), KEY) for end in range(1, 40))


def test_a_signature_holds_for_one_key_only() -> None:
    assert reason_of(SIGNED.decode, entry_of(SIGNED, 1, key="a"), "b") == "forged"


def test_an_unsigned_entry_is_refused_where_keys_are_set() -> None:
    assert reason_of(SIGNED.decode, entry_of(JSON, 1), KEY) == "unsigned"


def test_a_signed_entry_is_read_where_no_keys_are_set() -> None:
    assert JSON.decode(entry_of(SIGNED, 1), KEY) == 1


def test_keys_are_rotated_without_losing_entries() -> None:
    old, new = (Codec("json", ["json"], signing_keys=[key]) for key in (b"old", b"new"))
    both = Codec("json", ["json"], signing_keys=[b"new", b"old"])

    assert both.decode(entry_of(old, 1), KEY) == 1
    assert new.decode(entry_of(both, 2), KEY) == 2
    assert reason_of(old.decode, entry_of(both, 3), KEY) == "forged"


def test_long_keys_differ_in_their_last_byte() -> None:
    one, other = (Codec("json", ["json"], signing_keys=[b"k" * 200 + end]) for end in (b"1", b"2"))

    assert one.decode(entry_of(one, 1), KEY) == 1
    assert reason_of(other.decode, entry_of(one, 1), KEY) == "forged"


def test_a_signature_of_one_byte_cannot_be_guessed() -> None:
    raw = unpack(entry_of(SIGNED, 1))
    guesses = [raw.header._replace(signature=bytes([byte])) for byte in range(256)]

    reasons = {reason_of(SIGNED.decode, raw._replace(header=guess), KEY) for guess in guesses}

    assert reasons == {"forged"}


def test_signing_keys_are_not_shown() -> None:
    assert "secret" not in repr(SIGNED)

    with pytest.raises(ConfigurationError) as caught:
        Codec("json", ["json"], signing_keys=["a secret"])  # type: ignore[list-item]  # the mistake under test

    assert "secret" not in str(caught.value)


# Settings.


@pytest.fixture
def odd_serializers() -> Iterator[None]:
    """Serializers as projects register them, and one whose library is not installed."""

    def not_installed(*_: object) -> str:
        raise SerializerNotInstalled("no such library")

    def only_numbers(value: object) -> str:
        return str(int(value))  # type: ignore[call-overload]  # raises for others, as it should

    register("not-installed", not_installed, not_installed, "application/x-not-installed")
    register("numbers", only_numbers, int, "application/x-numbers")
    register("write-only", str, None, "application/x-write-only")
    register("wrong", lambda value: value, int, "application/x-wrong")
    register("lossy", str, int, "application/x-lossy")
    yield
    for name in ("not-installed", "numbers", "write-only", "wrong", "lossy"):
        unregister(name)


@pytest.mark.usefixtures("odd_serializers")
def test_what_is_to_be_readable_is_refused_where_it_cannot_be_read_again() -> None:
    codec = Codec("lossy", ["lossy"])

    assert codec.decode(codec.encode("7", TIMES, (), KEY, readable=True), KEY) == 7
    assert codec.encode("seven", TIMES, (), KEY)
    with pytest.raises(UnusableEntry, match="undecodable"):
        codec.encode("seven", TIMES, (), KEY, readable=True)


@pytest.mark.usefixtures("odd_serializers")
def test_a_write_that_could_not_be_read_again_is_no_record() -> None:
    write = Write("proj.order", (), {}, KEY, "a value", False, 0, 1_700_000_000.0)

    with pytest.raises(UnusableEntry, match="undecodable"):
        packed(Codec("lossy", ["lossy"]), write, ())


@pytest.mark.usefixtures("odd_serializers")
@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("cachetiers_serializer", {"serializer": "jsno"}),
        ("cachetiers_serializer", {"serializer": "raw"}),
        ("cachetiers_serializer", {"serializer": None}),
        ("cachetiers_serializer", {"serializer": "application/json"}),
        ("cachetiers_serializer", {"serializer": "pickle"}),
        ("cachetiers_serializer", {"accept": []}),
        ("cachetiers_serializer", {"serializer": "not-installed", "accept": ["not-installed"]}),
        ("cachetiers_serializer", {"serializer": "write-only", "accept": ["write-only"]}),
        ("result_accept_content", {"accept": ["jsno"]}),
        ("result_accept_content", {"accept": "json"}),
        ("result_accept_content", {"accept": None}),
        ("result_accept_content", {"accept": [1]}),
        ("cachetiers_compression", {"compression": "gzpi"}),
        ("cachetiers_compression", {"compression": ""}),
        ("cachetiers_compression", {"compression": 7}),
        ("cachetiers_max_bytes", {"max_bytes": 0}),
        ("cachetiers_max_bytes", {"max_bytes": True}),
        ("cachetiers_max_bytes", {"max_bytes": 1e6}),
        ("cachetiers_max_bytes", {"max_bytes": 512 * MIB + 1}),
        ("cachetiers_signing_key", {"signing_keys": [b""]}),
        ("cachetiers_signing_key", {"signing_keys": b"one key"}),
        ("cachetiers_signing_key", {"signing_keys": [b"good", "text"]}),
    ],
)
def test_a_bad_setting_is_refused_by_name(option: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Codec(**{"serializer": "json", "accept": ["json"], **arguments})  # type: ignore[arg-type]  # mistakes

    assert caught.value.option == option


def test_a_compression_of_ones_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("_encoders", "_decoders"):
        monkeypatch.setitem(getattr(kombu_compression, table), "application/x-own", bytes)

    with pytest.raises(ConfigurationError, match="application/x-own"):
        Codec("json", ["json"], "application/x-own")


@pytest.mark.usefixtures("odd_serializers")
def test_a_serializer_that_does_not_take_none_is_good_for_what_it_takes() -> None:
    codec = Codec("numbers", ["numbers"])

    assert codec.decode(entry_of(codec, 12), KEY) == 12
    assert reason_of(codec.encode, None, TIMES, TAGS, KEY) == "unserializable"


@pytest.mark.usefixtures("odd_serializers")
def test_a_serializer_may_return_text_or_any_kind_of_bytes_and_nothing_else() -> None:
    codec = Codec("wrong", ["wrong"])

    for payload in ("12", b"12", bytearray(b"12"), memoryview(b"12")):
        assert codec.decode(entry_of(codec, payload), KEY) == 12
    assert reason_of(codec.encode, 12, TIMES, TAGS, KEY) == "unserializable"


def test_a_serializer_that_changes_its_content_type_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._encoders, "json", ("application/x-other", "utf-8", str))

    assert reason_of(JSON.encode, 1, TIMES, TAGS, KEY) == "refused"


def test_a_codec_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        JSON.max_bytes = 1  # type: ignore[misc]  # the mistake under test


# Stored entries: what was written by this wire version stays readable.

STORED_VALUE = {
    "name": "Grün \U0001f600",
    "none": None,
    "numbers": [0, -1, 2**70, 0.1],
    "bytes": b"\xff\x00",
    "at": datetime.datetime(2024, 2, 29, 12, 30, 15, 250, datetime.UTC),
    "day": datetime.date(2024, 2, 29),
    "id": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "sum": decimal.Decimal("19.90"),
    "padding": "x" * 300,
}
STORED = {
    "entry-v1-json.bin": JSON,
    "entry-v1-json-gzip-signed.bin": Codec("json", ["json"], "gzip", signing_keys=[SECRET]),
    "entry-v1-json-bzip2.bin": Codec("json", ["json"], "bzip2"),
    "entry-v1-json-lzma.bin": Codec("json", ["json"], "lzma"),
    "entry-v1-pickle-signed.bin": Codec("pickle", ["pickle"], signing_keys=[SECRET]),
}


def write_stored_entries() -> None:
    """Write the stored entries that do not exist yet; a new wire version gets new names."""
    for name, codec in STORED.items():
        path = DATA / name
        if not path.exists():
            path.write_bytes(entry_of(codec, STORED_VALUE))


@pytest.mark.parametrize("name", STORED)
def test_a_stored_entry_is_still_read(name: str) -> None:
    raw = unpack((DATA / name).read_bytes())

    assert STORED[name].decode(raw, KEY) == STORED_VALUE
    assert (raw.header.times, tag_names(raw.header)) == (TIMES, TAGS)
    assert stamp_matches(raw, NONCES)


@pytest.mark.parametrize("name", STORED)
def test_a_stored_entry_would_be_written_the_same_today(name: str) -> None:
    data = (DATA / name).read_bytes()
    raw = unpack(data)

    # From its parts: what a compressor writes may differ between versions of its library.
    assert pack_body(raw.header, raw.payload) + raw.stamp == data


def test_every_stored_entry_is_read_by_a_test() -> None:
    assert {path.name for path in DATA.glob("entry-v*.bin")} == set(STORED)


if __name__ == "__main__":
    write_stored_entries()
