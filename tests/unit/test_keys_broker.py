"""Keys on both sides of the broker: the caller's arguments and what kombu's serializers make of them have one key.

Every strategy here is in one of two lists, what a serializer sends and what it refuses, and either is asserted:
nothing is passed over in silence.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.exceptions import DecodeError, EncodeError
from kombu.serialization import dumps, loads

from celery_cachetiers.binder import compile_binder
from celery_cachetiers.canonical import canonical
from celery_cachetiers.dialects import Dialect, dialect_of
from celery_cachetiers.errors import UncacheableArgument
from celery_cachetiers.keys import KeyMaker

ACCEPT = {"application/json", "application/x-python-serialize", "application/x-yaml", "application/x-msgpack"}
SERIALIZERS = ["json", "msgpack", "yaml", "pickle"]
Strategy = st.SearchStrategy[Any]


def task(a: object, *rest: object, b: object = None, **options: object) -> None:
    """A body that takes everything."""


def short(a: object) -> None:
    """A body of one argument."""


def keys_of(function: Callable[..., Any]) -> dict[str, KeyMaker]:
    """A key maker for each serializer."""
    binder = compile_binder(function, skip_first=False)
    return {name: KeyMaker("tests.task", binder, dialect_of(name)) for name in SERIALIZERS}


KEYS, SHORT_KEYS = keys_of(task), keys_of(short)


def through(body: Any, serializer: str) -> Any:
    """What the worker gets. Raises `EncodeError` or `DecodeError` if the serializer refuses."""
    content_type, encoding, payload = dumps(body, serializer=serializer)
    return loads(payload, content_type, encoding, accept=ACCEPT)


def digest(value: object, serializer: str) -> str:
    """The key of a call with this argument."""
    return SHORT_KEYS[serializer].digest((value,), {})


def is_same(a: Any, b: Any) -> bool:
    """Whether no body could tell the two apart: equality with types, nan included. Told without `canonical`."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            any(is_same(key, other) and is_same(a[key], b[other]) for other in b) for key in a
        )
    if isinstance(a, (set, frozenset)):
        return len(a) == len(b) and all(any(is_same(one, other) for other in b) for one in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, (datetime, time)):
        return repr(a) == repr(b)
    if isinstance(a, Point):
        return is_same((a.x, a.y), (b.x, b.y))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return repr(a) == repr(b) if isinstance(a, Decimal) else a == b


# ---- values ----------------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Rights(IntFlag):
    READ = 1
    WRITE = 2


class Name(str, Enum):  # noqa: UP042 - the older form of a StrEnum is the one to test
    ANN = "ann"


class Ratio(float, Enum):
    HALF = 0.5


class Raw(bytes, Enum):
    X = b"x"


class Text(str):
    def __str__(self) -> str:
        return "never sent"


class Number(int):
    def __repr__(self) -> str:
        return "never sent"


class Listed(list[Any]):
    pass


class Mapped(dict[Any, Any]):
    pass


class Later(datetime):
    pass


class Identity(UUID):
    pass


class Jsonable:
    def __init__(self, content: object) -> None:
        self.content = content

    def __json__(self) -> object:
        return self.content


@dataclasses.dataclass(frozen=True)
class Point:
    x: Any
    y: Any = 0


Pair = namedtuple("Pair", "x y")

surrogates = st.text(st.sampled_from("a\ud83d\ude00\U0001f600\ud800\\u"))
texts = st.text() | st.text(st.characters(max_codepoint=0x2100)) | st.sampled_from(["<<", "=", "~", "on", "1_0", "0x1"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary()
offsets = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
odd_offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
named_offsets = st.builds(timezone, st.just(timedelta(hours=1)), st.sampled_from(["CET", "MEZ"]))
zones = st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "UTC"]).map(ZoneInfo)
zone_like = st.none() | offsets | odd_offsets | named_offsets | zones
datetimes = st.datetimes(timezones=zone_like, allow_imaginary=True)
times = st.times(timezones=zone_like)
folded = st.builds(datetime.replace, datetimes, fold=st.sampled_from([0, 1]))
decimals = st.decimals(allow_nan=False) | st.just(Decimal("NaN"))  # a signalling NaN cannot be hashed
exact = decimals | st.uuids() | st.dates()
members = st.sampled_from([Level.LOW, Rights.READ | Rights.WRITE, Name.ANN, Ratio.HALF])
subclassed = st.builds(Text, texts) | st.builds(Number) | st.just(Raw.X) | members
refused_everywhere_but_pickle = (
    st.just(Colour.RED)
    | st.timedeltas()
    | st.complex_numbers()
    | st.fractions()
    | st.just(PurePosixPath("a/b"))
    | st.builds(range, st.integers(0, 5))
    | st.frozensets(scalars)
    | st.builds(Point, scalars)
)
hashable_natives = scalars | exact | folded | times | subclassed | refused_everywhere_but_pickle


