"""``cachetiers tags``: which tasks depend on which tags, and which invalidate them, as the app declares it."""

from __future__ import annotations

from typing import Any

import click

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.cli.common import as_json, extension, print_json, print_table, trouble_of
from celery_cachetiers.cli.terminal import say
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.registry import FIELD, Registry, TagUse, meet
from celery_cachetiers.tag_names import user_tag


@click.command()
@as_json
@click.pass_context
def tags(ctx: click.Context, as_json: bool) -> None:
    """List the tags of the app: who depends on them, who invalidates them, and how often that has happened.

    What is declared is listed, `{}` for each field. Tags that a callable or a result gives, and invalidations by
    invalidate_tag() in code, are known only by their counts.
    """
    with extension(ctx) as tiers:
        registry, (counts, note) = tiers.registry, _counts(tiers)
        uses = registry.uses()
    if as_json:
        print_json(_for_programs(registry, uses, counts))
        return
    if uses:
        titles = ("tag", "depend on it", "invalidate it", "times invalidated")
        print_table(titles, [_row(use, counts) for use in uses])
    else:
        say("No task of the app declares a tag.")
    for line in [*_remarks(registry, uses, counts), *filter(None, [note])]:
        say(line)


def _counts(tiers: CacheTiers) -> tuple[dict[str, int] | None, str]:
    """How often each pattern was invalidated, by all processes; ``None`` and why, if Redis cannot be asked."""
    if tiers.where() is None:
        return None, "The app has no Redis: how often they were invalidated, each process knows of itself alone."
    try:
        counted: dict[str, int] = tiers.stats()["invalidated"]
    except TierUnavailable as error:
        return None, f"How often they were invalidated is not known: {trouble_of(error)}"
    return counted, ""


def _times(use: TagUse, counts: dict[str, int] | None) -> int | None:
    """How often tags that begin as the declared one does were invalidated: they are counted up to the first colon."""
    if counts is None:
        return None
    return sum(count for counted, count in counts.items() if _may_be(counted, use.pattern))


def _may_be(counted: str, pattern: str) -> bool:
    """Whether what is counted under a name may have been of a pattern.

    >>> _may_be("user:*", "user:{}"), _may_be("users:*", "user:{}"), _may_be("@task:user", "{}")
    (True, False, False)
    """
    tag = user_tag(counted)
    if tag is None:
        return False
    literal = tag.replace("{", "{{").replace("}", "}}")
    return meet(literal[:-1] + FIELD if literal.endswith(":*") else literal, pattern)


def _row(use: TagUse, counts: dict[str, int] | None) -> tuple[object, ...]:
    times = _times(use, counts)
    return (
        use.pattern,
        ", ".join(use.dependants) or "(nobody)",
        ", ".join(use.invalidators) or "(no task)",
        "?" if times is None else times,
    )


def _remarks(registry: Registry, uses: tuple[TagUse, ...], counts: dict[str, int] | None) -> list[str]:
    lines = []
    if computed := registry.computed():
        lines.append(f"Tags that no declaration tells, made by a callable or a result: {', '.join(computed)}.")
    if computing := registry.computing_invalidators():
        lines.append(f"Invalidate what a callable says: {', '.join(computing)}.")
    never = [use.pattern for use in uses if use.dependants and not use.invalidators and not _times(use, counts)]
    if never and counts is not None:
        lines.append(f"Never invalidated, as far as was counted: {', '.join(never)}.")
    if unused := sorted({pattern for _, pattern in registry.unused()}):
        depends = "declares that it depends" if registry.computed() else "depends"
        lines.append(f"Invalidated, and no task here {depends} on it: {', '.join(unused)}.")
    return lines


def _for_programs(registry: Registry, uses: tuple[TagUse, ...], counts: dict[str, int] | None) -> dict[str, Any]:
    return {
        "tags": [
            {
                "tag": use.pattern,
                "templates": use.templates,
                "dependants": use.dependants,
                "invalidators": use.invalidators,
                "invalidated": _times(use, counts),
            }
            for use in uses
        ],
        "computed": registry.computed(),
        "computed_invalidators": registry.computing_invalidators(),
        "unused": sorted({pattern for _, pattern in registry.unused()}),
        "invalidated": counts,
    }
