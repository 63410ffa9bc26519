"""Tags: how a call's arguments and its result give them.

A template is checked when the task is defined. Rendering may still fail for one call's arguments (`TagError`), which
then runs uncached: an entry without one of its tags could never be invalidated by it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from celery_cachetiers.dialects import bare, only_scalars
from celery_cachetiers.errors import ConfigurationError, TagError
from celery_cachetiers.tag_names import (
    MAX_LENGTH,
    UNUSABLE,
    checked_tag,
    escape_tags,
    key_tag,
    namespace_tag,
    task_tag,
)

__all__ = [
    "MAX_RESULT_TAGS", "Arguments", "ResultTagger", "TagTemplate", "Tags", "compile_result_tags", "compile_tags",
    "escape_tags", "key_tag", "namespace_tag", "task_tag",
]  # fmt: skip

MAX_RESULT_TAGS: Final = 1000
"""Of one entry: each read of it names them all."""

Arguments: TypeAlias = Mapping[str, object]
Tags: TypeAlias = Callable[[Arguments], tuple[str, ...]]
ResultTagger: TypeAlias = Callable[[object], tuple[str, ...]]

_FIELD: Final = re.compile(r"(?P<name>[^.\[\]]*)(?P<steps>(?:\.[^.\[\]]+|\[[^\[\]]+\])*)")
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[([^\[\]]+)\]")


# ---- templates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TagTemplate:
    """Text with fields over a call's arguments, as `str.format` has them; made by `parse`.

    >>> import datetime
    >>> template = TagTemplate.parse("day:{day:%Y-%m}", ["day"], open_ended=False)
    >>> template.render({"day": datetime.date(2026, 11, 23)})
    'day:2026-11'
    """

    text: str
    _parts: tuple[str | _Field, ...] = field(repr=False)
    # Where all fields are bare names, the text with %s in their places; one step then renders the usual arguments.
    _pattern: str | None = field(repr=False)
    _names: tuple[str, ...] = field(repr=False)

    @classmethod
    def parse(cls, text: str, argument_names: Iterable[str], *, open_ended: bool) -> TagTemplate:
        """Checks a template against the names of a task's arguments.

        Args:
            text: Such as ``"order:{order.id}"``, ``"user:{user_id}"`` or ``"{items[0]}"``.
            argument_names: The names that fields may begin with.
            open_ended: The task takes ``**kwargs``: any name may come.

        Raises:
            ConfigurationError: It is empty, its braces are broken, or a field is positional, names what is no
                argument, reaches for a private attribute, or has a field inside its format.
        """
        names = tuple(argument_names)
        if not isinstance(text, str) or not text:
            raise _refused(text, "a template is text that is not empty")
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise _refused(text, f"a template has matching braces ({error})") from error
        parts: list[str | _Field] = []
        for literal, name, spec, conversion in pieces:
            if UNUSABLE.search(literal):
                raise _refused(text, "a tag has no control characters and no surrogates")
            if literal:
                parts.append(literal)
            if name is not None:
                parts.append(_parse_field(text, name, spec or "", conversion or ""))
        _check_names(text, parts, names, open_ended)
        fields = [part for part in parts if isinstance(part, _Field)]
        literals = [part.replace("%", "%%") if isinstance(part, str) else "%s" for part in parts]
        pattern = "".join(literals) if all(part.is_plain for part in fields) else None
        return cls(text, tuple(parts), pattern, tuple(part.name for part in fields))

    def render(self, arguments: Arguments) -> str:
        """The tag, unchecked.

        Raises:
            TagError: These arguments do not give one: a name is missing, an attribute raises, a format does not fit.
        """
        try:
            if self._pattern is not None:
                values = tuple(map(arguments.__getitem__, self._names))
                if only_scalars(map(type, values)):
                    return self._pattern % values
            return "".join([part if isinstance(part, str) else part.render(arguments) for part in self._parts])
        except Exception as error:
            raise TagError(self.text, f"it cannot be rendered: {error!r}") from error


@dataclass(frozen=True, slots=True)
class _Field:
    """``{name.attribute[index]!conversion:spec}``.

    Attributes:
        steps: What leads from the argument to the value; true stands for an attribute, false for an index.
    """

    name: str
    steps: tuple[tuple[bool, Any], ...]
    conversion: str
    spec: str

    @property
    def is_plain(self) -> bool:
        """Only a name."""
        return not (self.steps or self.conversion or self.spec)

    def render(self, arguments: Arguments) -> str:
        """The text.

        A str or int Enum, and any subclass of text and numbers, stands for the value in it, as that is what a worker
        gets through JSON: caller and worker must find the same tags. (`format` of such an Enum also depends on the
        version of Python.)
        """
        value: Any = arguments[self.name]
        for attribute, step in self.steps:
            value = getattr(value, step) if attribute else value[step]
        value = bare(value)
        if self.conversion:
            value = _CONVERSIONS[self.conversion](value)
        return format(value, self.spec)


_CONVERSIONS: Final[dict[str, Callable[[Any], str]]] = {"s": str, "r": repr, "a": ascii}


def _parse_field(text: str, source: str, spec: str, conversion: str) -> _Field:
    match = _FIELD.fullmatch(source)
    if match is None:
        raise _refused(text, f"{{{source}}} is not a field such as {{order.id}} or {{items[0]}}")
    if "{" in spec or "}" in spec:
        raise _refused(text, "a field has no fields inside its format")
    if conversion and conversion not in _CONVERSIONS:
        raise _refused(text, f"a conversion is one of !s, !r, !a, not !{conversion}")
    steps = tuple(_parse_step(*step) for step in _STEP.findall(match["steps"]))
    if any(attribute and name.startswith("_") for attribute, name in steps):
        raise _refused(text, "a field does not reach for private attributes")
    return _Field(match["name"], steps, conversion, spec)


def _parse_step(attribute: str, index: str) -> tuple[bool, Any]:
    if attribute:
        return True, attribute
    return False, int(index) if index.isascii() and index.isdecimal() else index


def _check_names(text: str, parts: Iterable[str | _Field], names: Sequence[str], open_ended: bool) -> None:
    for name in (part.name for part in parts if isinstance(part, _Field)):
        if not name or name.isdecimal():
            raise _refused(text, "a field begins with the name of an argument, such as {user_id}")
        if name not in names and not (open_ended and name.isidentifier()):
            known = ", ".join(names) or "none"
            raise _refused(text, f"{name!r} is not among the task's arguments ({known})")


def _refused(value: object, allowed: str) -> ConfigurationError:
    return ConfigurationError("tags", value, allowed)


# ---- the tags of a call ----------------------------------------------------------------------------------------------


def compile_tags(
    tags: Sequence[str] | Callable[..., Iterable[str]], names: Iterable[str], open_ended: bool = False
) -> Tags:
    """What gives a call's tags from its arguments by name: sorted, each once, each checked, not yet escaped.

    Args:
        tags: Templates, or ``tags(**arguments)``.
        names: The names of the arguments; see `TagTemplate.parse`.
        open_ended: The task takes ``**kwargs``.

    Returns:
        A function that raises `TagError`, and no other exception, if these arguments do not give usable tags.

    Raises:
        ConfigurationError: A template is not usable.
    """
    if callable(tags):
        ask = tags
        return lambda arguments: _checked(_asked(ask, **arguments))
    if isinstance(tags, str):
        raise _refused(tags, f"a list of templates: [{tags!r}]")
    known = tuple(names)
    templates = [TagTemplate.parse(text, known, open_ended=open_ended) for text in tags]
    if not templates:
        return lambda arguments: ()
    together = _Together.of(templates)

    def render(arguments: Arguments) -> tuple[str, ...]:
        found = together.render(arguments) if together is not None else None
        return found or _checked([template.render(arguments) for template in templates])

    return render


@dataclass(frozen=True, slots=True)
class _Together:
    """Templates of bare names, rendered and checked in one step, where the arguments are plain numbers and short text.

    Every L2 hit renders its tags: one by one that takes 1 µs for each.
    """

    _pattern: str
    _names: tuple[str, ...]
    _many: int

    @classmethod
    def of(cls, templates: Sequence[TagTemplate]) -> _Together | None:
        """``None`` if one of them needs more than a bare name."""
        patterns = [template._pattern for template in templates if template._pattern is not None]
        if len(patterns) < len(templates):
            return None
        names = tuple(name for template in templates for name in template._names)
        return cls("\n".join(patterns), names, len(patterns))

    def render(self, arguments: Arguments) -> tuple[str, ...] | None:
        """The tags as `compile_tags` gives them, or ``None``: these arguments are to be looked at one by one."""
        try:
            values = tuple(map(arguments.__getitem__, self._names))
            if not only_scalars(map(type, values)):
                return None
            text = self._pattern % values
        except Exception:
            return None
        tags = text.split("\n")
        # A line end in an argument, which no tag may have, shows as one tag more than there are templates.
        if len(tags) != self._many or len(text) > MAX_LENGTH or "" in tags or not "".join(tags).isprintable():
            return None
        return tuple(sorted({*tags}))


def compile_result_tags(tags_from: Callable[[Any], Iterable[str]]) -> ResultTagger:
    """What gives an entry's tags from its result: sorted, each once, each checked, escaped.

    Returns:
        A function that raises `TagError`, and no other exception, if this result does not give usable tags.
    """

    def find(result: object) -> tuple[str, ...]:
        tags = _checked(_asked(tags_from, result))
        if len(tags) > MAX_RESULT_TAGS:
            raise TagError(tags[0], f"it is one of {len(tags)} that a result gives, more than {MAX_RESULT_TAGS}")
        return escape_tags(tags)

    return find


def _asked(ask: Callable[..., Iterable[str]], /, *args: object, **kwargs: object) -> list[str]:
    try:
        tags = ask(*args, **kwargs)
        found = list(tags)
    except Exception as error:
        raise TagError(getattr(ask, "__qualname__", repr(ask)), f"no tags came of it: {error!r}") from error
    if isinstance(tags, str):
        raise TagError(tags, "tags are a list, not one text")
    return found


def _checked(tags: Iterable[object]) -> tuple[str, ...]:
    return tuple(sorted({checked_tag(tag) for tag in tags}))
