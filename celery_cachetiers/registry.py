"""Which tasks depend on which tags, and which invalidate them, as far as their declarations tell.

A pattern is a template without the names of its fields: ``user:{user_id}`` and ``user:{id}`` are both ``user:{}``. Two
patterns meet if one text fits both; a field stands for any text.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from celery import bootsteps

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.task import CachedTaskMixin

logger = logging.getLogger("celery_cachetiers")

FIELD = "{}"


@dataclass(frozen=True, slots=True)
class TagUse:
    """One pattern, and who has to do with it.

    Attributes:
        pattern: See `Registry.patterns`.
        templates: As they are declared.
        dependants, invalidators: Names of tasks, see `Registry`.
    """

    pattern: str
    templates: tuple[str, ...]
    dependants: tuple[str, ...]
    invalidators: tuple[str, ...]


class Registry:
    """The declarations of an app's tasks, as they are when it is made.

    Args:
        tasks: The tasks of one app.
    """

    def __init__(self, tasks: Iterable[Any]) -> None:
        self._depend: dict[str, tuple[str, ...]] = {}
        self._invalidate: dict[str, tuple[str, ...]] = {}
        self._templates: dict[str, set[str]] = {}
        computed, computing = [], []
        for task in tasks:
            name = str(task.name)
            self._invalidate[name] = self._patterns_of(task, "invalidates")
            if callable(_option(task, "invalidates")):
                computing.append(name)
            if isinstance(task, CachedTaskMixin):
                self._depend[name] = self._patterns_of(task, "tags")
                if callable(_option(task, "tags")) or _option(task, "tags_from") is not None:
                    computed.append(name)
        self._computed, self._computing = tuple(sorted(computed)), tuple(sorted(computing))

    def _patterns_of(self, task: Any, option: str) -> tuple[str, ...]:
        declared: Iterable[str] | Callable[..., Any] | None = _option(task, option)
        if declared is None or callable(declared):
            return ()
        found = {template: pattern_of(template) for template in declared}
        for template, pattern in found.items():
            self._templates.setdefault(pattern, set()).add(template)
        return tuple(found.values())

    def patterns(self) -> tuple[str, ...]:
        """Every pattern that a task depends on or invalidates, each once."""
        found = {
            pattern for declared in (self._depend, self._invalidate) for each in declared.values() for pattern in each
        }
        return tuple(sorted(found))

    def dependants(self, pattern: str) -> tuple[str, ...]:
        """Names of the tasks with a declared tag that meets a pattern, a template or a tag.

        Raises:
            ValueError: Its braces do not match.
        """
        return _meeting(pattern, self._depend)

    def invalidators(self, pattern: str) -> tuple[str, ...]:
        """Names of the tasks that declare to invalidate what meets it. Raises as `dependants`."""
        return _meeting(pattern, self._invalidate)

    def uses(self) -> tuple[TagUse, ...]:
        """Every pattern with those who depend on it and those who invalidate it."""
        return tuple(
            TagUse(each, tuple(sorted(self._templates[each])), self.dependants(each), self.invalidators(each))
            for each in self.patterns()
        )

    def computed(self) -> tuple[str, ...]:
        """Names of the tasks whose tags no declaration tells: a callable makes them, or their results do."""
        return self._computed

    def computing_invalidators(self) -> tuple[str, ...]:
        """Names of the tasks whose ``invalidates`` is a callable: what they invalidate no declaration tells."""
        return self._computing

    def unused(self) -> Iterator[tuple[str, str]]:
        """Task and pattern, for what is invalidated and no task depends on, as far as declared tags tell.

        That is uncertain while there are `computed` tags, and nothing where no task declares any: what depends on them
        runs elsewhere.
        """
        if not any(self._depend.values()):
            return
        depend = {pattern for patterns in self._depend.values() for pattern in patterns}
        invalidated = {pattern for patterns in self._invalidate.values() for pattern in patterns}
        unused = {pattern for pattern in invalidated - depend if not any(meet(pattern, each) for each in depend)}
        for name in sorted(self._invalidate):
            for pattern in self._invalidate[name]:
                if pattern in unused:
                    yield name, pattern

    def __repr__(self) -> str:
        return f"<Registry of {len(self.patterns())} patterns>"


class StartCheck(bootsteps.Step):
    """The bootstep of a worker that looks at the declarations before it works.

    Raises:
        ConfigurationError: A setting, or what a task says about invalidating, cannot be used.
    """

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        from celery_cachetiers.invalidating import declare_all

        tiers = CacheTiers(worker.app)
        declare_all(tiers)
        tiers.settings  # noqa: B018 - resolved here
        registry = tiers.registry
        level, line = logging.WARNING, "no task here depends on it"
        if registry.computed():
            names = ", ".join(registry.computed())
            level, line = logging.INFO, f"no task here declares that it depends on it; the tags of {names} are computed"
        for name, pattern in registry.unused():
            logger.log(level, "celery-cachetiers: %s invalidates %r, and %s", name, pattern, line)


def pattern_of(template: str) -> str:
    """The template without the names in its fields.

    >>> pattern_of("day:{day:%Y-%m}"), pattern_of("user:1"), pattern_of("{a}{b}{{}}")
    ('day:{}', 'user:1', '{}{}{{}}')
    """
    return "".join(FIELD if part is None else part.replace("{", "{{").replace("}", "}}") for part in _parts(template))


def meet(one: str, other: str) -> bool:
    """Whether one text fits both patterns.

    >>> meet("user:1", "user:{user_id}"), meet("user:{a}:name", "user:{b}"), meet("user:{a}", "users:{a}")
    (True, True, False)

    Costs: the product of their lengths; far less where they begin with different texts, as most do.
    """
    left, right = _letters(one), _letters(other)
    for letter, against in zip(left, right, strict=False):
        if letter is None or against is None:
            break
        if letter != against:
            return False
    # reach[j]: the letters of `left` so far and the first j of `right` can stand for one text.
    reach = _skipping([True] + [False] * len(right), right)
    for letter in left:
        follow = [letter is None and reach[0]]
        for j, against in enumerate(right):
            follow.append(
                (letter is None and (reach[j + 1] or follow[j]))
                or (against is None and (follow[j] or reach[j + 1]))
                or (letter == against and reach[j])
            )
        reach = follow
    return reach[-1]


def _skipping(reach: list[bool], right: Sequence[str | None]) -> list[bool]:
    """A field may stand for nothing."""
    for j, against in enumerate(right):
        reach[j + 1] = reach[j] and against is None
    return reach


@lru_cache(4096)
def _letters(template: str) -> tuple[str | None, ...]:
    """Each letter, ``None`` for a field."""
    return tuple(letter for part in _parts(template) for letter in ([None] if part is None else part))


def _parts(template: str) -> Iterator[str | None]:
    for literal, name, _, _ in string.Formatter().parse(template):
        if literal:
            yield literal
        if name is not None:
            yield None


def _option(task: Any, name: str) -> Any:
    return getattr(type(task), name, None)


def _meeting(pattern: str, declared: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted(name for name, patterns in declared.items() if any(meet(pattern, each) for each in patterns)))
