"""The Celery app, as in any project: the first `CachedTask` that is bound to it installs celery-cachetiers."""

from __future__ import annotations

from celery import Celery

app = Celery("storefront", include=["examples.storefront.tasks"])
app.config_from_object("examples.storefront.celeryconfig")  # read at first use, not at import