def containers(inner: Strategy, keys: Strategy, *more: Strategy) -> Strategy:
    """Lists, tuples and dicts, and what else a serializer sends."""
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        *more,
    )


def nested(leaves: Strategy, grow: Callable[[Strategy], Strategy]) -> Strategy:
    return st.recursive(leaves, grow, max_leaves=8)


json_keys = st.text() | surrogates | st.integers() | st.floats() | st.booleans() | st.none() | members
json_values = nested(
    scalars
    | surrogates
    | st.decimals()
    | exact
    | folded
    | times
    | subclassed
    | st.builds(Later, st.just(2026), st.just(1), st.just(2)),
    lambda inner: containers(
        inner,
        json_keys,
        st.builds(Pair, inner, inner),
        st.lists(inner, max_size=3).map(Listed),
        st.dictionaries(json_keys, inner, max_size=3).map(Mapped),
        st.dictionaries(json_keys, inner, max_size=3).map(OrderedDict),
        st.builds(Jsonable, inner),
    ),
)
msgpack_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | texts
    | st.binary()
    | st.binary().map(bytearray)
    | st.binary().map(memoryview)
    | subclassed
)
msgpack_keys = st.text() | st.binary() | st.builds(Text, st.text()) | st.just(Name.ANN)
msgpack_values = nested(
    msgpack_scalars | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary()),
    lambda inner: containers(
        inner, msgpack_keys, st.builds(Pair, inner, inner), st.dictionaries(msgpack_keys, inner).map(Mapped)
    ),
)
yaml_datetimes = st.datetimes(timezones=st.none() | offsets | st.just(UTC))
yaml_scalars = scalars | surrogates | st.dates() | st.builds(datetime.replace, yaml_datetimes, fold=st.just(1))
yaml_values = nested(yaml_scalars, lambda inner: containers(inner, yaml_scalars, st.sets(yaml_scalars, max_size=3)))
pickle_values = nested(
    hashable_natives | surrogates | st.binary().map(bytearray) | st.builds(Identity, st.uuids().map(str)),
    lambda inner: containers(
        inner,
        hashable_natives,
        st.sets(hashable_natives, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Point, inner, inner),
        st.lists(inner, max_size=3).map(Listed),
        st.dictionaries(hashable_natives, inner, max_size=3).map(OrderedDict),
        st.dictionaries(hashable_natives, inner, max_size=3).map(lambda found: defaultdict(list, found)),
    ),
)
SENT = {"json": json_values, "msgpack": msgpack_values, "yaml": yaml_values, "pickle": pickle_values}

# ---- what is sent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", SERIALIZERS)
@given(st.data())
def test_caller_and_worker_have_the_same_key(serializer: str, data: st.DataObject) -> None:
    args = data.draw(st.lists(SENT[serializer], min_size=1, max_size=3))
    kwargs = data.draw(st.dictionaries(st.sampled_from(["b", "x", "y"]), SENT[serializer], max_size=2))
    body = through((args, kwargs, {"chain": None}), serializer)

    assert KEYS[serializer].digest(*body[:2]) == KEYS[serializer].digest(args, kwargs)


@pytest.mark.parametrize("serializer", SERIALIZERS)
@given(st.data())
def test_a_second_trip_changes_nothing(serializer: str, data: st.DataObject) -> None:
    value = data.draw(SENT[serializer])
    once = through(value, serializer)

    assert digest(through(once, serializer), serializer) == digest(value, serializer)


