"""The app of the worker tests as `celery -A` takes it, configured through the environment."""

from __future__ import annotations

from tests.integration.apps.worker_tasks import build

app = build()
