"""Tags: how a call's arguments give them, which texts can be one, and the library's own implicit ones.

A template is checked when the task class is created; rendering may still fail for one call's arguments, which then
runs uncached.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from celery_cachetiers.errors import ConfigurationError, TagError

MAX_LENGTH: Final = 512
_FORMATTER: Final = string.Formatter()

Tags = Callable[[Mapping[str, object]], tuple[str, ...]]


def namespace_tag() -> str:
    """The implicit tag of every entry."""
    return "@all"


def task_tag(name: str) -> str:
    """The implicit tag of every entry of one task."""
    return f"@task:{name}"


def key_tag(digest: str) -> str:
    """The name under which one key is announced."""
    return f"@key:{digest}"


def escape_tag(tag: str) -> str:
    """A user's tag as it is stored: names with one leading ``@`` are the library's own."""
    return f"@{tag}" if tag.startswith("@") else tag


def checked_tag(tag: object) -> str:
    """The tag, if it can be one. Raises `TagError`."""
    if not isinstance(tag, str) or not tag:
        raise TagError(tag, "a tag is text that is not empty")
    if len(tag) > MAX_LENGTH:
        raise TagError(tag[:64] + "...", f"longer than {MAX_LENGTH} characters")
    if not tag.isprintable():
        raise TagError(tag, "it has a character that cannot be printed")
    return tag


@dataclass(frozen=True, slots=True)
class TagTemplate:
    """``"order:{order.id}"``: text with fields over the bound arguments, as `str.format` has them."""

    text: str

    @classmethod
    def parse(cls, text: str, names: Sequence[str], *, open_ended: bool) -> TagTemplate:
        """Checks a template against the names of a task's arguments.

        Args:
            open_ended: The task takes ``**kwargs``: any name may come.

        Raises:
            ConfigurationError: Broken braces, a positional field, an unknown argument, a private attribute.
        """
        if not text:
            raise ConfigurationError("tags", text, "a template is text that is not empty")
        try:
            fields = [field for _, field, _, _ in _FORMATTER.parse(text) if field is not None]
            nested = [spec for _, _, spec, _ in _FORMATTER.parse(text) if spec and "{" in spec]
        except ValueError as error:
            raise ConfigurationError("tags", text, f"a template with matching braces ({error})") from error
        if nested:
            raise ConfigurationError("tags", text, "a format without fields inside it")
        for field in fields:
            _check_field(text, field, names, open_ended)
        return cls(text)

    def render(self, arguments: Mapping[str, object]) -> str:
        """The tag. Raises `TagError` if these arguments do not give one."""
        try:
            return self.text.format_map(arguments)
        except Exception as error:
            raise TagError(self.text, f"it cannot be rendered: {error!r}") from error


def _check_field(text: str, field: str, names: Sequence[str], open_ended: bool) -> None:
    name = field.replace("[", ".").split(".")[0]
    if not name or name.isdigit():
        raise ConfigurationError("tags", text, "fields with the names of arguments, such as {user_id}")
    if any(part.startswith("_") for part in field.replace("[", ".").split(".")[1:]):
        raise ConfigurationError("tags", text, "fields without private attributes")
    if name not in names and not open_ended:
        known = ", ".join(names) or "none"
        raise ConfigurationError("tags", text, f"fields among the task's arguments ({known}), not {name!r}")


def compile_tags(tags: Sequence[str] | Callable[..., Iterable[str]], names: Sequence[str], open_ended: bool) -> Tags:
    """What gives a call's tags: sorted, each once, each checked.

    Args:
        tags: Templates, or ``tags(**arguments)``.

    Raises:
        ConfigurationError: A template is not usable.
    """
    if callable(tags):
        ask = tags
        return lambda arguments: _checked(ask(**arguments))
    templates = [TagTemplate.parse(text, names, open_ended=open_ended) for text in tags]
    if not templates:
        return lambda arguments: ()
    return lambda arguments: _checked(template.render(arguments) for template in templates)


def _checked(tags: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise TagError(tags, "tags are a list, not one text")
    return tuple(sorted({checked_tag(tag) for tag in tags}))
