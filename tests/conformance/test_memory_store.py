"""The store that is shipped for tests behaves as Redis does."""

from __future__ import annotations

import pytest

from celery_cachetiers.testing import FakeClock, MemoryStore
from celery_cachetiers.testing.conformance import StoreConformance, StoreUnderTest


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def store(self) -> StoreUnderTest:
        clock = FakeClock()
        ours = MemoryStore(clock)
        theirs = MemoryStore(clock, beside=ours)
        under_test = StoreUnderTest(ours, theirs, now=clock.time, advance=clock.advance)
        ours.attach(under_test.we_hear)
        theirs.attach(under_test.they_hear)
        return under_test
