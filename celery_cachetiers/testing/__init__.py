"""For tests: a fake clock, the stack in memory, faults at will.

Beside it: the suites for adapters of your own in ``celery_cachetiers.testing.conformance``, and fixtures for pytest in
the only module that imports it: ``pytest_plugins = ["celery_cachetiers.testing.fixtures"]``.
"""

from celery_cachetiers.testing.clock import FakeClock
from celery_cachetiers.testing.faults import FaultyStore, Gate
from celery_cachetiers.testing.listener import RecordingListener
from celery_cachetiers.testing.memory_journal import MemoryJournal
from celery_cachetiers.testing.memory_reports import MemoryReports
from celery_cachetiers.testing.memory_stats import MemoryStats
from celery_cachetiers.testing.memory_store import MemoryBackplane, MemoryStore
from celery_cachetiers.testing.process import InMemoryProcess, ManualKeeper

__all__ = [
    "FakeClock",
    "FaultyStore",
    "Gate",
    "InMemoryProcess",
    "ManualKeeper",
    "MemoryBackplane",
    "MemoryJournal",
    "MemoryReports",
    "MemoryStats",
    "MemoryStore",
    "RecordingListener",
]
