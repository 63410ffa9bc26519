"""L1 keeps the promises of every L1."""

from __future__ import annotations

import pytest

from celery_cachetiers.testing import FakeClock
from celery_cachetiers.testing.conformance import LocalTierConformance, LocalTierUnderTest
from celery_cachetiers.tiers.memory import MemoryTier


class TestMemoryTier(LocalTierConformance):
    @pytest.fixture
    def tier(self) -> LocalTierUnderTest:
        clock = FakeClock()
        return LocalTierUnderTest(MemoryTier(100, 1024**2, clock, trusted=True), clock.advance)
