"""The reports that are shipped for tests behave as those in Redis do."""

from __future__ import annotations

import pytest

from celery_cachetiers.testing import MemoryReports
from celery_cachetiers.testing.conformance import ReportsConformance, ReportsUnderTest


class TestMemoryReports(ReportsConformance):
    @pytest.fixture
    def reports(self) -> ReportsUnderTest:
        reports = MemoryReports()
        return ReportsUnderTest(reports, reports)
