"""The sums that are shipped for tests behave as those in Redis do."""

from __future__ import annotations

import pytest

from celery_cachetiers.testing import MemoryStats
from celery_cachetiers.testing.conformance import StatsConformance, StatsUnderTest


class TestMemoryStats(StatsConformance):
    @pytest.fixture
    def stats(self) -> StatsUnderTest:
        stats = MemoryStats()
        return StatsUnderTest(stats, stats, stats.flush)
