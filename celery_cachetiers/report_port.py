"""The port of the place where reports are kept: the reading that the last one ended with, and the history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Last:
    """What the last report has left to the next one.

    Attributes:
        name: Names it: another one after each report.
        moment: Its reading.
    """

    name: str
    moment: str


class ReportStore(Protocol):
    """Keeps reports. All of it raises `TierUnavailable`."""

    def last(self) -> Last | None:
        """What the last report has left; ``None`` if there is none. Costs: 1 round trip."""

    def add(self, after: str, moment: str, report: str, at: float) -> bool:
        """Keeps a report, and its reading for the next one, unless another has come first.

        Args:
            after: The name of what `last` gave, "" for ``None``.
            at: Epoch seconds; what is too old by then is dropped.

        Returns:
            False if that is the last one no longer: then nothing is kept, as its interval was reported.

        Costs: 1 round trip.
        """

    def history(self, since: float, most: int) -> list[str]:
        """Reports that were kept at or after an instant, the oldest first; of more than ``most`` the latest.

        Costs: 1 round trip.
        """

    def reset_after_fork(self) -> None:
        """Leaves the parent's connections alone."""

    def close(self) -> None:
        """Closes connections that lie idle."""
