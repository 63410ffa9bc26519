"""``cachetiers doctor``: looks at everything around the cache and says what is wrong, each with its remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import click

from celery_cachetiers.cli.common import LEFT, as_json, extension, print_json
from celery_cachetiers.cli.terminal import beside, columns, painted
from celery_cachetiers.doctor.examination import examine
from celery_cachetiers.doctor.findings import LEVELS, Finding, worst

_COLOURS: Final = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "red"}


@click.command()
@as_json
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Look at settings, servers, tasks and workers, and say what is wrong.

    Exit status: 1 if anything is an error, 2 if the settings cannot be used, else 0.
    """
    with extension(ctx) as tiers:
        findings = examine(tiers)
    level = worst(findings)
    if as_json:
        print_json({"level": level, "findings": [finding.as_dict() for finding in findings]})
    else:
        _print(findings)
    if level == "error":
        ctx.exit(LEFT)


def _print(findings: Sequence[Finding]) -> None:
    width, indent = columns(), max(len(finding.code) for finding in findings) + 11
    for finding in findings:
        lines = beside(f"{finding.level:<7}  {finding.code}", finding.found, indent, width)
        if finding.remedy:
            lines += beside("", f"-> {finding.remedy}", indent, width)
        level = painted(finding.level, fg=_COLOURS[finding.level])
        click.echo(level + "\n".join(lines)[len(finding.level) :])
    counts = Counter(finding.level for finding in findings)
    click.echo(
        ", ".join(
            f"{counts[level]} {level}{_ending(level, counts[level])}" for level in reversed(LEVELS) if counts[level]
        )
    )


def _ending(level: str, count: int) -> str:
    return "s" if count > 1 and level in ("warning", "error") else ""
