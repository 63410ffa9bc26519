"""What is printed on a terminal: no line longer than it, nothing cut short, and colours only where they are wanted.

Where the output is no terminal, lines are as long as they are: other programs read them.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import Any, Final

import click

ROOM: Final = 28
"""Characters that a text must have beside its label; with fewer it goes below."""
BELOW: Final = "    "


def columns() -> int | None:
    """How wide the terminal is; ``None`` where the output is none."""
    return max(shutil.get_terminal_size().columns, 1) if sys.stdout.isatty() else None


def colourless() -> bool:
    """Whether the user wants no colours: ``--no-color``, which Celery's commands have, or ``NO_COLOR``."""
    context = click.get_current_context(silent=True)
    return bool(os.environ.get("NO_COLOR")) or bool(getattr(getattr(context, "obj", None), "no_color", False))


def painted(text: str, **style: Any) -> str:
    """A text in colour, where there is a terminal that may have them."""
    return text if columns() is None or colourless() else click.style(text, **style)


def say(text: str) -> None:
    """Prints sentences, in lines that the terminal has room for."""
    click.echo("\n".join(wrapped(text, columns())))


def wrapped(text: str, width: int | None, indent: str = "") -> list[str]:
    """Lines of whole words; a word that is longer than a line goes on in the next one.

    >>> wrapped("no line is too long", 12, indent="  ")
    ['  no line is', '  too long']
    >>> wrapped("abcdefgh", 5)
    ['abcde', 'fgh']
    """
    if width is None:
        return [indent + text]
    room = max(width, len(indent) + 1)
    return textwrap.wrap(text, room, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False) or [""]


def beside(label: str, text: str, indent: int, width: int | None) -> list[str]:
    """A label and its text beside each other; where one of its words has no room there, the text goes below.

    >>> beside("key", "0f3a of proj.page", 5, None)
    ['key  0f3a of proj.page']
    >>> beside("key", "0f3a of a page with a long name", 5, 33)
    ['key  0f3a of a page with a long', '     name']
    >>> beside("key", "0f3a0f3a0f3a0f3a0f3a0f3a", 9, 30)
    ['key', '    0f3a0f3a0f3a0f3a0f3a0f3a']
    """
    if width is None:
        return [f"{label:<{indent}}{text}".rstrip()]
    longest = max(map(len, text.split()), default=0)
    if width - indent >= max(longest, ROOM):
        first, *more = wrapped(text, width - indent)
        return [f"{label:<{indent}}{first}".rstrip(), *(" " * indent + line for line in more)]
    return [*filter(None, [label.rstrip()]), *wrapped(text, width, BELOW)]