NEAR: list[Any] = [
    0, 1, True, 1.0, -0.0, 0.0, False, None, "1", "1.0", "true", "null", "None", b"1", "", b"", math.nan, "NaN",
    Level.LOW,
    Number(1), Text("1"), Name.ANN, "ann", date(2026, 1, 1), datetime(2026, 1, 1), "2026-01-01",
    datetime(2026, 1, 1, fold=1),
    datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")), time(0), time(0, tzinfo=UTC),
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(0), "Z")), datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    Decimal(1), Decimal("1.0"), Decimal("1E0"), UUID(int=1), UUID(int=1).hex, "\ud83d\ude00", "\U0001f600", "\ud83d",
    Fraction(1), timedelta(1), Colour.RED, "red", frozenset({1}), PurePosixPath("1"), 2**70, float(2**70), 10**700,
]  # fmt: skip
near_keys = st.sampled_from([1, True, 1.0, None, "1", "true", "1.0", "null", b"1", Level.LOW, Text("1"), "a"])
near = st.recursive(
    st.sampled_from(NEAR),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.lists(inner, max_size=2).map(tuple),
        st.builds(Pair, inner, inner),
        st.dictionaries(near_keys, inner, max_size=2),
        st.builds(Point, inner),
        st.sets(st.sampled_from(NEAR), max_size=2),
    ),
    max_leaves=2,
)


def sent_or_none(value: object, serializer: str) -> tuple[Any] | None:
    """What the worker gets, in a tuple; ``None`` if the serializer refuses."""
    try:
        return (through(value, serializer),)
    except (EncodeError, DecodeError):
        return None


@pytest.mark.parametrize("serializer", SERIALIZERS)
@given(near, near)
@example([1, 2], (1, 2))
@example({1: None}, {"1": None})
@example({"a": 1, "b": 2}, {"b": 2, "a": 1})
def test_two_calls_have_one_key_if_and_only_if_the_worker_cannot_tell_them_apart(
    serializer: str, one: object, other: object
) -> None:
    sent, other_sent = sent_or_none(one, serializer), sent_or_none(other, serializer)
    one_key = digest(one, serializer) == digest(other, serializer)

    if sent and other_sent:
        assert one_key == is_same(sent[0], other_sent[0])
    else:  # a direct call at most: what is the same has one key
        assert one_key or not is_same(one, other)


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_each_near_value_is_told_from_each_other_as_the_worker_would(serializer: str) -> None:
    sent = [(value, sent_or_none(value, serializer)) for value in NEAR]
    known = [(value, received[0]) for value, received in sent if received]
    direct_calls_only = [value for value, received in sent if not received]
    assert len(known) > len(NEAR) / 3

    for value, received in known:
        for other, other_received in known:
            one_key = digest(value, serializer) == digest(other, serializer)
            assert one_key == is_same(received, other_received), (value, other)
        assert digest(value, serializer) not in {digest(other, serializer) for other in direct_calls_only}


@pytest.mark.parametrize(
    ("serializers", "one", "other"),
    [
        (["json", "msgpack", "yaml"], (1, 2), [1, 2]),
        (["json", "msgpack"], Pair(1, 2), [1, 2]),
        (["json"], {1: "x", None: "y", False: "z", 1.5: "a"}, {"1": "x", "null": "y", "false": "z", "1.5": "a"}),
        (["json"], {math.nan: 1, math.inf: 2, -math.inf: 3}, {"NaN": 1, "Infinity": 2, "-Infinity": 3}),
        (["json", "msgpack"], Level.LOW, 1),
        (["json", "msgpack"], Name.ANN, "ann"),
        (["json", "msgpack"], Mapped(a=1), {"a": 1}),
        (["msgpack"], bytearray(b"x"), b"x"),
        (["json", "yaml"], datetime(2026, 7, 1, tzinfo=ZoneInfo("UTC")), datetime(2026, 7, 1, tzinfo=UTC)),
        (["json"], {1: "lost", "1": "kept"}, {"1": "kept"}),
        (["json"], {"1": "lost", 1: "kept"}, {"1": "kept"}),
        (["json"], "\ud83d\ude00", "\U0001f600"),
        (["json"], {"\ud83d\ude00": "lost", "\U0001f600": "kept"}, {"\U0001f600": "kept"}),
    ],
)
def test_what_a_serializer_merges_is_one_key(serializers: list[str], one: Any, other: Any) -> None:
    merging = [name for name in SERIALIZERS if name in serializers]

    assert [name for name in merging if digest(one, name) == digest(other, name)] == merging
    assert all(is_same(through(one, name), through(other, name)) for name in merging)
    assert digest(one, "pickle") != digest(other, "pickle")


