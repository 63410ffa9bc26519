"""L1 keeps the promises of every L1, with and without tracking."""

from __future__ import annotations

from typing import Any

import pytest

from celery_cachetiers.testing import FakeClock
from celery_cachetiers.testing.conformance import LocalTierConformance, LocalTierUnderTest
from celery_cachetiers.tiers.memory import MemoryTier
from celery_cachetiers.tiers.tracked import TrackedTier


class TestMemoryTier(LocalTierConformance):
    @pytest.fixture
    def tier(self) -> LocalTierUnderTest:
        clock = FakeClock()
        return LocalTierUnderTest(MemoryTier(100, 1024**2, clock, trusted=True), clock.advance)


class Stamped(TrackedTier):
    """The suite puts without a stamp, which under tracking is refused."""

    def put(self, digest: str, value: object, names: tuple[str, ...], *args: Any, **kwargs: Any) -> bool:
        stamp = kwargs.pop("stamp", None) or bytes(8 * len(names))
        return super().put(digest, value, names, *args, stamp=stamp, **kwargs)


class TestTrackedTier(LocalTierConformance):
    @pytest.fixture
    def tier(self) -> LocalTierUnderTest:
        clock = FakeClock()
        return LocalTierUnderTest(Stamped(100, 1024**2, clock, trusted=True), clock.advance)
