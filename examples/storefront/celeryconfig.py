"""Settings of the app. Three databases of one Redis, so that the cache may be flushed and nothing else."""

from __future__ import annotations

import os

broker_url = os.environ.get("STOREFRONT_BROKER", "redis://localhost:6379/0")
broker_connection_retry_on_startup = True
result_backend = os.environ.get("STOREFRONT_BACKEND", "redis://localhost:6379/1")

cachetiers_url = os.environ.get("STOREFRONT_CACHE", "redis://localhost:6379/2")

# Flushing must not wait behind pages, nor pages behind a flush: a queue, and a worker, of its own. Every second, so
# that there is something to see; the default is 5 s.
cachetiers_flush_queue = "flush"
cachetiers_flush_every = 1.0

# Once in five seconds, so that a minute of the demo makes a history; the default is 60 s.
cachetiers_report_every = 5.0

# While the list is fresh, beat finds it in the cache and sends no message. After an invalidation beat is often the
# first to ask, so that no visitor waits for the query.
beat_schedule = {
    "warm-top-users": {"task": "examples.storefront.tasks.top_users", "schedule": 2.0},
}
