"""Names of tasks as they are typed: known, or refused with those that look alike."""

from __future__ import annotations

from collections.abc import Iterable

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.cli.common import Refused
from celery_cachetiers.known import complaint


def check_task(tiers: CacheTiers, name: str, counted: Iterable[str] = ()) -> None:
    """Passes for a memoized task of the app, and for one that was counted: another app of the namespace may have it.

    Raises:
        Refused: It is neither.
    """
    if wrong := complaint(tiers.app, name, counted):
        raise Refused(wrong)
