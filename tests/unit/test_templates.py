"""Tags: what a template may say, what it renders to, and which texts can be a tag."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_cachetiers.errors import ConfigurationError, TagError
from celery_cachetiers.tag_names import (
    MAX_LENGTH,
    checked_tag,
    escape_tag,
    escape_tags,
    key_tag,
    namespace_tag,
    task_tag,
)
from celery_cachetiers.templates import TagTemplate, compile_tags

NAMES = ("user_id", "order", "day", "items")
ARGUMENTS: dict[str, Any] = {
    "user_id": 123,
    "order": SimpleNamespace(id=7, lines=[SimpleNamespace(sku="a")], by={"x": 1, "_x": 2, "1x": 3}),
    "day": date(2026, 11, 23),
    "items": ["first", "second"],
}


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Name(str, Enum):  # noqa: UP042 - the older form of a StrEnum is the one to test
    ANN = "ann"


class Disguised(str):
    def __str__(self) -> str:
        return "never sent"

    def __format__(self, spec: str) -> str:
        return "never sent"


def render(text: str, arguments: dict[str, Any] = ARGUMENTS) -> str:
    return TagTemplate.parse(text, tuple(arguments), open_ended=False).render(arguments)


# ---- templates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("report", "report"),
        ("user:{user_id}", "user:123"),
        ("{user_id}:{user_id}", "123:123"),
        ("order:{order.id}", "order:7"),
        ("day:{day:%Y-%m}", "day:2026-11"),
        ("{items[0]}", "first"),
        ("{order.lines[0].sku}", "a"),
        ("{order.by[x]}/{order.by[_x]}/{order.by[1x]}", "1/2/3"),
        ("{user_id:06d}", "000123"),
        ("{items[1]!r}", "'second'"),
        ("{items[1]!s:>8}", "  second"),
        ("100 %s %d {user_id} %%", "100 %s %d 123 %%"),
        ("{{literal}} {user_id}", "{literal} 123"),
        ("é:{user_id}", "é:123"),
    ],
)
def test_a_template_renders(text: str, tag: str) -> None:
    assert render(text) == tag


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.decimals() | st.dates()


@given(st.text("ab{}%:"), scalars, st.lists(st.integers(), max_size=2))
def test_a_template_renders_as_format_does(literal: str, a: object, b: list[int]) -> None:
    escaped = literal.replace("{", "{{").replace("}", "}}")
    text = f"{escaped}{{a}}{escaped}{{b}}{{a}}"

    assert render(text, {"a": a, "b": b}) == text.format(a=a, b=b)


@pytest.mark.parametrize(
    ("caller", "worker"), [(Level.LOW, 1), (Name.ANN, "ann"), (Disguised("x"), "x"), (Decimal("1.50"), Decimal("1.50"))]
)
@pytest.mark.parametrize("text", ["{a}", "{a!s}", "{a!r}", "{a:>4}", "{b[0]}{a}"])
def test_caller_and_worker_render_the_same_tag(text: str, caller: object, worker: object) -> None:
    assert render(text, {"a": caller, "b": [caller]}) == render(text, {"a": worker, "b": [worker]})


def test_an_enum_without_a_base_is_rendered_as_it_is() -> None:
    assert render("{a}/{a.value}/{a.name}", {"a": Colour.RED}) == "Colour.RED/red/RED"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "{0}",
        "{0.id}",
        "{ user_id}",
        "{user}",
        "{user.id}",
        "{user_id",
        "user_id}",
        "{user_id!x}",
        "{user_id:{items}}",
        "{user_id:{items.__class__}}",
        "{user_id.__class__}",
        "{user_id._private}",
        "{items[0].__class__}",
        "{order.id.__class__.__mro__}",
        "{order.}",
        "{order..id}",
        "{items[]}",
        "{items[0}",
        "{items[0]x}",
        "{.id}",
        "{[0]}",
        "line\nbreak",
        "nul\0",
        "\ud800",
    ],
)
@pytest.mark.parametrize("make", [compile_tags, lambda tags, names: compile_tags([*tags, "fine"], names)])
def test_a_template_that_cannot_be_used_is_refused_where_it_is_defined(
    text: str, make: Callable[[list[str], tuple[str, ...]], object]
) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        make([text], NAMES)

    assert (refusal.value.option, refusal.value.value) == ("tags", text)


@pytest.mark.parametrize("text", ["{}", "{0}", "user:{.id}"])
def test_a_positional_field_is_refused_in_words_of_its_own(text: str) -> None:
    with pytest.raises(ConfigurationError, match="begins with the name of an argument"):
        TagTemplate.parse(text, NAMES, open_ended=True)


def test_a_refusal_names_the_arguments_there_are() -> None:
    with pytest.raises(ConfigurationError, match="'user' is not among the task's arguments \\(user_id, order"):
        TagTemplate.parse("{user}", NAMES, open_ended=False)


@pytest.mark.parametrize("text", ["{tenant}", "{tenant.id}", "{user_id}:{tenant}"])
def test_a_task_that_takes_any_argument_may_name_any(text: str) -> None:
    template = TagTemplate.parse(text, NAMES, open_ended=True)

    assert "5" in template.render({**ARGUMENTS, "tenant": Tenant()})


class Tenant:
    id = 5

    def __str__(self) -> str:
        return "5"


@pytest.mark.parametrize("text", ["{}", "{0}", "{tenant.__class__}", "{not a name}", "{1st}"])
def test_a_task_that_takes_any_argument_still_takes_no_broken_template(text: str) -> None:
    with pytest.raises(ConfigurationError):
        TagTemplate.parse(text, NAMES, open_ended=True)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("{a}", {}),
        ("{a.id}", {"a": {"id": 1}}),
        ("{a[id]}", {"a": {}}),
        ("{a[5]}", {"a": [1]}),
        ("{a:%Y}", {"a": 1}),
        ("{a:d}", {"a": "text"}),
    ],
)
def test_arguments_that_do_not_fit_are_a_tag_error(text: str, arguments: dict[str, Any]) -> None:
    template = TagTemplate.parse(text, ("a",), open_ended=False)

    with pytest.raises(TagError) as refusal:
        template.render(arguments)

    assert refusal.value.tag == text
    assert refusal.value.__cause__ is not None


def test_a_template_shows_its_text() -> None:
    assert repr(TagTemplate.parse("user:{user_id}", NAMES, open_ended=False)) == "TagTemplate(text='user:{user_id}')"


# ---- the tags of a call ----------------------------------------------------------------------------------------------


def test_tags_come_sorted_and_once() -> None:
    tags = compile_tags(["user:{user_id}", "all", "{items[1]}", "user:{user_id:d}"], NAMES)

    assert tags(ARGUMENTS) == ("all", "second", "user:123")


awkward = st.sampled_from(
    ["", "\n", "a\nb", "\0", "\x9f", "\ud800", "\u2028", "@", "%s", "x" * 250, "x" * 513, 10**5000]
)


@given(st.dictionaries(st.sampled_from(["a", "b"]), scalars | awkward | st.just(Name.ANN)))
def test_tags_rendered_together_are_those_rendered_one_by_one(arguments: dict[str, Any]) -> None:
    texts = ["{a}", "b:{b}", "{a}{b}%", "all", "b:{b}"]
    together = compile_tags(texts, ("a", "b"))
    one_by_one = compile_tags([*texts, "{a!s}"], ("a", "b"))  # a conversion: no template is rendered with the others

    try:
        expected = one_by_one(arguments)
    except TagError:
        with pytest.raises(TagError):
            together(arguments)
    else:
        assert together(arguments) == expected


def test_no_templates_no_tags() -> None:
    assert compile_tags((), NAMES)(ARGUMENTS) == ()


def test_a_callable_gets_the_arguments_by_name() -> None:
    tags = compile_tags(lambda user_id, items, **rest: {f"user:{user_id}", *items, "first"}, NAMES)

    assert tags(ARGUMENTS) == ("first", "second", "user:123")


def test_a_generator_gives_tags_too() -> None:
    tags = compile_tags(lambda items, **rest: (item for item in items), NAMES)

    assert tags(ARGUMENTS) == ("first", "second")


def raising(**arguments: object) -> list[str]:
    raise LookupError("no such user")


def raising_later(**arguments: object) -> Any:
    yield "first"
    raise LookupError("no such user")


@pytest.mark.parametrize("ask", [raising, raising_later, lambda: [], lambda **arguments: None, lambda **arguments: 5])
def test_a_callable_that_fails_is_a_tag_error(ask: Callable[..., Any]) -> None:
    tags = compile_tags(ask, NAMES)

    with pytest.raises(TagError) as refusal:
        tags(ARGUMENTS)

    assert refusal.value.__cause__ is not None


def test_one_text_is_not_a_list_of_tags() -> None:
    with pytest.raises(ConfigurationError, match="a list of templates"):
        compile_tags("user:{user_id}", NAMES)
    with pytest.raises(TagError, match="not one text"):
        compile_tags(lambda **arguments: "user:1", NAMES)(ARGUMENTS)


UNUSABLE: list[Any] = [
    "",
    "\0",
    "a\nb",
    "\x7f",
    "\x9f",
    "\ud800",
    "x" * (MAX_LENGTH + 1),
    None,
    5,
    b"user:1",
    ["user:1"],
]


@pytest.mark.parametrize("tag", UNUSABLE)
def test_a_text_that_cannot_be_a_tag_is_refused(tag: object) -> None:
    with pytest.raises(TagError):
        checked_tag(tag)
    with pytest.raises(TagError):
        compile_tags(lambda **arguments: ["fine", tag], NAMES)(ARGUMENTS)


@pytest.mark.parametrize("tag", [tag for tag in UNUSABLE if isinstance(tag, str)])
def test_an_argument_that_makes_an_unusable_tag_is_refused(tag: str) -> None:
    with pytest.raises(TagError):
        compile_tags(["{user_id}"], NAMES)({"user_id": tag})


@pytest.mark.parametrize("tag", ["a", " ", "a b", "é\u2028", "\U0001f600", "x" * MAX_LENGTH, "@all"])
def test_other_texts_can_be_tags(tag: str) -> None:
    assert checked_tag(tag) == tag


def test_a_checked_tag_is_plain_text() -> None:
    assert type(checked_tag(Name.ANN)) is str


# ---- names -----------------------------------------------------------------------------------------------------------


def test_implicit_tags_have_names_of_their_own() -> None:
    assert namespace_tag() == "@all"
    assert task_tag("tasks.profile") == "@task:tasks.profile"
    assert key_tag("0" * 32) == "@key:" + "0" * 32


@given(st.lists(st.text("@ak:"), unique=True))
def test_escaping_keeps_tags_apart_from_each_other_and_from_implicit_ones(tags: list[str]) -> None:
    escaped = [escape_tag(tag) for tag in tags]

    assert escape_tags(tuple(tags)) == tuple(escaped)
    assert len(set(escaped)) == len(tags)
    assert not any(tag.startswith("@") and not tag.startswith("@@") for tag in escaped)
