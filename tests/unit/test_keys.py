"""Keys: which calls are the same call, and what has no key."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import string
import sys
import time as clock
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from enum import Enum, Flag, IntEnum, IntFlag, auto
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_cachetiers.binder import Binder, compile_binder
from celery_cachetiers.canonical import canonical
from celery_cachetiers.dialects import Dialect, bare, dialect_of
from celery_cachetiers.errors import ConfigurationError, UncacheableArgument
from celery_cachetiers.keys import KeyMaker

EVERY_DIALECT = list(Dialect)
BERLIN = ZoneInfo("Europe/Berlin")


def key_maker(function: Callable[..., Any], dialect: Dialect = Dialect.NATIVE, **options: Any) -> KeyMaker:
    """The key maker of a task with this body."""
    return KeyMaker("tests.task", compile_binder(function, skip_first=False), dialect, **options)


def digest(value: object, dialect: Dialect = Dialect.NATIVE) -> str:
    """The key of a call with this one argument."""
    return key_maker(one, dialect).digest((value,), {})


def one(a):
    """The body of most tests."""


# ---- binding ---------------------------------------------------------------------------------------------------------


def nothing():
    return locals()


def plain(a, b=2):
    return locals()


def positional_only(a, b=2, /):
    return locals()


def keyword_only(*, a, b=2):
    return locals()


def starred(a, *args, b=2):
    return locals()


def open_ended(a, b=2, **options):
    return locals()


def everything(a, b=(1, 2), /, c=None, *args, d, e=1.5, **options):
    return locals()


def shadowing(_0=1, lambda_=2, *, _2=3):
    return locals()


SHAPES = [nothing, plain, positional_only, keyword_only, starred, open_ended, everything, shadowing]


@pytest.mark.parametrize("function", SHAPES)
@given(
    args=st.lists(st.integers(), max_size=5),
    kwargs=st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e", "_0", "other", "args"]), st.text()),
)
def test_a_binder_binds_as_python_does(function: Callable[..., Any], args: list[int], kwargs: dict[str, str]) -> None:
    binder = compile_binder(function, skip_first=False)
    try:
        expected = function(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError):
            binder(args, kwargs)
        return

    values = binder(args, kwargs)

    assert dict(zip(binder.names, values, strict=True)) == expected


@pytest.mark.parametrize("function", SHAPES)
def test_a_binder_names_the_parameters_in_their_order(function: Callable[..., Any]) -> None:
    assert compile_binder(function, skip_first=False).names == tuple(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [(plain, (), {}), (plain, (1, 2, 3), {}), (plain, (1,), {"x": 1}), (plain, (1,), {"a": 1}), (keyword_only, (), {})],
)
def test_a_wrong_call_is_refused_in_the_words_of_the_function(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError) as own:
        function(*args, **kwargs)
    with pytest.raises(TypeError) as ours:
        compile_binder(function, skip_first=False)(args, kwargs)

    assert str(ours.value) == str(own.value)


def test_the_first_parameter_can_be_skipped() -> None:
    def task(self, a, b=2):
        pass

    binder = compile_binder(task, skip_first=True)

    assert binder.names == ("a", "b")
    assert binder((1,), {}) == (1, 2)


def test_skipping_leaves_star_args_alone() -> None:
    binder = compile_binder(lambda *args: None, skip_first=True)

    assert binder((1, 2), {}) == ((1, 2),)


def test_a_decorated_function_is_bound_by_the_signature_inside() -> None:
    @functools.wraps(plain)
    def wrapper(*args, **kwargs):
        return plain(*args, **kwargs)

    assert compile_binder(wrapper, skip_first=False).names == ("a", "b")


def test_a_default_is_the_object_itself() -> None:
    default = object()

    def task(a=default):
        pass

    assert compile_binder(task, skip_first=False)((), {})[0] is default


def test_arguments_are_named_and_those_of_star_star_kwargs_stand_beside_them() -> None:
    binder = compile_binder(everything, skip_first=False)

    arguments = binder.arguments(binder((1, 2, 3, 4), {"d": 5, "x": 6, "a": "lost to the parameter a"}))

    assert arguments == {"a": 1, "b": 2, "c": 3, "args": (4,), "d": 5, "e": 1.5, "x": 6}
    assert set(binder.argument_names) == arguments.keys() - {"x"}
    assert (binder.var_positional, binder.var_keyword) == ("args", "options")


# ---- the same call, another call -------------------------------------------------------------------------------------


def test_one_call_has_one_key_however_it_is_written() -> None:
    keys = key_maker(plain)

    calls = [((1, 2), {}), ((1,), {"b": 2}), ((), {"a": 1, "b": 2}), ((), {"b": 2, "a": 1}), ((1,), {}), ([1], {})]

    assert len({keys.digest(args, kwargs) for args, kwargs in calls}) == 1


@pytest.mark.parametrize("dialect", EVERY_DIALECT)
def test_values_that_python_calls_equal_have_keys_of_their_own(dialect: Dialect) -> None:
    values = [1, True, 1.0, "1", b"1", 0, False, 0.0, -0.0, "", b"", None, "None", [], {}, [1], ["1"], [[1]]]

    assert len({digest(value, dialect) for value in values}) == len(values)


def test_arguments_do_not_run_together() -> None:
    keys = key_maker(plain)

    assert keys.digest((1, 23), {}) != keys.digest((12, 3), {})
    assert keys.digest(("a", "bc"), {}) != keys.digest(("ab", "c"), {})
    assert keys.digest(("a', 'b", "c"), {}) != keys.digest(("a", "b', 'c"), {})


def test_star_args_and_one_tuple_are_different_calls() -> None:
    keys = key_maker(lambda a, *rest: None)

    assert keys.digest((1, 2, 3), {}) != keys.digest((1, (2, 3)), {})
    assert keys.digest((1,), {}) != keys.digest((1, ()), {})


def test_data_is_never_taken_for_a_tag() -> None:
    values = [[1], ("list", 1), ["list", 1], ("tuple", "list", 1), (("list", 1),), {1}, ("set", 1), {"list": 1}]

    assert len({digest(value) for value in values}) == len(values)


@given(st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), st.integers()), st.randoms())
def test_the_order_of_a_dict_does_not_matter(value: dict[Any, int], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)

    for dialect in Dialect:
        assert digest(dict(items), dialect) == digest(value, dialect)


def test_the_order_of_an_ordered_dict_matters_where_it_survives() -> None:
    forth, back = OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)

    assert digest(forth) != digest(back)
    assert digest(forth, Dialect.JSON) == digest(back, Dialect.JSON)


def test_every_nan_is_the_same() -> None:
    nan = float("nan")

    assert digest(nan) == digest(-nan) == digest(float("inf") - float("inf"))
    assert digest({nan: 1, -nan: 2}) == digest({-nan: 2, nan: 1})


@given(st.tuples(*[st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()] * 2))
def test_the_short_cut_for_scalars_hashes_the_canonical_text(values: tuple[object, ...]) -> None:
    keys = key_maker(plain)
    hasher = keys._seeded.copy()
    hasher.update(ascii(tuple(canonical(value, Dialect.NATIVE) for value in values)).encode())

    assert keys.digest_of(values) == hasher.hexdigest()


def test_task_version_and_custom_key_are_part_of_the_key() -> None:
    binder = compile_binder(one, skip_first=False)
    makers = [
        KeyMaker("a", binder, Dialect.JSON),
        KeyMaker("b", binder, Dialect.JSON),
        KeyMaker("a", binder, Dialect.JSON, "2"),
        KeyMaker("a', '2", binder, Dialect.JSON),
        KeyMaker("a", binder, Dialect.JSON, key=lambda a: a),
    ]

    assert len({maker.digest((1,), {}) for maker in makers}) == len(makers)


def test_binding_once_serves_the_key_as_well() -> None:
    keys = key_maker(plain)

    assert keys.digest_of(keys.bound((1,), {})) == keys.digest((1,), {})


# ---- values and their types ------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Name(str, Enum):  # noqa: UP042 - the older form of a StrEnum is the one to test
    ANN = "ann"


class Rights(Flag):
    READ = auto()
    WRITE = auto()


Pair = namedtuple("Pair", "x y")


class Text(str):
    """Text with an attribute."""


class Bits(IntFlag):
    ONE = 1


class Numbers(set[int]):
    pass


class Listed(list[int]):
    pass


@dataclasses.dataclass
class Point:
    x: int
    y: object = dataclasses.field(default=0, compare=False, repr=False)

    @functools.cached_property
    def norm(self) -> int:
        return abs(self.x)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: int


@dataclasses.dataclass
class Other:
    x: int
    y: object = 0


class LabelledPoint(Point):
    def __init__(self, x: int, label: str) -> None:
        super().__init__(x)
        self.label = label


class Keyed:
    def __init__(self, number: int) -> None:
        self.number = number

    def __cachetiers_key__(self) -> object:
        return self.number


class KeyedToo(Keyed):
    pass


class Summer(tzinfo):
    def utcoffset(self, dt: datetime | None) -> timedelta:
        return timedelta(hours=2)


def having(value: Any, **attributes: object) -> Any:
    """The value with these attributes."""
    value.__dict__.update(attributes)
    return value


NOON = datetime(2026, 11, 23, 12)
DISTINCT: list[Any] = [
    [1, 2], (1, 2), Pair(1, 2), {1, 2}, frozenset({1, 2}), Numbers({1, 2}), having(Numbers({1, 2}), unit="m"),
    Listed([1]), Listed([2]), {1: 2}, {"1": 2}, {True: 2}, {1.0: 2},
    OrderedDict({1: 2}), defaultdict(int, {1: 2}), defaultdict(list, {1: 2}), Counter({1: 2}), range(1, 2),
    "x", Text("x"), having(Text("x"), lang="en"), having(Text("x"), lang="de"), b"x", bytearray(b"x"),
    Colour.RED, "red", Level.LOW, 1, Name.ANN, "ann", Rights.READ, Rights.READ | Rights.WRITE, Rights(0),
    Bits(1), Bits(8), Bits(16),
    NOON, NOON.replace(fold=1), NOON.replace(tzinfo=UTC), NOON.replace(tzinfo=timezone(timedelta(0), "Z")),
    NOON.replace(tzinfo=BERLIN), NOON.replace(tzinfo=timezone(timedelta(hours=1))), NOON.replace(tzinfo=Summer()),
    NOON.date(), NOON.time(), NOON.time().replace(tzinfo=UTC), NOON.isoformat(), timedelta(1), timedelta(0, 1),
    Decimal("1"), Decimal("1.0"), Decimal("1E+1"), Decimal("NaN"), Decimal("sNaN"), Fraction(1), 1.0, complex(1),
    complex(1, -0.0), UUID(int=1), UUID(int=1).hex, Path("a"), PurePosixPath("a"), "a", UTC, BERLIN, float("nan"),
    range(3), range(0, 3, 2), range(0, 4, 2), Point(1), Point(1, 1), Point(1, [1]), Point(1, (1,)), Other(1),
    LabelledPoint(1, "a"), LabelledPoint(1, "b"), Slotted(1), {"x": 1, "y": 0}, Keyed(1), Keyed(2), KeyedToo(1),
    clock.struct_time((2026, 11, 23, 12, 0, 0, 0, 327, 0, "CET", 3600)),
    clock.struct_time((2026, 11, 23, 12, 0, 0, 0, 327, 0, "UTC", 0)),
]  # fmt: skip


def test_what_a_body_can_tell_apart_has_keys_of_its_own() -> None:
    found: dict[str, object] = {}
    for value in DISTINCT:
        assert found.setdefault(digest(value), value) is value


@pytest.mark.parametrize("value", DISTINCT, ids=repr)
@pytest.mark.parametrize("dialect", EVERY_DIALECT)
def test_a_tree_is_made_of_plain_scalars_and_tuples(value: object, dialect: Dialect) -> None:
    def leaves(tree: object) -> Iterator[object]:
        if type(tree) is tuple:
            assert type(tree[0]) is str, "a tuple begins with its tag"
            for part in tree:
                yield from leaves(part)
        else:
            yield tree

    plain_types = {int, str, bytes, float, bool, type(None)}

    assert {type(leaf) for leaf in leaves(canonical(value, dialect))} <= plain_types


def test_what_a_cached_property_remembers_is_no_part_of_a_dataclass() -> None:
    asked = Point(1)
    assert asked.norm == 1

    assert digest(asked) == digest(Point(1))


def test_the_context_of_decimals_does_not_shape_keys() -> None:
    value = Decimal("1E+5")
    before = digest(value)
    with localcontext() as context:
        context.capitals = 0

        assert digest(value) == before


def test_a_set_has_one_key_whatever_the_order_of_its_elements() -> None:
    # Their hashes, and so the order, differ with every process: what is stored here comes from another one.
    value = {"a", "b", "c", 1, None, (1, "a"), frozenset({"x", "y"})}

    assert digest(value) == "5e42ac11e33decc3b9c0194cb7f8e093"


@pytest.mark.parametrize("kind", [set, frozenset, Numbers])
def test_elements_that_a_set_holds_in_another_order_are_the_same_set(kind: type) -> None:
    one, other = kind([0, 8]), kind([8, 0])
    assert list(one) != list(other), "they share a slot of the hash table, so the first one comes first"

    assert digest(one) == digest(other)


@contextmanager
def digits_limited_to(limit: int) -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(limit)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


@pytest.mark.parametrize("bits", [1_999, 2_000, 2_001, 14_000, 100_000])
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], lambda value: -value])
def test_ints_of_any_size_have_keys_that_no_limit_of_digits_changes(bits: int, wrap: Callable[[int], object]) -> None:
    value, neighbour = 1 << bits, (1 << bits) + 1
    with digits_limited_to(640):
        strict = [digest(wrap(value)), digest(wrap(neighbour))]
    with digits_limited_to(0):
        free = [digest(wrap(value)), digest(wrap(neighbour))]

    assert strict == free
    assert len({*strict, digest(hex(value))}) == 3


@given(st.text(alphabet=string.ascii_letters, min_size=590, max_size=610))
def test_a_long_text_is_keyed_as_a_short_one_is(value: str) -> None:
    assert canonical(value, Dialect.NATIVE) == value
    assert digest(value) != digest(value + "x")


# ---- no canonical form -----------------------------------------------------------------------------------------------


class Opaque:
    pass


class Failing:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __cachetiers_key__(self) -> object:
        raise self.error


def itself_inside() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def itself_inside_a_dict() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def shared(doublings: int) -> list[Any]:
    value: list[Any] = [1]
    for _ in range(doublings):
        value = [value, value]
    return value


def local_dataclass() -> object:
    @dataclasses.dataclass
    class Local:
        x: int = 1

    return Local()


@pytest.mark.parametrize("dialect", EVERY_DIALECT)
@pytest.mark.parametrize(
    "make",
    [
        Opaque,
        lambda: Opaque,
        lambda: one,
        lambda: (x for x in ()),
        lambda: iter([1]),
        lambda: sys,
        lambda: nested(101),
        lambda: shared(60),
        itself_inside,
        itself_inside_a_dict,
        local_dataclass,
        lambda: Failing(ValueError("no")),
        lambda: Failing(TypeError("no")),
        lambda: Failing(RecursionError("no")),
        lambda: [{"deep": (Opaque(),)}],
        lambda: Point(1, Opaque()),
        lambda: functools.partial(one, 1),
    ],
)
def test_what_has_no_canonical_form_is_refused_by_name(make: Callable[[], object], dialect: Dialect) -> None:
    keys = key_maker(plain, dialect)
    value = make()

    for call in ((1, value), {}), ((1,), {"b": value}):
        with pytest.raises(UncacheableArgument) as refusal:
            keys.digest(*call)

        assert refusal.value.argument == "b"
        assert refusal.value.reason


def test_an_error_inside_a_value_is_the_cause() -> None:
    error = TypeError("inside")

    with pytest.raises(UncacheableArgument) as refusal:
        digest(Failing(error))

    assert refusal.value.__cause__ is error


def test_an_interrupt_inside_a_value_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        digest(Failing(KeyboardInterrupt()))


def test_a_hundred_levels_are_few_enough() -> None:
    assert digest(nested(99)) != digest(nested(98))


def test_only_the_binding_raises_a_type_error() -> None:
    keys = key_maker(one)

    with pytest.raises(TypeError) as wrong_call:
        keys.bound((), {})
    with pytest.raises(UncacheableArgument):
        keys.digest_of((Failing(TypeError("not a wrong call")),))

    assert not isinstance(wrong_call.value, UncacheableArgument)


# ---- ignore and key --------------------------------------------------------------------------------------------------


def test_an_ignored_argument_is_no_part_of_the_key() -> None:
    keys = key_maker(lambda a, request_id=None: None, ignore=("request_id",))

    assert keys.digest((1, "x"), {}) == keys.digest((1,), {"request_id": Opaque()}) == keys.digest((1,), {})
    assert keys.digest((1, "x"), {}) != keys.digest((2, "x"), {})


@pytest.mark.parametrize("dialect", EVERY_DIALECT)
def test_an_argument_that_only_star_star_kwargs_takes_can_be_ignored(dialect: Dialect) -> None:
    keys = key_maker(open_ended, dialect, ignore=("request_id",))

    assert keys.digest((1,), {"request_id": "x", "c": 3}) == keys.digest((1,), {"c": 3})
    assert keys.digest((1,), {"c": 3}) != keys.digest((1,), {"c": 4})


def test_star_args_and_star_star_kwargs_can_be_ignored_as_a_whole() -> None:
    keys = key_maker(everything, ignore=("args", "options"))

    assert keys.digest((1, 2, 3, 4), {"d": 1, "x": 1}) == keys.digest((1, 2, 3), {"d": 1})


def test_ignoring_what_is_no_argument_is_refused() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        key_maker(plain, ignore=("request_id",))

    assert (refusal.value.option, refusal.value.value, refusal.value.where) == ("ignore", "request_id", "tests.task")
    assert "a, b" in refusal.value.allowed


def test_ignore_beside_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ignore"):
        key_maker(plain, ignore=("b",), key=lambda a, b: a)


def test_a_custom_key_takes_the_place_of_the_arguments() -> None:
    keys = key_maker(plain, key=lambda a, b: a.lower())

    assert keys.digest(("A",), {}) == keys.digest(("a", Opaque()), {})
    assert keys.digest(("A",), {}) != keys.digest(("b",), {})


def test_what_a_custom_key_returns_is_typed() -> None:
    keys = key_maker(one, key=lambda a: a)

    assert len({keys.digest((value,), {}) for value in (1, True, 1.0, "1", (1,), [1])}) == 6


def test_a_custom_key_sees_the_names_that_star_star_kwargs_took() -> None:
    keys = key_maker(open_ended, key=lambda a, c, **rest: (a, c))

    assert keys.digest((1,), {"c": 3, "d": 4}) == keys.digest((1, 2), {"c": 3})


@pytest.mark.parametrize("error", [ValueError("no"), TypeError("wrong arguments?"), UncacheableArgument("x", "y")])
def test_a_custom_key_that_raises_leaves_the_call_without_a_key(error: Exception) -> None:
    def key(a: object) -> object:
        raise error

    with pytest.raises(UncacheableArgument) as refusal:
        key_maker(one, key=key).digest((1,), {})

    assert (refusal.value.argument, refusal.value.reason) == ("key", repr(error))
    assert refusal.value.__cause__ is error


def test_a_custom_key_without_a_canonical_form_is_named() -> None:
    with pytest.raises(UncacheableArgument) as refusal:
        key_maker(one, key=lambda a: Opaque()).digest((1,), {})

    assert refusal.value.argument == "key"


# ---- the fingerprint -------------------------------------------------------------------------------------------------


def test_whatever_shapes_keys_changes_the_fingerprint() -> None:
    def key(a: object) -> object:
        return a

    makers = [
        key_maker(one),
        key_maker(one, Dialect.JSON),
        key_maker(one, version="2"),
        key_maker(one, ignore=("a",)),
        key_maker(one, key=key),
        key_maker(one, key=one),
        key_maker(lambda b: None),
        key_maker(lambda *a: None),
        key_maker(lambda a=None: None),
        key_maker(lambda a=1: None),
        key_maker(lambda a=True: None),
        key_maker(lambda a, b=2: None),
    ]

    assert len({maker.fingerprint for maker in makers}) == len(makers)


def test_two_processes_with_the_same_code_have_the_same_fingerprint() -> None:
    def task(a: int, b: object = Opaque(), *, c: object = frozenset({"x", "y", "z"})) -> None:
        pass

    def renewed(a: str, b: object = Opaque(), *, c: object = frozenset({"z", "y", "x"})) -> int:
        return 1

    assert key_maker(task).fingerprint == key_maker(renewed).fingerprint


def test_a_fingerprint_does_not_name_the_task() -> None:
    binder = compile_binder(plain, skip_first=False)

    assert KeyMaker("a", binder, Dialect.JSON).fingerprint == KeyMaker("b", binder, Dialect.JSON).fingerprint


# ---- names and stability ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("serializer", "dialect"),
    [
        ("json", Dialect.JSON),
        ("msgpack", Dialect.MSGPACK),
        ("yaml", Dialect.YAML),
        ("pickle", Dialect.NATIVE),
        ("something of mine", Dialect.NATIVE),
    ],
)
def test_a_serializer_has_a_dialect(serializer: str, dialect: Dialect) -> None:
    assert dialect_of(serializer) is dialect


@pytest.mark.parametrize("base", [str, int, float, bytes])
def test_bare_leaves_the_base_type_alone(base: type) -> None:
    made = type("Made", (base,), {"__str__": lambda self: "made", "__repr__": lambda self: "made"})(1)

    assert type(bare(made)) is base
    assert bare(made) == base(1)


@pytest.mark.parametrize("value", [True, None, 1, "x", [1], Colour.RED])
def test_bare_leaves_everything_else_as_it_is(value: object) -> None:
    assert bare(value) is value


def test_a_key_is_32_hex_characters_and_a_fingerprint_8() -> None:
    keys = key_maker(one)

    assert len(keys.digest((1,), {})) == 32
    assert len(keys.fingerprint) == 8
    assert set(keys.digest((1,), {}) + keys.fingerprint) <= set(string.hexdigits.lower())


# Entries outlive a deployment. If one of these changes, raise KEY_FORMAT, and say so in the changelog.
STORED: list[tuple[Dialect, tuple[Any, ...], dict[str, Any], str]] = [
    (Dialect.JSON, (123,), {}, "ece9e5e83d96d2dfdfd4e45d39d6fc12"),
    (Dialect.JSON, ("é😀\x00'\"",), {"b": b"\xff"}, "6b8a681553a9e488fc340f177ea09f11"),
    (Dialect.JSON, (None,), {"b": -0.0}, "1229673fd898af714ad5525ba16036a4"),
    (Dialect.JSON, ([1, (2, {"x": True, 3: None})],), {}, "33f88091da3954b589d83a055d96132b"),
    (Dialect.JSON, (NOON.replace(tzinfo=BERLIN),), {"b": Decimal("1.50")}, "31b35bf7b9b24e345d2b09d71591e759"),
    (Dialect.MSGPACK, ([1, (2,)],), {"b": Name.ANN}, "94dc7151aeb184c9c3854232945bb753"),
    (Dialect.YAML, ({date(2026, 11, 23): {"x", "y", 1}},), {"b": NOON}, "cfdf4d97ecd116463385e5d91e58abe2"),
    (Dialect.NATIVE, ([1, (2, {"x": True, 3: None})],), {}, "81d95598348ccc90d29eb94158dfc4cc"),
    (Dialect.NATIVE, (NOON.replace(tzinfo=BERLIN),), {"b": time(12, fold=1)}, "1538c47cf69915099f60f6dbf122bbbf"),
    (Dialect.NATIVE, (PurePosixPath("a/b"),), {"b": SafeUUID.safe}, "f67f70ef7a211aad237dd83d2cb96c6e"),
    (Dialect.NATIVE, (1 << 5000,), {"b": UUID(int=7)}, "a2fb1cdb579e11347edf99e1438ec6a5"),
    (Dialect.NATIVE, (timedelta(1, 2, 3),), {"b": NOON.replace(tzinfo=UTC)}, "c9cbac66b673d8481078193686789628"),
]


@pytest.mark.parametrize(("dialect", "args", "kwargs", "stored"), STORED)
def test_keys_stay_what_they_were(dialect: Dialect, args: tuple[Any, ...], kwargs: Any, stored: str) -> None:
    assert key_maker(plain, dialect).digest(args, kwargs) == stored


def test_fingerprints_stay_what_they_were() -> None:
    assert key_maker(everything, Dialect.JSON, version="3").fingerprint == "d653a414"


def test_a_binder_shows_the_names_it_binds() -> None:
    binder = compile_binder(plain, skip_first=False)

    assert isinstance(binder, Binder)
    assert "names=('a', 'b')" in repr(binder)
