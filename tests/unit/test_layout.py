"""The direction of dependence, drawn from the imports: an arrow that runs back fails the build.

Decides which layer a module belongs to and what a layer may import. All imports count, those inside functions and under
`TYPE_CHECKING` too: a module that needs another one only for its types still cannot be understood without it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = "celery_cachetiers"
PACKAGE_PATH = Path(__file__).resolve().parents[2] / PACKAGE


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What belongs to a layer and what it may import, besides itself and the standard library.

    Args:
        modules: Names without the package's; "*" stands for anything.
        below: Layers whose modules it may import.
        libraries: How many outside libraries one module may import.
        never: Outside libraries that none of its modules may import.
    """

    modules: tuple[str, ...]
    below: tuple[str, ...] = ()
    libraries: int = 0
    never: tuple[str, ...] = ()


# The one table. A new module goes into one of its lines; a new line needs a reason in DESIGN, "Layout".
LAYERS = {
    "words": Layer(
        modules=(
            "errors",
            "options",
            "policy",
            "sink_policy",
            "keys",
            "binder",
            "dialects",
            "canonical",
            "tag_names",
            "templates",
            "entry",
            "clock",
            "events",
            "writes",
            "server_info",
            "why",
            "address",
            "amounts",
        ),
    ),
    "ports": Layer(
        modules=("ports", "local_port", "journal_port", "stats_port", "report_port", "inspected"),
        below=("words",),
    ),
    "engine": Layer(
        modules=(
            "decisions",
            "explaining",
            "observing",
            "flush",
            "delivery",
            "trouble",
            "flight",
            "call",
            "attempt",
            "parts",
            "leading",
            "reading",
            "following",
            "cache",
            "metrics",
            "metrics.*",
        ),
        below=("words", "ports"),
        libraries=1,
        never=("celery", "kombu", "redis", "cachetools"),
    ),
    "adapters": Layer(
        modules=(
            *("codec", "threads", "client", "replies", "breaker", "scripts"),
            *("tiers", "tiers.*", "leases", "leases.*", "backplane", "backplane.*", "journal", "journal.*"),
        ),
        below=("words", "ports"),
        libraries=1,
        never=("celery",),
    ),
    "edge": Layer(
        modules=(
            *("", "app", "binding", "settings", "declaration", "memoized", "task", "task_cache"),
            *("result", "publishing", "tasks", "failures", "seat", "room", "answering", "loops"),
            *("outlet", "straight_way", "records", "journaling", "write_behind", "dead_letter"),
            *("schedule", "counting", "reporting"),
            *("body", "commits", "invalidating", "invalidation", "succession", "registry", "asking"),
            *("broker_limits", "worker_requests", "waiting_room", "signals"),
            *(
                "sinks",
                "sink_definition",
                "sink_writer",
                "sqlalchemy_sink",
                "sqlalchemy_statements",
                "sqlalchemy_outages",
            ),
            *("roll_call", "control", "known", "logs", "installed"),
            *("identity", "doctor", "doctor.*", "exporting", "prometheus", "opentelemetry"),
            *("cli", "cli.*", "django", "django.*"),
        ),
        below=("words", "ports", "engine", "adapters"),
        libraries=sys.maxsize,
    ),
    "testing": Layer(
        modules=("testing", "testing.*"),
        below=("words", "ports", "engine", "adapters", "edge"),
        libraries=sys.maxsize,
    ),
}


def test_no_import_runs_against_the_direction() -> None:
    graph = imports_of_package(PACKAGE_PATH)

    assert "errors" in {_local(module) for module in graph}
    found = violations(graph)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "imported", "complaint"),
    [
        ("entry", "celery_cachetiers.cache", "words may not import engine"),
        ("entry", "celery_cachetiers.ports", "words may not import ports"),
        ("ports", "celery_cachetiers.decisions", "ports may not import engine"),
        ("cache", "celery_cachetiers.tiers.memory", "engine may not import adapters"),
        ("tiers.memory", "celery_cachetiers.cache", "adapters may not import engine"),
        ("tiers.memory", "celery_cachetiers", "adapters may not import edge"),
        ("task", "celery_cachetiers.testing.clock", "edge may not import testing"),
        ("errors", "redis", "words may import 0 outside libraries, not 1 (redis)"),
        ("cache", "kombu.utils", "engine may never import kombu"),
        ("codec", "celery.app", "adapters may never import celery"),
    ],
)
def test_a_forged_arrow_is_found(module: str, imported: str, complaint: str) -> None:
    graph = {f"{PACKAGE}.{module}": {imported}, **{name: set() for name in [imported] if name.startswith(PACKAGE)}}

    found = violations(graph)

    assert len(found) == 1
    assert f"{PACKAGE}.{module} imports {imported}: " in found[0] or "outside libraries" in found[0]
    assert complaint in found[0]


