"""Memoized Celery tasks: an in-process L1, a Redis L2, leases against stampedes, tags against stale values."""

from importlib.metadata import version as _version

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.binding import see_every_task as _see_every_task
from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import (
    CacheTiersError,
    ConfigurationError,
    JournalFull,
    NotCached,
    SinkRejected,
    SinkTimeout,
    SinkUnavailable,
    TagError,
    TierUnavailable,
    UncacheableArgument,
    UnusableEntry,
)
from celery_cachetiers.result import CachedResult, FollowingResult
from celery_cachetiers.sinks import sink
from celery_cachetiers.sqlalchemy_sink import SQLAlchemySink
from celery_cachetiers.task import CachedTask, CachedTaskMixin
from celery_cachetiers.tasks import clear, invalidate_key, invalidate_tag, invalidate_tags
from celery_cachetiers.why import Why
from celery_cachetiers.writes import Write

__version__ = _version("celery-cachetiers")
_see_every_task()

__all__ = [
    "MISSING",
    "CacheTiers",
    "CacheTiersError",
    "CachedResult",
    "CachedTask",
    "CachedTaskMixin",
    "ConfigurationError",
    "FollowingResult",
    "JournalFull",
    "NotCached",
    "SQLAlchemySink",
    "SinkRejected",
    "SinkTimeout",
    "SinkUnavailable",
    "TagError",
    "TierUnavailable",
    "UncacheableArgument",
    "UnusableEntry",
    "Why",
    "Write",
    "__version__",
    "clear",
    "invalidate_key",
    "invalidate_tag",
    "invalidate_tags",
    "sink",
]
