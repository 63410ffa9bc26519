"""One suite per port, to be run against every adapter: subclass it, give the one fixture it names, and that is all.

The suites are plain classes without pytest in them; pytest collects the subclass.
"""

from celery_cachetiers.testing.conformance.codec import CodecConformance
from celery_cachetiers.testing.conformance.journal import JournalConformance, JournalUnderTest
from celery_cachetiers.testing.conformance.local_tier import LocalTierConformance, LocalTierUnderTest
from celery_cachetiers.testing.conformance.reports import ReportsConformance, ReportsUnderTest
from celery_cachetiers.testing.conformance.stats import StatsConformance, StatsUnderTest
from celery_cachetiers.testing.conformance.store import StoreConformance, StoreUnderTest

__all__ = [
    "CodecConformance",
    "JournalConformance",
    "JournalUnderTest",
    "LocalTierConformance",
    "LocalTierUnderTest",
    "ReportsConformance",
    "ReportsUnderTest",
    "StatsConformance",
    "StatsUnderTest",
    "StoreConformance",
    "StoreUnderTest",
]
