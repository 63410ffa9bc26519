"""The tables of settings and task options, made from the dataclasses that check them: they cannot drift.

``.. cachetiers-options:: celery_cachetiers.policy.Settings`` makes a table of a dataclass' fields, each a
target of the role ``confval``; ``:prefix:`` is put before the names.
``.. cachetiers-not-built:: celery_cachetiers.policy.Policy`` lists the names that are known and refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_id

PREFIX = "cachetiers_"
WIDTHS = (22, 14, 26, 38)
MIB = 1024**2


class OptionsTable(SphinxDirective):
    """Name, default, allowed values and meaning of each field."""

    required_arguments = 1
    option_spec: ClassVar = {"prefix": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """The table."""
        prefix = self.options.get("prefix", "")
        rows = [self._row(field, prefix) for field in dataclasses.fields(_class(self.arguments[0]))]
        return [_table(("name", "default", "allowed", "meaning"), rows)]

    def _row(self, field: dataclasses.Field[Any], prefix: str) -> nodes.row:
        name = prefix + field.name
        rule, doc = field.metadata["rule"], field.metadata["doc"]
        cells = ([self._target(name)], self._default(field), _inline(rule.allowed), _inline(doc))
        return _row_of(cells)

    def _target(self, name: str) -> nodes.Node:
        domain = self.env.get_domain("std")
        identifier = make_id(self.env, self.state.document, "option", name)
        domain.note_object("confval", name, identifier, location=self.get_location())  # type: ignore[attr-defined]
        literal = nodes.literal(name, name, ids=[identifier], classes=["option-name"])
        self.state.document.note_explicit_target(literal)
        return literal

    def _default(self, field: dataclasses.Field[Any]) -> list[nodes.Node]:
        setting = field.metadata["setting"]
        if setting is None:
            return _inline(_shown(field.default, field.name))
        return [nodes.Text("as "), nodes.literal(PREFIX + setting, PREFIX + setting)]


class NotBuilt(SphinxDirective):
    """The names that are known, and refused because their feature is not there yet."""

    required_arguments = 1
    option_spec: ClassVar = {"prefix": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """One paragraph."""
        prefix, paragraph = self.options.get("prefix", ""), nodes.paragraph()
        for number, name in enumerate(sorted(_class(self.arguments[0]).NOT_BUILT)):
            paragraph += nodes.Text(", " if number else "")
            paragraph += nodes.literal(prefix + name, prefix + name)
        return [paragraph]


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _shown(value: object, name: str) -> str:
    if value is None or value == ():
        return "none"
    if name.endswith("_bytes") and isinstance(value, int) and value % MIB == 0:
        return f"{value // MIB} MiB"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"``{value!r}``" if value != "" else "``''``"


def _inline(text: str) -> list[nodes.Node]:
    """Text with literals in double backticks, as the metadata has them."""
    found: list[nodes.Node] = []
    for number, part in enumerate(re.split(r"``(.+?)``", text)):
        if part:
            found.append(nodes.literal(part, part) if number % 2 else nodes.Text(part))
    return found


def _table(titles: Iterable[str], rows: list[nodes.row]) -> nodes.table:
    group = nodes.tgroup(cols=len(WIDTHS))
    group += [nodes.colspec(colwidth=width) for width in WIDTHS]
    group += nodes.thead("", _row_of([nodes.Text(title)] for title in titles))
    group += nodes.tbody("", *rows)
    return nodes.table("", group, classes=["options"])


def _row_of(cells: Iterable[list[nodes.Node]]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directives."""
    app.add_directive("cachetiers-options", OptionsTable)
    app.add_directive("cachetiers-not-built", NotBuilt)
    return {"parallel_read_safe": True}