def test_an_object_that_knows_its_json_is_that_json_where_json_is_sent() -> None:
    value = Jsonable({"a": (1, Jsonable(None))})
    assert through(value, "json") == {"a": [1, None]}

    assert digest(value, "json") == digest({"a": [1, None]}, "json")
    with pytest.raises(UncacheableArgument):
        digest(value, "pickle")


def test_an_extension_type_of_msgpack_is_not_the_list_that_a_named_tuple_becomes() -> None:
    value = msgpack.ExtType(5, b"x")
    assert through(value, "msgpack") == value

    assert digest(value, "msgpack") != digest(tuple(value), "msgpack")
    assert digest(value, "json") == digest(tuple(value), "json")


# ---- what is refused -------------------------------------------------------------------------------------------------

odd_keys = st.tuples(st.integers()) | st.dates() | st.just(Colour.RED) | st.frozensets(st.integers(), min_size=1)
REFUSED = {
    "json": refused_everywhere_but_pickle
    | st.sets(scalars)
    | st.binary().map(bytearray)
    | st.dictionaries(odd_keys | st.binary(), scalars, min_size=1),
    "msgpack": refused_everywhere_but_pickle
    | exact
    | folded
    | times
    | st.sets(scalars)
    | st.integers(min_value=2**64)
    | st.integers(max_value=-(2**63) - 1)
    | st.dictionaries(odd_keys | st.integers() | st.none() | st.booleans() | st.floats(), scalars, min_size=1),
    "yaml": refused_everywhere_but_pickle
    | subclassed
    | times
    | st.decimals()
    | st.uuids()
    | st.binary().map(bytearray)
    | st.builds(Pair, scalars, scalars)
    | st.lists(scalars).map(Listed)
    | st.dictionaries(scalars, scalars).map(Mapped)
    | st.sets(st.tuples(st.integers()), min_size=1)
    | st.dictionaries(st.tuples(st.integers()), st.tuples(scalars), min_size=1),
    "pickle": st.nothing(),
}


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
@given(st.data())
def test_what_a_serializer_refuses_still_has_a_key_for_a_direct_call(serializer: str, data: st.DataObject) -> None:
    value = data.draw(REFUSED[serializer])
    with pytest.raises((EncodeError, DecodeError)):
        through([value], serializer)

    assert ascii(canonical(value, dialect_of(serializer))) == ascii(canonical(value, Dialect.NATIVE))


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_what_pickle_refuses_has_no_key_either(serializer: str) -> None:
    value = (number for number in range(3))
    with pytest.raises(EncodeError):
        through(value, serializer)

    with pytest.raises(UncacheableArgument):
        digest(value, serializer)


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
def test_inside_what_is_refused_nothing_is_merged(serializer: str) -> None:
    with pytest.raises(EncodeError):
        through(Point((1,)), serializer)

    assert digest(Point((1,)), serializer) != digest(Point([1]), serializer)
    assert digest(Point({1: 2}), serializer) != digest(Point({"1": 2}), serializer)


def test_a_memoryview_has_a_key_where_it_is_sent_as_bytes_only() -> None:
    assert digest(memoryview(b"x"), "msgpack") == digest(b"x", "msgpack")
    for serializer in ("json", "yaml", "pickle"):
        with pytest.raises(EncodeError):
            through(memoryview(b"x"), serializer)
        with pytest.raises(UncacheableArgument):
            digest(memoryview(b"x"), serializer)


# ---- kombu's envelope of typed values --------------------------------------------------------------------------------


def envelope(kind: object, content: object) -> dict[str, object]:
    return {"__type__": kind, "__value__": content}


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        (envelope("bytes", "é"), "é".encode()),
        (envelope("base64", "/w=="), b"\xff"),
        (
            envelope("datetime", "2026-01-02T03:04:05+01:00"),
            datetime(2026, 1, 2, 3, 4, 5, 0, timezone(timedelta(hours=1))),
        ),
        (envelope("date", "2026-01-02T03:04"), date(2026, 1, 2)),
        (envelope("time", "03:04"), time(3, 4)),
        (envelope("decimal", "1.50"), Decimal("1.50")),
        (envelope("uuid", {"hex": "0" * 31 + "7"}), UUID(int=7)),
        (Mapped(envelope(Text("bytes"), Name.ANN)), b"ann"),
        (Jsonable(envelope("decimal", "2")), Decimal(2)),
    ],
)
def test_a_dict_that_looks_like_an_envelope_is_what_the_worker_makes_of_it(value: object, meaning: object) -> None:
    assert is_same(through(value, "json"), meaning)

    assert digest(value, "json") == digest(meaning, "json")


