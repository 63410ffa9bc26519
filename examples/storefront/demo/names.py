"""The referee of the demo: which name of a customer a page may still show, given when it was asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

BACKPLANE_DELAY = 1.0
"""Seconds within which an invalidation must have reached the L1 of every process. Milliseconds are what one sees."""


@dataclass(frozen=True, slots=True)
class Renamed:
    """One rename: the name and the monotonic instant at which the task's result was there, infinite before."""

    name: str
    done_at: float


class Names:
    """Every name that each customer has had, and the verdict on the pages that showed one.

    A page is checked if it was asked for after a rename of a customer on it had completed. It is stale if it shows an
    older name; one that does not promise more than ``"eventual"`` may do so for `BACKPLANE_DELAY`, and is only late.

    Concurrency: one thread renames; any thread checks. The verdicts change under the lock.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = {user_id: [Renamed(name, 0.0)] for user_id, name in names.items()}
        self._lock = threading.Lock()
        self.renames = self.checked = self.stale = self.late = 0
        self.latest = 0.0
        self.first_stale: str | None = None

    def begin(self, user_id: int) -> str:
        """A name that the customer has never had; from now on pages may show it."""
        names = self._names[user_id]
        name = f"{names[0].name} the {_ordinal(len(names) + 1)}"
        names.append(Renamed(name, float("inf")))
        return name

    def complete(self, user_id: int) -> None:
        """The last rename that was begun has completed: a page that is asked for from now on must show it."""
        names = self._names[user_id]
        names[-1] = Renamed(names[-1].name, time.monotonic())
        self.renames += 1

    def check(self, users: Iterable[Mapping[str, Any]], asked_at: float, *, strict: bool) -> None:
        """Judges one page.

        Args:
            users: The customers on it, each with ``user_id`` and ``name``.
            asked_at: The monotonic instant before it was asked for.
            strict: No delay is allowed.
        """
        ages = [age for user in users if (age := self._seconds_out_of_date(user, asked_at)) is not None]
        if not ages:
            return
        worst = max(ages)
        with self._lock:
            self.checked += 1
            if worst > (0.0 if strict else BACKPLANE_DELAY):
                self.stale += 1
                self.first_stale = self.first_stale or f"{users} {worst * 1000:.1f} ms after a rename"
            elif worst > 0:
                self.late += 1
                self.latest = max(self.latest, worst)

    def _seconds_out_of_date(self, user: Mapping[str, Any], asked_at: float) -> float | None:
        """Seconds for which a newer name was due when the page was asked for; ``None``: never renamed by then."""
        names = self._names[user["user_id"]]
        if len(names) == 1 or names[1].done_at >= asked_at:
            return None
        shown = next((place for place, each in enumerate(names) if each.name == user["name"]), 0)
        missed = [each.done_at for each in names[shown + 1 :] if each.done_at < asked_at]
        return asked_at - missed[0] if missed else 0.0


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
