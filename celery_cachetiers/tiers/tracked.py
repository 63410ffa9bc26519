"""L1 under tracking: it knows which tag versions its entries stand on, so that a report of Redis can be judged.

Redis reports every write of a tag's version, and most are no more than a longer life. A report of a tag that no entry
here depends on asks for no look at Redis: it only refuses the puts that were under way. The versions of the others are
looked up, and their entries stay while these are what they were. Two rules make that safe, as a version that has gone
never comes back:

1. The version of every tag of an entry is noted before the entry is put, and until everything under it is a miss.
2. A put whose stamp differs from what is noted makes everything under the tag a miss, as either may be the newer one.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from celery_cachetiers.entry import NONCE_BYTES, Times
from celery_cachetiers.local_port import L1Count, Mark
from celery_cachetiers.tag_names import is_implicit
from celery_cachetiers.tiers.memory import SLOTS, MemoryTier, slots_of

TAGS: Final = 50_000
"""Tags whose versions are noted at most, some 10 MB: one more, and L1 starts over."""


@dataclass(frozen=True, slots=True)
class TrackedMark(Mark):
    """A mark that also tells which reports had come before it."""

    reports: int


class TrackedTier(MemoryTier):
    """A `MemoryTier` for a backplane that tracks.

    Concurrency: a second lock guards the versions and is taken before the first one; the backplane's thread reports.
    """

    def reset_after_fork(self) -> None:
        """Empty, with new locks."""
        self._versions_lock = threading.Lock()
        self._versions: dict[str, bytes] = {}
        self._reports = 0
        self._reported = array("Q", bytes(8 * SLOTS))
        super().reset_after_fork()

    def mark(self) -> Mark:
        reports = self._reports
        mark = super().mark()
        return TrackedMark(mark.generation, mark.sequence, reports)

    def put(
        self, digest: str, value: object, names: tuple[str, ...], ttl: float, mark: Mark, *,
        stamp: bytes | None = None, times: Times | None = None, copy: bool = True, tally: L1Count | None = None,
    ) -> bool:  # fmt: skip
        """As `MemoryTier.put`; a value whose stamp is not known is refused: no report could be held against it."""
        if stamp is None or not self._learn(dict(zip(names, _nonces(stamp), strict=False)), mark):
            return False
        return super().put(digest, value, names, ttl, mark, stamp=stamp, times=times, copy=copy, tally=tally)

    def invalidate(self, names: Iterable[str]) -> None:
        names = tuple(names)
        with self._versions_lock:
            self._forget(names)

    def clear(self) -> None:
        with self._versions_lock:
            self._start_over()

    # -- what Redis reports -------------------------------------------------------------------------------------------

    def reported(self, names: Iterable[str]) -> list[str]:
        """Those of the names whose versions are to be looked up now, and handed to `compare`.

        The versions of the library's own tags are looked up even if nothing depends on them yet: while others compute,
        these are reported all the time, and each report would refuse the put that makes them known.
        """
        with self._versions_lock:
            names = tuple(names)
            unknown = [name for name in names if name not in self._versions]
            self._reports += 1
            for slot in slots_of(unknown):
                self._reported[slot] = self._reports
            return [name for name in names if name in self._versions or is_implicit(name)]

    def compare(self, present: Iterable[tuple[str, bytes | None]]) -> list[str]:
        """Those of the tags that are not what they were, to be invalidated; ``None`` stands for a missing version."""
        changed = []
        with self._versions_lock:
            for name, nonce in present:
                known = self._versions.get(name)
                if known is None and nonce is not None:
                    self._note({name: nonce})
                elif known != nonce:
                    changed.append(name)
        return changed

    def is_known(self, name: str, nonce: bytes | None) -> bool:
        """Whether a tag's version is the one that is noted."""
        return nonce is not None and self._versions.get(name) == nonce

    def _learn(self, seen: dict[str, bytes], mark: Mark) -> bool:
        """Notes the versions that a value to be put stands on; false if it must not be put."""
        assert isinstance(mark, TrackedMark)
        with self._versions_lock:
            if any(self._reported[slot] > mark.reports for slot in slots_of(seen)):
                return False
            differing = [name for name, nonce in seen.items() if self._versions.get(name, nonce) != nonce]
            if differing:
                self._forget(differing)
                return False
            self._note(seen)
            return True

    def _note(self, seen: dict[str, bytes]) -> None:
        if len(self._versions) + len(seen) > TAGS:
            self._start_over()
        self._versions.update(seen)

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self._versions.pop(name, None)
        super().invalidate(names)

    def _start_over(self) -> None:
        self._versions.clear()
        super().clear()


def _nonces(stamp: bytes) -> list[bytes]:
    return [stamp[at : at + NONCE_BYTES] for at in range(0, len(stamp), NONCE_BYTES)]
