"""What a process remembers of a sink that is in trouble: how long to leave it alone, and how few writes to try at once.

Only hanging needs a memory. A failure is narrowed down at once, by halves; a hang costs a whole time limit and leaves a
thread behind, so each halving waits for the next flush.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

from celery_cachetiers.clock import chance

MAX_BACK_OFF: Final = 60.0
MAX_SUSPECTS: Final = 10_000


def back_off(first: float, failures: int) -> float:
    """Seconds to wait after so many failures before the last one: doubling up to `MAX_BACK_OFF`, less up to a half."""
    return min(first * 2.0 ** min(failures, 30), MAX_BACK_OFF) * chance.uniform(0.5, 1.0)


class Trouble:
    """Failures of one sink as a whole, in a row; and the keys that were in a batch that hung.

    Concurrency: threads may share it; an update that is lost costs one more hang.
    """

    def __init__(self) -> None:
        self._outages = 0
        self._together: dict[str, int] = {}  # suspect -> how many may be tried together with it

    def failed(self) -> None:
        """The sink as a whole has failed."""
        self._outages += 1

    def hung(self, keys: Sequence[str]) -> None:
        """A batch of these hung: one of them may be why. The next time, half as many are tried together."""
        if len(self._together) > MAX_SUSPECTS:
            self._together.clear()
        half = max(len(keys) // 2, 1)
        for key in keys:
            self._together[key] = min(self._together.get(key, half), half)

    def taken(self, keys: Iterable[str]) -> None:
        """The sink has taken these."""
        self._outages = 0
        self.settled(keys)

    def settled(self, keys: Iterable[str]) -> None:
        """These come no more."""
        for key in keys:
            self._together.pop(key, None)

    def suspects(self, key: str) -> bool:
        """Whether it was in a batch that hung."""
        return key in self._together

    def delay(self, first: float) -> float:
        """Seconds to leave the sink alone."""
        return back_off(first, max(self._outages - 1, 0))

    def pieces(self, keys: Sequence[str]) -> list[list[str]]:
        """What to try together: all that has never hung, then the suspects in ever smaller groups."""
        clean = [key for key in keys if key not in self._together]
        pieces = [clean] if clean else []
        sizes = [(self._together.get(key, 1), key) for key in keys if key in self._together]
        for size, group in groupby(sorted(sizes, key=_size, reverse=True), key=_size):
            suspects = [key for _, key in group]
            pieces += [suspects[at : at + size] for at in range(0, len(suspects), size)]
        return pieces

    def __repr__(self) -> str:
        return f"<Trouble: {self._outages} outages, {len(self._together)} suspects>"


def _size(row: tuple[int, str]) -> int:
    return row[0]