@pytest.mark.parametrize(
    "value",
    [
        envelope("something", 1), envelope([], 1), envelope(None, None), envelope("time", "no time"),
        envelope("bytes", 1),
        envelope("bytes", "\ud800"), envelope("uuid", {"hex": 1}), envelope("uuid", {"no": 1}),
        envelope("uuid", Colour.RED),
    ],
)  # fmt: skip
def test_an_envelope_that_no_worker_can_open_has_no_key(value: object) -> None:
    with pytest.raises((EncodeError, DecodeError)):
        through(value, "json")

    with pytest.raises(UncacheableArgument) as refusal:
        digest(value, "json")

    assert refusal.value.argument == "a"


@pytest.mark.parametrize("value", [envelope("decimal", 1), envelope("uuid", {"int": 7})])
def test_an_envelope_that_nobody_writes_runs_uncached(value: object) -> None:
    assert through(value, "json") in (Decimal(1), UUID(int=7))

    with pytest.raises(UncacheableArgument):
        digest(value, "json")


@pytest.mark.parametrize("serializer", ["msgpack", "yaml", "pickle"])
def test_other_serializers_know_no_envelope(serializer: str) -> None:
    value = envelope("bytes", "x")
    assert through(value, serializer) == value

    assert digest(value, serializer) != digest(b"x", serializer)


# ---- models ----------------------------------------------------------------------------------------------------------


@given(pickle_values, pickle_values)
def test_a_dataclass_keeps_its_key_through_pickle(x: object, y: object) -> None:
    assert digest(through(Point(x, y), "pickle"), "pickle") == digest(Point(x, y), "pickle")


try:
    import pydantic
except ImportError:
    pydantic = None  # type: ignore[assignment]  # the tests below are skipped

needs_pydantic = pytest.mark.skipif(pydantic is None, reason="pydantic is not installed")

if pydantic is not None:

    class Order(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")

        id: Any
        price: Decimal = Decimal(0)
        hidden: int = pydantic.Field(0, exclude=True, repr=False)
        _private: int = pydantic.PrivateAttr(0)

    class Purchase(Order):
        pass

    class Login(pydantic.BaseModel):
        password: pydantic.SecretStr


@needs_pydantic
@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_a_dumped_model_has_one_key_on_both_sides(serializer: str) -> None:
    dumped = Order(id=UUID(int=7), price=Decimal("1.50"), note=(1, 2)).model_dump(mode="json")

    assert digest(through(dumped, serializer), serializer) == digest(dumped, serializer)


@needs_pydantic
def test_a_model_keeps_its_key_through_pickle() -> None:
    model = Order(id=(1, 2), price=Decimal("1.50"), note="extra")

    assert digest(through(model, "pickle"), "pickle") == digest(model, "pickle")


@needs_pydantic
@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
def test_a_model_that_is_not_dumped_is_refused_and_has_a_key_for_a_direct_call(serializer: str) -> None:
    with pytest.raises(EncodeError):
        through(Order(id=1), serializer)

    assert digest(Order(id=1), serializer) == digest(Order(id=1), serializer) != digest(Order(id=2), serializer)


@needs_pydantic
def test_models_that_differ_in_what_their_dump_leaves_out_have_keys_of_their_own() -> None:
    private = Order(id=1)
    private._private = 1
    models = [
        Order(id=1), Order(id="1"), Order(id=(1,)), Order(id=[1]), Order(id=1, hidden=1), Order(id=1, note=1), private,
        Order(id=1, hidden=0), Order(id=1, price=Decimal("0.0")), Purchase(id=1), Order(id=1).model_dump(),
    ]  # fmt: skip

    assert len({digest(model, "pickle") for model in models}) == len(models)


@needs_pydantic
def test_two_secrets_never_share_a_key() -> None:
    one, other = Login(password="one"), Login(password="other")
    assert one.model_dump(mode="json") == other.model_dump(mode="json")

    for login in (one, other):
        with pytest.raises(UncacheableArgument):
            digest(login, "pickle")
