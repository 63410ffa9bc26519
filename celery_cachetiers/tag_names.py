"""The names of tags: which texts can be one, how a user's tag is stored, and the library's own implicit ones."""

from __future__ import annotations

import re
from typing import Final

from celery_cachetiers.errors import TagError

MAX_LENGTH: Final = 512
UNUSABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters; and lone surrogates, which no Redis key can hold."""
_TASK: Final = "@task:"


def namespace_tag() -> str:
    """The implicit tag of every entry."""
    return "@all"


def task_tag(name: str) -> str:
    """The implicit tag of every entry of one task."""
    return _TASK + name


def task_of(name: str) -> str | None:
    """The task behind an implicit tag; ``None`` for any other name.

    >>> task_of(task_tag("profile")), task_of("@@task:profile")
    ('profile', None)
    """
    return name[len(_TASK) :] if name.startswith(_TASK) else None


def key_tag(digest: str) -> str:
    """The name under which one key is announced."""
    return f"@key:{digest}"


def key_of_tag(name: str) -> str | None:
    """The key behind a stored name; ``None`` if the name is another one.

    >>> key_of_tag(key_tag("5f")), key_of_tag("@@key:5f"), key_of_tag("user:1")
    ('5f', None, None)
    """
    return name.removeprefix("@key:") if name.startswith("@key:") else None


def escape_tag(tag: str) -> str:
    """A user's tag as it is stored: names with a single leading ``@`` are the library's own.

    >>> escape_tag("user:1"), escape_tag("@all")
    ('user:1', '@@all')
    """
    return f"@{tag}" if tag.startswith("@") else tag


def escape_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    """The tags as they are stored, in their order."""
    return tuple(map(escape_tag, tags)) if "@" in "".join(tags) else tags


def is_implicit(name: str) -> bool:
    """Whether a stored name is the library's own.

    >>> is_implicit("@task:profile"), is_implicit("@@all"), is_implicit("user:1")
    (True, False, False)
    """
    return name.startswith("@") and not name.startswith("@@")


def user_tag(name: str) -> str | None:
    """The user's tag behind a stored name; ``None`` if the name is the library's own.

    >>> user_tag("user:1"), user_tag("@@all"), user_tag("@all")
    ('user:1', '@all', None)
    """
    return None if is_implicit(name) else name.removeprefix("@")


def checked_tag(tag: object) -> str:
    """The tag, if it can be one.

    Raises:
        TagError: It is no text, empty, longer than 512 characters, or has a control character or a surrogate.
    """
    if not isinstance(tag, str) or not tag:
        raise TagError(tag, "a tag is text that is not empty")
    if len(tag) > MAX_LENGTH:
        raise TagError(tag[:64] + "...", f"it is longer than {MAX_LENGTH} characters")
    if UNUSABLE.search(tag):
        raise TagError(tag, "it has a control character or a surrogate")
    return str.__str__(tag)