def test_an_adapter_may_have_one_outside_library_and_not_two() -> None:
    one = {f"{PACKAGE}.tiers.memory": {"cachetools", "cachetools.keys", "time", f"{PACKAGE}.entry"}, **_ENTRY}
    two = {f"{PACKAGE}.tiers.memory": {"cachetools", "redis.client", "time"}}

    assert violations(one) == []
    assert violations(two) == [
        f"{PACKAGE}.tiers.memory: adapters may import 1 outside library, not 2 (cachetools, redis)"
    ]


def test_an_arrow_downwards_and_one_inside_the_layer_are_allowed() -> None:
    graph = {
        f"{PACKAGE}.cache": {f"{PACKAGE}.entry", f"{PACKAGE}.decisions"},
        f"{PACKAGE}.decisions": {f"{PACKAGE}.ports"},
        f"{PACKAGE}.ports": {"typing"},
        f"{PACKAGE}.app": {f"{PACKAGE}.cache", "celery", "kombu", "redis"},
        **_ENTRY,
    }

    assert violations(graph) == []


def test_an_unknown_module_is_told_where_to_go() -> None:
    (complaint,) = violations({f"{PACKAGE}.novelty": set()})

    assert "novelty" in complaint
    assert "LAYERS in tests/unit/test_layout.py" in complaint


def test_every_kind_of_import_is_read(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE
    (package / "tiers").mkdir(parents=True)
    for name in ("__init__", "entry", "clock", "errors", "tiers/__init__", "tiers/memory"):
        (package / f"{name}.py").write_text("")
    (package / "tiers/redis.py").write_text(
        "import json, redis.client\n"
        "from typing import TYPE_CHECKING\n"
        "from .. import entry\n"
        "from . import memory as m\n"
        "from ..clock import Clock\n"
        "from celery_cachetiers import CachedTask\n"
        "if TYPE_CHECKING:\n"
        "    from celery_cachetiers.errors import CacheTiersError\n"
        "def later():\n"
        "    from celery import Celery\n"
    )

    found = imports_of_package(package)[f"{PACKAGE}.tiers.redis"]

    assert found == {
        *("json", "redis.client", "typing", "celery", PACKAGE),
        *(f"{PACKAGE}.{name}" for name in ("entry", "tiers.memory", "clock", "errors")),
    }


_ENTRY: dict[str, Set[str]] = {f"{PACKAGE}.entry": set()}


# -- what is judged -----------------------------------------------------------------------------------------------


def violations(graph: Mapping[str, Set[str]]) -> list[str]:
    """What in an import graph runs against `LAYERS`, one sentence each; empty is good."""
    return [complaint for module in sorted(graph) for complaint in _complaints(module, graph[module])]


def _complaints(module: str, imported: Set[str]) -> Iterator[str]:
    name = layer_of(module)
    if name is None:
        yield (
            f"{module} belongs to no layer: add {_local(module)!r} to a line of LAYERS in tests/unit/test_layout.py "
            f"({', '.join(LAYERS)})"
        )
        return
    layer = LAYERS[name]
    for target in sorted(target for target in imported if _is_ours(target)):
        below = layer_of(target)
        if below is not None and below != name and below not in layer.below:
            yield f"{module} imports {target}: {name} may not import {below}"
    outside = {target for target in imported if not _is_ours(target) and not _is_standard(target)}
    for target in sorted(outside):
        if _top(target) in layer.never:
            yield f"{module} imports {target}: {name} may never import {_top(target)}"
    libraries = sorted({_top(target) for target in outside})
    if len(libraries) > layer.libraries:
        noun = "library" if layer.libraries == 1 else "libraries"
        yield (
            f"{module}: {name} may import {layer.libraries} outside {noun}, "
            f"not {len(libraries)} ({', '.join(libraries)})"
        )


def layer_of(module: str) -> str | None:
    """The layer whose line in `LAYERS` names the module."""
    local = _local(module)
    for name, layer in LAYERS.items():
        if any(fnmatchcase(local, pattern) for pattern in layer.modules):
            return name
    return None


def _local(module: str) -> str:
    return module.removeprefix(PACKAGE).removeprefix(".")


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_ours(module: str) -> bool:
    return _top(module) == PACKAGE


def _is_standard(module: str) -> bool:
    return _top(module) in sys.stdlib_module_names


# -- how the graph is drawn ---------------------------------------------------------------------------------------


def imports_of_package(path: Path) -> dict[str, Set[str]]:
    """Every module below `path` with the full names of the modules that it imports."""
    files = {_module_name(path, file): file for file in path.rglob("*.py")}
    return {module: set(_imports(module, file, files)) for module, file in files.items()}


def _module_name(package: Path, file: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(module: str, file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node, is_package=file.name == "__init__.py")
            # "from package import name" names a module if there is one of that name, else something in the package.
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in known else base


def _base(module: str, node: ast.ImportFrom, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])
