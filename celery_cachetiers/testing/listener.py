"""A listener that remembers, and can be waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class RecordingListener:
    """A `celery_cachetiers.ports.Listener` that keeps what it hears, in order.

    Concurrency: written by the backplane's thread and read by the test's, under one condition.

    Attributes:
        names: Every announced name, in the order of arrival.
        lost_names: Every tag whose version was lost, the same.
        digests: The key of every wake-up.
        questions: Everything that was asked.
        gaps: How often messages may have been lost.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.names: list[str] = []
        self.lost_names: list[str] = []
        self.digests: list[str] = []
        self.questions: list[Mapping[str, Any]] = []
        self.gaps = 0

    def invalidated(self, names: Sequence[str]) -> None:
        """Other processes have invalidated these tags and keys."""
        self._note(lambda: self.names.extend(names))

    def lost(self, names: Sequence[str]) -> None:
        """Redis has lost the versions of these tags."""
        self._note(lambda: self.lost_names.extend(names))

    def woken(self, digest: str) -> None:
        """The leader of a key has come to an end."""
        self._note(lambda: self.digests.append(digest))

    def asked(self, question: Mapping[str, Any]) -> None:
        """Another process asks something."""
        self._note(lambda: self.questions.append(question))

    def heard(self, trusted_until: float) -> None:
        """The connection is alive."""

    def gap(self) -> None:
        """Messages may have been lost."""
        with self._changed:
            self.gaps += 1
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout: float = 5.0) -> bool:
        """Whether the condition, asked again after each message, came true within so many seconds."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def wait_woken(self, digest: str, timeout: float = 5.0) -> bool:
        """Whether a wake-up of the key arrives within so many seconds."""
        return self.wait_for(lambda: digest in self.digests, timeout)

    def wait_announced(self, name: str, timeout: float = 5.0) -> bool:
        """Whether an announcement of the name arrives within so many seconds."""
        return self.wait_for(lambda: name in self.names, timeout)

    def _note(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def __repr__(self) -> str:
        return f"<RecordingListener: {self.names}, woken for {self.digests}, {self.gaps} gaps>"
