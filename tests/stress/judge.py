"""Who was served what was invalidated, told from the notes of all processes; see `stale_app.Log`.

A read is *stale* if it shows a version of a row that was replaced by one whose invalidation was complete when the read
began. Its *age* is the time between the two. What a stale read breaks:

1. Tasks without L1, and strict ones, show nothing stale.
2. A stale value can only come out of the L1 of a process that the read went through, and only as long as that process
   does not know better: it has neither acted on an announcement of that row, nor itself invalidated it, nor had a gap
   on its backplane, between the invalidation and the read. All these instants are noted by the process itself, right
   after it has acted: no allowance for time is made. That is what "the backplane's delay" means.
3. Whatever a process has heard or not, nothing is older than the silence after which it does not trust its L1: the one
   bound in seconds. Silence begins with the last message that was heard, and so as much later as a message took: the
   longest that any announcement of the run took is added.
"""

from __future__ import annotations

import json
import math
import statistics
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from celery_cachetiers.backplane.redis import SILENCE


@dataclass
class Notes:
    """What one process has noted.

    Attributes:
        ended: When it was killed; it may live on otherwise.
        known: By row, instant and version of what it has acted on, by instant.
    """

    started: float = math.inf
    ended: float = math.inf
    reads: list[tuple[float, str, str, list[list[int]]]] = field(default_factory=list)
    completed: list[tuple[float, int, int]] = field(default_factory=list)
    known: dict[int, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    gaps: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, path: Path, ended: float) -> Notes:
        """Reads a file; a line that a kill has cut is left out."""
        notes = cls(ended=ended)
        for line in path.read_bytes().split(b"\n")[:-1]:
            kind, at, *details = json.loads(line)
            notes.counts[kind] += 1
            match kind:
                case "started":
                    notes.started = at
                case "read":
                    notes.reads.append((at, *details))
                case "complete":
                    notes.completed.append((at, *details))
                case "gap":
                    notes.gaps.append(at)
                case "heard" | "invalidated":
                    notes._note_known(at, details, kind)
        notes.gaps.sort()
        for known in notes.known.values():
            known.sort()
        return notes

    def _note_known(self, at: float, names: Sequence[str], kind: str) -> None:
        for name in names:
            head, _, version = name.rpartition(":")
            if head.startswith("row:"):
                self.known[int(head[4:])].append((at, int(version)))

    def knew(self, row: int, version: int, invalidated: float, began: float) -> bool:
        """Whether it had every reason not to serve a version of a row to a read that began then."""
        if self.started > invalidated or self.ended < began:
            return True  # it was not there to keep it
        known = self.known[row]
        if any(later > version for _, later in known[: bisect_right(known, (began, math.inf))]):
            return True
        at = bisect_left(self.gaps, invalidated)
        return at < len(self.gaps) and self.gaps[at] <= began


@dataclass(frozen=True)
class Stale:
    """One read that showed a replaced version; ``broke`` is why it may not, "" if it may."""

    task: str
    through: str
    row: int
    version: int
    replaced_by: int
    age: float
    broke: str


class Judge:
    """All notes of a run.

    Args:
        directory: Where they lie.
        workers: Processes of the worker.
        killed: When which process was killed.
    """

    def __init__(self, directory: Path, workers: set[int], killed: Mapping[int, float]) -> None:
        paths = {int(path.stem): path for path in directory.glob("*.jsonl")}
        self.notes = {pid: Notes.of(path, killed.get(pid, math.inf)) for pid, path in paths.items()}
        self._workers = workers
        self._completed: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for notes in self.notes.values():
            for at, row, version in notes.completed:
                self._completed[row].append((version, at))
        for completed in self._completed.values():
            completed.sort()
        self.lags = sorted(self._lags())
        self.stale = list(self._judged())

    def count(self, kind: str) -> int:
        """Notes of a kind, of all processes."""
        return sum(notes.counts[kind] for notes in self.notes.values())

    @property
    def broken(self) -> list[Stale]:
        """Those that may not be."""
        return [each for each in self.stale if each.broke]

    def _lags(self) -> Iterator[float]:
        """Seconds from the end of an invalidation until a process had acted on its announcement, if later."""
        ends = {(row, version): at for row, completed in self._completed.items() for version, at in completed}
        for notes in self.notes.values():
            for row, known in notes.known.items():
                for at, version in known:
                    if (row, version) in ends:
                        yield max(at - ends[row, version], 0.0)

    def _judged(self) -> Iterator[Stale]:
        for pid, notes in self.notes.items():
            for began, task, through, value in notes.reads:
                for row, version in value:
                    completed = self._completed[row]
                    at = bisect_left(completed, (version + 1, 0.0))
                    if at < len(completed) and completed[at][1] < began:
                        replaced_by, invalidated = completed[at]
                        broke = self._broke(pid, task, through, (row, version), (invalidated, began))
                        yield Stale(task, through, row, version, replaced_by, began - invalidated, broke)

    def _broke(self, pid: int, task: str, through: str, shown: tuple[int, int], between: tuple[float, float]) -> str:
        variant = task.split(maxsplit=1)[0]
        if variant != "eventual":
            return variant
        went_through = [pid, *self._workers] if through == "worker" else [pid]
        if all(self.notes[each].knew(*shown, *between) for each in went_through if each in self.notes):
            return "known"
        return "silence" if between[1] - between[0] > SILENCE + self.lags[-1] else ""


def centiles(seconds: Sequence[float]) -> str:
    """In words, in ms."""
    if len(seconds) < 2:
        return f"{len(seconds)}"
    cuts = statistics.quantiles(seconds, n=100)
    return f"{len(seconds)}: p50 {cuts[49] * 1e3:.1f}, p99 {cuts[98] * 1e3:.1f}, max {max(seconds) * 1e3:.1f} ms"
