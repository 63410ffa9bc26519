"""The journal that is shipped for tests behaves as Redis does."""

from __future__ import annotations

import pytest

from celery_cachetiers.testing import FakeClock, MemoryJournal
from celery_cachetiers.testing.conformance import JournalConformance, JournalUnderTest


class TestMemoryJournal(JournalConformance):
    @pytest.fixture
    def journal(self) -> JournalUnderTest:
        clock = FakeClock()
        ours = MemoryJournal(clock)

        def set_last_sequence(sink: str, last: int | None) -> None:
            ours.shared.sinks[sink].last = last or 0

        theirs = MemoryJournal(clock, beside=ours)
        return JournalUnderTest(ours, theirs, set_last_sequence, clock.time, clock.advance)
