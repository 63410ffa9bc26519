"""The app of the write-behind tests as `celery -A` takes it, configured through the environment."""

from __future__ import annotations

from tests.integration.apps.behind_tasks import build

app = build()
